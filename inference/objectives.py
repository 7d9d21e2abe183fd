"""Objectives of inference.

They differ in the treatment of the assignment ``c``, and treat further layers of assignments in the
same way, see `handlers.is_assignment`. All are Pyro ELBO objects, which both `pyro.infer.SVI` and
`pyro_moe.fit` accept.
"""

from abc import abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from pyro import poutine
from pyro.distributions.util import scale_and_mask
from pyro.infer import ELBO, Trace_ELBO, TraceEnum_ELBO, TraceMeanField_ELBO
from pyro.poutine import Trace
from pyro.poutine.util import prune_subsample_sites
from torch.distributions import kl_divergence

from pyro_moe.distributions import MAX_LOG_ODDS, PRIOR_TEMPERATURE, TEMPERATURE

from .handlers import AtTheMean, CategoricalKL, Discretize, EnumerateInParallel, Relax
from .prior import FLAT, Prior, log_prior_terms, log_ridge
from .programs import Program, modules
from .protocols import temperatures
from .traces import (
    component_bounds,
    enumerated_traces,
    global_log_weight,
    group_log_weights,
    groups_of,
    is_labeled,
    labels_of,
    log_assignment,
    row_bounds,
)

Temperature = float | torch.Tensor
Treatment = Callable[[Program, Program, Temperature, bool], tuple[Program, Program]]
PRIOR_SHARE = PRIOR_TEMPERATURE / TEMPERATURE


LOSSES = ("marginal", "categorical-kl", "relaxed")


def objective(
    loss: str | ELBO,
    *,
    prior: Prior = FLAT,
    num_rows: int = 1,
    mean_weight: float = 1.0,
    teaches: bool = False,
) -> tuple[ELBO, Treatment]:
    """An objective by name, with its treatment of ``c``.

    Args:
        loss: ``"marginal"`` (`MarginalELBO`), ``"categorical-kl"`` (the paper's L̃, §7),
            ``"relaxed"`` (the ELBO of the relaxed densities; Maddison, Mnih, Teh 2017), or any
            Pyro ELBO object.
        prior: The prior of the parameters, see `inference.prior`; for ``"marginal"`` only.
        num_rows: N, the number of training rows.
        mean_weight: The mean of their weights.
        teaches: See `MarginalELBO`.

    Returns:
        The ELBO and a function that prepares model and guide for it. The function takes the
        model, the guide, the temperature τ of q(c), and whether sites that are already relaxed
        keep their own temperature. It returns the model and guide that the ELBO is evaluated on.

    Raises:
        ValueError: If the name is none of these.

    Note:
        The relaxed ELBO is a lower bound on log p(x) of the relaxed model. It does not converge
        to the marginal ELBO as τ → 0. For a uniform prior, KL(q(ζ) ‖ p(ζ)) grows without bound
        in the log-odds of q(c|x), see `RelaxedOneHotCategorical`, whereas KL(q(c|x) ‖ p(c)) is
        at most log K. With the same temperature for q and p this merges clusters. The prior
        therefore has a lower temperature, τ_p = 0.3 τ, and the log-odds of q are bounded.

        L̃ is the expectation of log p(x|z) − KL(q(z|x) ‖ p(z|ζ)) − KL(q(c|x) ‖ p(c)) with a
        relaxed ζ. It is not a lower bound on log p(x), because its last term belongs to the
        discrete model and its middle term to the relaxed model. As τ → 0 it converges to the
        marginal ELBO. In the guide of VaDE, c depends on z. There L̃ has q(c|x) = p(c|ẑ) at an
        auxiliary sample ẑ, as in the paper's §3, and is looser than the marginal ELBO even at
        τ = 0. So it is with several layers of assignments, unless the guide draws them in the order
        of the model.
    """
    if isinstance(loss, TraceEnum_ELBO):
        return loss, _enumerated
    if isinstance(loss, _DifferentiableELBO):
        return loss, _as_they_are
    if isinstance(loss, ELBO):
        return loss, _relaxed
    if loss == "marginal":
        options: Any = {"num_rows": num_rows, "mean_weight": mean_weight, "teaches": teaches}
        return MarginalELBO(prior=prior, **options), _as_they_are
    if loss == "categorical-kl":
        return MeanFieldELBO(), _with_categorical_kl
    if loss == "relaxed":
        return RelaxedELBO(), _relaxed
    names = (*LOSSES, "em")
    raise ValueError(f"expected loss in {names} or a Pyro ELBO object; got {loss!r}")


