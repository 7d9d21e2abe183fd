"""Objectives: what is maximized, by what is done with the assignment ``c``.

All are Pyro ELBO objects: they go into `pyro.infer.SVI` as well as into `pyro_moe.fit`.
"""

from abc import abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from pyro import poutine
from pyro.infer import ELBO, Trace_ELBO, TraceEnum_ELBO, TraceMeanField_ELBO

from pyro_moe.distributions import MAX_LOG_ODDS, PRIOR_TEMPERATURE, TEMPERATURE

from .handlers import AtTheMean, CategoricalKL, Discretize, EnumerateInParallel, Relax
from .programs import Program, modules
from .protocols import temperatures
from .traces import (
    enumerated_traces,
    global_log_weight,
    log_assignment,
    row_bounds,
    row_log_weights,
)

Treatment = Callable[[Program, Program, float, bool], tuple[Program, Program]]
PRIOR_SHARE = PRIOR_TEMPERATURE / TEMPERATURE


LOSSES = ("marginal", "categorical-kl", "relaxed")


def objective(loss: str | ELBO) -> tuple[ELBO, Treatment]:
    """An objective by name, and what has to be done with ``c`` while it is evaluated.

    Args:
        loss: ``"marginal"`` (`MarginalELBO`), ``"categorical-kl"`` (the paper's L̃, §7),
            ``"relaxed"`` (the ELBO of the relaxed densities; Maddison, Mnih, Teh 2017), or any
            Pyro ELBO object.

    Returns:
        The ELBO, and its treatment of ``c``: a function from a model, a guide, the temperature
        τ of q(c), and whether sites that are relaxed already keep their own, to the model and
        the guide that the ELBO is evaluated on.

    Raises:
        ValueError: If the name is none of these.

    Note:
        The relaxed ELBO bounds log p(x) of the relaxed story. It does not tend to the marginal
        ELBO: KL(q(ζ) ‖ p(ζ)) is the divergence of two sets of Gumbel differences whatever τ,
        and grows with the log-odds of q(c|x), by about τ_p / τ for each, where that of the
        categoricals ends at log K. With one temperature for both it merges clusters. Hence a
        colder prior, τ_p = 0.3 τ, and bounded log-odds in q, see `RelaxedOneHotCategorical`.

        L̃ is the expectation of log p(x|z) − KL(q(z|x) ‖ p(z|ζ)) − KL(q(c|x) ‖ p(c)) with a
        relaxed ζ. It is no lower bound on log p(x): its last term belongs to the discrete
        story and its middle one to the relaxed. As τ → 0 it tends to the marginal ELBO. For
        VaDE, whose c depends on z in the guide, it reads q(c|x) = p(c|ẑ) at an auxiliary ẑ,
        as the paper's §3 does, and is looser than the marginal ELBO even at τ = 0.
    """
    if isinstance(loss, TraceEnum_ELBO):
        return loss, _enumerated
    if isinstance(loss, _DifferentiableELBO):
        return loss, _as_they_are
    if isinstance(loss, ELBO):
        return loss, _relaxed
    if loss == "marginal":
        return MarginalELBO(), _as_they_are
    if loss == "categorical-kl":
        return TraceMeanField_ELBO(), _with_categorical_kl
    if loss == "relaxed":
        return Trace_ELBO(), _relaxed
    names = (*LOSSES, "em")
    raise ValueError(f"expected loss in {names} or a Pyro ELBO object; got {loss!r}")


def _as_they_are(model: Program, guide: Program, *_: Any) -> tuple[Program, Program]:
    return model, guide


def _enumerated(model: Program, guide: Program, *_: Any) -> tuple[Program, Program]:
    return EnumerateInParallel()(model), EnumerateInParallel()(guide)


def _relaxed(
    model: Program, guide: Program, temperature: float, as_written: bool = False
) -> tuple[Program, Program]:
    if not as_written:
        set_temperature(temperature, model, guide)
    prior = Relax(PRIOR_SHARE * temperature, as_written=as_written)
    posterior = Relax(temperature, max_log_odds=MAX_LOG_ODDS, as_written=as_written)
    return prior(model), posterior(guide)


def _with_categorical_kl(
    model: Program, guide: Program, temperature: float, as_written: bool = False
) -> tuple[Program, Program]:
    if not as_written:
        set_temperature(temperature, model, guide)
    relax = Relax(temperature, CategoricalKL, as_written=as_written)
    return relax(model), relax(guide)


def set_temperature(temperature: float, *programs: Program) -> None:
    """Set the temperatures of q(c) and p(c) that stories hold as buffers, if they do."""
    values = {"temperature": temperature, "prior_temperature": PRIOR_SHARE * temperature}
    for outermost in modules(*programs):
        for part in outermost.modules():
            for name, buffer in temperatures(part).items():
                buffer.fill_(values[name])


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
        with Discretize():
            with AtTheMean():
                guide_trace = poutine.trace(guide).get_trace(*args, **kwargs)
            replayed = poutine.replay(model, trace=guide_trace)
            model_trace = poutine.trace(replayed).get_trace(*args, **kwargs)
        names = model_trace.observation_nodes
        names = ["x"] if "x" in names else names
        model_trace.compute_log_prob(lambda name, site: name in names)
        return -sum(
            (model_trace.nodes[name]["log_prob"].sum() for name in names), torch.tensor(0.0)
        )

    def _get_trace(self, model: Program, guide: Program, args: Any, kwargs: Any) -> Any:
        return enumerated_traces(model, guide, *args, **kwargs)
