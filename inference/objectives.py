"""Objectives: what is maximized, by what is done with the assignment ``c``.

All are Pyro ELBO objects: they go into `pyro.infer.SVI` as well as into `pyro_moe.fit`.
"""

from abc import abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from pyro import poutine
from pyro.infer import ELBO, Trace_ELBO, TraceEnum_ELBO, TraceMeanField_ELBO

from .handlers import AtTheMean, CategoricalKL, EnumerateInParallel, Relax
from .programs import Program
from .traces import (
    enumerated_traces,
    global_log_weight,
    log_assignment,
    row_bounds,
    row_log_weights,
)

Treatment = Callable[[float], Callable[[Program], Program]]  # by temperature


LOSSES = ("marginal", "categorical-kl", "relaxed")


def objective(loss: str | ELBO) -> tuple[ELBO, Treatment]:
    """An objective by name, and what has to be done with ``c`` while it is evaluated.

    Args:
        loss: ``"marginal"`` (`MarginalELBO`), ``"categorical-kl"`` (the paper's L̃, §7),
            ``"relaxed"`` (the ELBO of the relaxed densities; Maddison, Mnih, Teh 2017), or any
            Pyro ELBO object.

    Returns:
        The ELBO, and a function from a temperature to an effect handler for both programs.

    Raises:
        ValueError: If the name is none of these.

    Note:
        The relaxed ELBO bounds log p(x) of the relaxed story. It does not tend to the marginal
        ELBO: at one temperature for both, KL(q(ζ) ‖ p(ζ)) is the divergence of two sets of
        Gumbel differences whatever τ, exceeds that of the categoricals, and grows without
        bound as q(c|x) becomes certain. That is why it separates clusters so badly.

        L̃ is the expectation of log p(x|z) − KL(q(z|x) ‖ p(z|ζ)) − KL(q(c|x) ‖ p(c)) with a
        relaxed ζ. It is no lower bound on log p(x): its last term belongs to the discrete
        story and its middle one to the relaxed. As τ → 0 it tends to the marginal ELBO. For
        VaDE, whose c depends on z in the guide, it reads q(c|x) = p(c|ẑ) at an auxiliary ẑ,
        as the paper's §3 does, and is looser than the marginal ELBO even at τ = 0.
    """
    if isinstance(loss, TraceEnum_ELBO):
        return loss, lambda temperature: EnumerateInParallel()
    if isinstance(loss, _DifferentiableELBO):
        return loss, lambda temperature: _as_it_is
    if isinstance(loss, ELBO):
        return loss, Relax
    if loss == "marginal":
        return MarginalELBO(), lambda temperature: _as_it_is
    if loss == "categorical-kl":
        return TraceMeanField_ELBO(), lambda temperature: Relax(temperature, CategoricalKL)
    if loss == "relaxed":
        return Trace_ELBO(), Relax
    names = (*LOSSES, "em")
    raise ValueError(f"expected loss in {names} or a Pyro ELBO object; got {loss!r}")


def _as_it_is(program: Program) -> Program:
    return program