def _as_they_are(model: Program, guide: Program, *_: Any) -> tuple[Program, Program]:
    return model, guide


def _enumerated(model: Program, guide: Program, *_: Any) -> tuple[Program, Program]:
    return EnumerateInParallel()(model), EnumerateInParallel()(guide)


def _relaxed(
    model: Program, guide: Program, temperature: Temperature, as_written: bool = False
) -> tuple[Program, Program]:
    if not as_written:
        set_temperature(temperature, model, guide)
    prior = Relax(PRIOR_SHARE * temperature, as_written=as_written, keeps_bound=True)
    posterior = Relax(temperature, max_log_odds=MAX_LOG_ODDS, as_written=as_written)
    return prior(model), posterior(guide)


def _with_categorical_kl(
    model: Program, guide: Program, temperature: Temperature, as_written: bool = False
) -> tuple[Program, Program]:
    if not as_written:
        set_temperature(temperature, model, guide)
    relax = Relax(temperature, CategoricalKL, as_written=as_written)
    return relax(model), relax(guide)


def has_temperatures(*programs: Program) -> bool:
    """Whether a story has temperatures as buffers, which training anneals."""
    return any(temperatures(part) for whole in modules(*programs) for part in whole.modules())


def set_temperature(temperature: Temperature, *programs: Program) -> None:
    """Set the temperatures of q(c) and p(c) in stories that hold them as buffers."""
    values = {"temperature": temperature, "prior_temperature": PRIOR_SHARE * temperature}
    for outermost in modules(*programs):
        for part in outermost.modules():
            for name, buffer in temperatures(part).items():
                buffer.fill_(values[name])