class _DifferentiableELBO(ELBO):
    """A Pyro ELBO whose gradient is that of `differentiable_loss`."""

    @abstractmethod
    def differentiable_loss(
        self, model: Program, guide: Program, *args: Any, **kwargs: Any
    ) -> torch.Tensor:
        """The negative objective, summed over rows, as a tensor."""

    def loss(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> float:
        """The negative objective, summed over rows."""
        with torch.no_grad():
            return self.differentiable_loss(model, guide, *args, **kwargs).item()

    def loss_and_grads(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> float:
        """The negative objective; its gradients are added to the parameters' ``grad``."""
        loss = self.differentiable_loss(model, guide, *args, **kwargs)
        loss.backward()
        return loss.item()


class MarginalELBO(_DifferentiableELBO):
    r"""The ELBO with the assignment ``c`` summed out exactly.

    .. math:: L = E_{q(z)} \sum_k q(c = k) \log \frac{p(x, z, c = k)}{q(z)\, q(c = k)}

    A lower bound on log p(x), without relaxation or score-function noise. A guide that has no
    ``c`` gets the best there is, q(c) = p(c|x, z), which puts the sum under the logarithm.
    `TraceEnum_ELBO` computes the same number, for any discrete sites, more slowly.

    Args:
        num_particles: Samples of the other latent variables to average over.

    Example:
        >>> import pyro
        >>> import pyro.distributions as dist
        >>> def model(x):
        ...     with pyro.plate("data", len(x)):
        ...         c = pyro.sample("c", dist.OneHotCategorical(torch.ones(2)))
        ...         pyro.sample("x", dist.Normal(c @ torch.tensor([0.0, 1.0]), 1.0), obs=x)
        >>> round(MarginalELBO().loss(model, lambda x: None, torch.zeros(1)), 4)
        1.138
    """

    def differentiable_loss(
        self, model: Program, guide: Program, *args: Any, **kwargs: Any
    ) -> torch.Tensor:
        """The negative bound, summed over rows.

        Raises:
            ValueError: If a latent site of the guide besides ``c`` is not reparameterized.
        """
        particles = []
        for model_trace, guide_trace in self._get_traces(model, guide, args, kwargs):
            rows = row_bounds(model_trace, guide_trace)
            particles.append(rows.sum() + global_log_weight(model_trace, guide_trace))
        return -torch.stack(particles).mean()

    def _get_trace(self, model: Program, guide: Program, args: Any, kwargs: Any) -> Any:
        return enumerated_traces(model, guide, *args, **kwargs)


class AssignedELBO(_DifferentiableELBO):
    r"""The ELBO with q(c) held at given responsibilities r, while q(c|x) is taught them.

    .. math:: L = E_{q(z)} \sum_k r_k \log \frac{p(x, z, c = k)}{q(z)\, r_k}
                  - \mathrm{KL}(r \,\|\, q(c \mid x))

    How a clustering of any origin becomes a start: each component's moments, each expert, the
    encoder and the head of c all fit the rows that r gives them. The responsibilities are the
    last of the arguments, shape (N, K); model and guide get those before it. Entropies of r
    are constants and left out.
    """

    def differentiable_loss(
        self, model: Program, guide: Program, *args: Any, **kwargs: Any
    ) -> torch.Tensor:
        """The negative objective, summed over rows."""
        responsibilities = args[-1]
        particles = []
        for model_trace, guide_trace in self._get_traces(model, guide, args, kwargs):
            log_weights = row_log_weights(model_trace, guide_trace)
            log_q = log_assignment(guide_trace)
            taught = log_weights if log_q is None else log_weights + log_q
            rows = (responsibilities.T * taught).sum(0)
            particles.append(rows.sum() + global_log_weight(model_trace, guide_trace))
        return -torch.stack(particles).mean()

    def _get_trace(self, model: Program, guide: Program, args: Any, kwargs: Any) -> Any:
        return enumerated_traces(model, guide, *args[:-1], **kwargs)


class Reconstruction(_DifferentiableELBO):
    r"""The log-likelihood of an autoencoder: the story of x without its prior and its noise.

    .. math:: L = \log p(x \mid z = E_q[z \mid x])

    Other observed sites, such as targets, count only in a model without a site ``x``.
    """

    def differentiable_loss(
        self, model: Program, guide: Program, *args: Any, **kwargs: Any
    ) -> torch.Tensor:
        """The negative log-likelihood, summed over rows."""
        with AtTheMean():
            guide_trace = poutine.trace(guide).get_trace(*args, **kwargs)
        model_trace = poutine.trace(poutine.replay(model, trace=guide_trace)).get_trace(
            *args, **kwargs
        )
        names = model_trace.observation_nodes
        names = ["x"] if "x" in names else names
        model_trace.compute_log_prob(lambda name, site: name in names)
        return -sum(
            (model_trace.nodes[name]["log_prob"].sum() for name in names), torch.tensor(0.0)
        )

    def _get_trace(self, model: Program, guide: Program, args: Any, kwargs: Any) -> Any:
        return enumerated_traces(model, guide, *args, **kwargs)