class _DifferentiableELBO(ELBO):
    """A Pyro ELBO whose gradient is that of `differentiable_loss`, with a prior of parameters."""

    def __init__(
        self,
        num_particles: int = 1,
        *,
        prior: Prior = FLAT,
        num_rows: int = 1,
        mean_weight: float = 1.0,
        **options: Any,
    ) -> None:
        super().__init__(num_particles, **options)
        self.prior, self.num_rows, self.mean_weight = prior, num_rows, mean_weight

    @abstractmethod
    def differentiable_loss(
        self, model: Program, guide: Program, *args: Any, **kwargs: Any
    ) -> torch.Tensor:
        """The negative objective, summed over rows, as a scalar tensor."""

    def loss(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> float:
        """The negative objective, summed over rows."""
        with torch.no_grad():
            return self.differentiable_loss(model, guide, *args, **kwargs).item()

    def loss_and_grads(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> float:
        """The negative objective. Its gradients are accumulated in the parameters' ``grad``."""
        loss = self.differentiable_loss(model, guide, *args, **kwargs)
        loss.backward()
        return loss.item()

    def _log_prior(self, model: Program, guide: Program, trace: Trace, size: int) -> Any:
        """The terms of log p(θ) that belong to a minibatch of this size."""
        prior = log_prior_terms(self.prior, self.num_rows * self.mean_weight, trace)
        if self.prior.ridge or self.prior.networks:
            prior = prior + size / self.num_rows * log_ridge(model, guide)
        return prior


class MarginalELBO(_DifferentiableELBO):
    r"""The ELBO with the assignment ``c`` summed out exactly.

    .. math:: L = E_{q(z)} \sum_k q(c = k) \log \frac{p(x, z, c = k)}{q(z)\, q(c = k)}

    It is a lower bound on log p(x), without relaxation and without score-function gradients. If
    the guide has no site ``c``, the optimal q(c) = p(c|x, z) is used. The sum over k is then
    log Σ_k p(x, z, c=k) − log q(z). In rows whose component is known, q(c) is as given, and rows of
    groups have one component, see `Annotations` and `traces.row_bounds`. `TraceEnum_ELBO` computes
    the same value for any discrete sites, but more slowly.

    A story may have several layers of assignments. Then the sum is over all of their values,
    K1 K2 … terms in each row. Each layer that the guide lacks has the optimal q.

    Args:
        num_particles: Samples of the other latent variables to average over.
        prior: The prior of the parameters, whose terms of each row are added; see
            `inference.prior`.
        num_rows: N, the number of training rows.
        mean_weight: The mean of their weights.
        teaches: Whether rows whose component is known teach q(c|x), as those of a
            semi-supervised VAE do (Kingma et al. 2014), and rows of groups by the posterior of
            the group. Then the gradient, and not the value, is
            that of the bound plus Σ_k r_k log q(c = k). A posterior by Bayes' rule needs no such
            term.
        **options: Further options of Pyro's ELBO.

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

    def __init__(self, num_particles: int = 1, *, teaches: bool = False, **options: Any) -> None:
        super().__init__(num_particles, **options)
        self.teaches = teaches

    def differentiable_loss(
        self, model: Program, guide: Program, *args: Any, **kwargs: Any
    ) -> torch.Tensor:
        """The negative bound, summed over rows.

        Raises:
            ValueError: If a latent site of the guide besides ``c`` is not reparameterized.
        """
        particles = []
        for model_trace, guide_trace in self._get_traces(model, guide, args, kwargs):
            rows, log_q = row_bounds(model_trace, guide_trace), log_assignment(guide_trace)
            known = _known_assignments(model_trace, guide_trace) if self.teaches else None
            if log_q is not None and known is not None:
                taught = known * log_q.masked_fill(log_q.isneginf(), 0.0)
                rows = rows + (taught - taught.detach()).sum(0)
            prior = self._log_prior(model, guide, model_trace, len(rows))
            particles.append(rows.sum() + global_log_weight(model_trace, guide_trace) + prior)
        return -torch.stack(particles).mean()

    def _get_trace(self, model: Program, guide: Program, args: Any, kwargs: Any) -> Any:
        return enumerated_traces(model, guide, *args, **kwargs)


def _known_assignments(model_trace: Any, guide_trace: Any) -> torch.Tensor | None:
    """What is known of c: the given probabilities, or the posteriors of groups, (K, N), or None."""
    labels, groups = labels_of(model_trace), groups_of(model_trace)
    given = None if labels is None else labels.nan_to_num(0.0).T
    if groups is None:
        return given
    posterior = group_log_weights(model_trace, guide_trace, groups)[0].softmax(0).detach()
    if labels is None or given is None:
        return posterior
    return torch.where(is_labeled(labels), given, posterior)


class RelaxedELBO(Trace_ELBO):
    r"""Pyro's `Trace_ELBO` of reparameterized sites, as one tensor.

    .. math:: L = E_q[\log p(x, z, \zeta) - \log q(z, \zeta)]

    `Trace_ELBO` reads numbers from its tensors, so that its steps cannot be replayed.
    """

    def differentiable_loss(
        self, model: Program, guide: Program, *args: Any, **kwargs: Any
    ) -> torch.Tensor:
        """The negative bound. It is that of `Trace_ELBO` if a site is not reparameterized."""
        particles = []
        for model_trace, guide_trace in self._get_traces(model, guide, args, kwargs):
            guide_trace = prune_subsample_sites(guide_trace)
            drawn = [guide_trace.nodes[name] for name in guide_trace.stochastic_nodes]
            if not all(site["fn"].has_rsample for site in drawn):
                return super().differentiable_loss(model, guide, *args, **kwargs)
            total = model_trace.log_prob_sum()
            particles.append(total - sum(site["score_parts"].entropy_term.sum() for site in drawn))
        return -torch.stack(particles).mean()


class MeanFieldELBO(TraceMeanField_ELBO):
    r"""Pyro's `TraceMeanField_ELBO` of reparameterized sites, as one tensor.

    .. math:: L = E_q[\log p(x \mid z, \zeta)]
              - \sum_i \mathrm{KL}\big(q(z_i) \,\|\, p(z_i)\big)

    Where the divergence has no closed form, it is that of the draw. `TraceMeanField_ELBO` reads
    numbers from its tensors, so that its steps cannot be replayed.
    """

    def differentiable_loss(
        self, model: Program, guide: Program, *args: Any, **kwargs: Any
    ) -> torch.Tensor:
        """The negative bound."""
        particles = []
        for model_trace, guide_trace in self._get_traces(model, guide, args, kwargs):
            sites = [site for site in model_trace.nodes.values() if site["type"] == "sample"]
            terms = [_mean_field_term(site, guide_trace.nodes) for site in sites]
            for name, site in guide_trace.nodes.items():
                if site["type"] == "sample" and name not in model_trace.nodes:
                    terms.append(-site["score_parts"].entropy_term.sum())
            particles.append(torch.stack(terms).sum())
        return -torch.stack(particles).mean()


def _mean_field_term(site: dict[str, Any], guide: dict[str, Any]) -> torch.Tensor:
    """The log-likelihood of an observed site, or minus the divergence of a latent one."""
    if site["is_observed"]:
        return site["log_prob_sum"]
    other = guide[site["name"]]
    try:
        divergence = kl_divergence(other["fn"], site["fn"])
    except NotImplementedError:
        return site["log_prob_sum"] - other["score_parts"].entropy_term.sum()
    divergence = torch.as_tensor(divergence).expand(other["fn"].batch_shape)
    return -scale_and_mask(divergence, other["scale"], other["mask"]).sum()


class AssignedELBO(_DifferentiableELBO):
    r"""The ELBO with q(c) fixed at given responsibilities r, and the fit of q(c|x) to r.

    .. math:: L = E_{q(z)} \sum_k r_k \log \frac{p(x, z, c = k)}{q(z)\, r_k}
                  - \mathrm{KL}(r \,\|\, q(c \mid x))

    Training on it initializes all parts of a story from a clustering: components and experts,
    the encoder, and q(c|x). The entropy of r is constant and left out. The KL term is left out
    if the guide has no site ``c``. The responsibilities, shape (N, K), are the labels of the
    model's site ``c``, see `Annotations`.

    Args:
        num_particles: Samples of the other latent variables to average over.
        prior: The prior of the parameters, whose terms of each row are added. Without it, experts
            of few rows begin with scales from which no gradient leads back.
        num_rows: N, the number of training rows.
        mean_weight: The mean of their weights.
        **options: Further options of Pyro's ELBO.
    """

    def differentiable_loss(
        self, model: Program, guide: Program, *args: Any, **kwargs: Any
    ) -> torch.Tensor:
        """The negative objective, summed over rows."""
        particles = []
        for model_trace, guide_trace in self._get_traces(model, guide, args, kwargs):
            responsibilities: Any = labels_of(model_trace)
            log_weights = component_bounds(model_trace, guide_trace)
            log_q = log_assignment(guide_trace)
            taught = log_weights if log_q is None else log_weights + log_q
            taught = taught.masked_fill(responsibilities.T == 0, 0.0)  # where q(c) may be 0
            rows = (responsibilities.T * taught).sum(0)
            prior = self._log_prior(model, guide, model_trace, len(rows))
            particles.append(rows.sum() + global_log_weight(model_trace, guide_trace) + prior)
        return -torch.stack(particles).mean()

    def _get_trace(self, model: Program, guide: Program, args: Any, kwargs: Any) -> Any:
        return enumerated_traces(model, guide, *args, **kwargs)


class Reconstruction(_DifferentiableELBO):
    r"""The reconstruction log-likelihood of an autoencoder, without latent noise and prior.

    .. math:: L = \log p(x \mid z = E_q[z \mid x])

    Other observed sites, such as targets, are ignored unless the model has no observed site
    ``x``.
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
