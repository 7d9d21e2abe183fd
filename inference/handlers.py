"""Treatments of the assignment site ``c``: relaxed, discrete, or enumerated.

A story writes ``c`` as a `OneHotCategorical` (or as a `RelaxedOneHotCategorical` of any
temperature); which of the three it is during inference is decided here, by effect handlers,
so that one model function serves them all.
"""

from typing import Any

import pyro.distributions as dist
import torch
from pyro.poutine.messenger import Messenger
from torch.distributions import kl_divergence, register_kl


class RelaxedOneHot(dist.RelaxedOneHotCategorical):
    r"""A relaxed one-hot variable that stays finite however cold and however large K.

    .. math:: \zeta = \mathrm{softmax}[(\log \alpha + G) / \tau], \quad G_k \sim \mathrm{Gumbel}

    A cold sample has entries that underflow to zero, where the density of
    `RelaxedOneHotCategorical` is not finite. Samples of this one remember their logarithm, in
    which the density is computed (Maddison, Mnih, Teh 2017, appendix C.3).
    """

    def rsample(self, sample_shape: Any = torch.Size()) -> torch.Tensor:  # noqa: B008
        """A sample on the simplex, with its logarithm as the attribute ``log_value``."""
        log_value = self.base_dist.rsample(sample_shape)
        value = log_value.exp()
        value.log_value = log_value
        return value

    def log_prob(self, value: torch.Tensor) -> torch.Tensor:
        """The log-density of a value on the simplex."""
        log_value = getattr(value, "log_value", None)
        if log_value is None:
            log_value = value.clamp_min(torch.finfo(value.dtype).tiny).log()
        return self.base_dist.log_prob(log_value) - log_value.sum(-1)

    def expand(self, batch_shape: Any, _instance: Any = None) -> Any:
        """The same distribution for a larger batch."""
        return super().expand(batch_shape, self._get_checked_instance(type(self), _instance))


class CategoricalKL(RelaxedOneHot):
    r"""A relaxed one-hot variable whose KL divergence is that of the categoricals behind it.

    .. math:: \mathrm{KL}(q \,\|\, p) := \sum_k q_k (\log q_k - \log p_k)

    It samples and scores exactly as `RelaxedOneHot`; only
    `torch.distributions.kl_divergence` differs (Jang et al. 2017; paper §7).
    """


@register_kl(CategoricalKL, CategoricalKL)
def _kl_of_the_categoricals(q: CategoricalKL, p: CategoricalKL) -> torch.Tensor:
    return kl_divergence(
        torch.distributions.Categorical(logits=q.logits),
        torch.distributions.Categorical(logits=p.logits),
    )


class Relax(Messenger):
    """Make ``c`` a relaxed one-hot variable of the given temperature.

    Args:
        temperature: τ > 0, a number or a tensor of no dimensions.
        family: `RelaxedOneHot` or `CategoricalKL`.
    """

    def __init__(self, temperature: torch.Tensor | float, family: type = RelaxedOneHot) -> None:
        super().__init__()
        self.temperature, self.family = temperature, family

    def _pyro_sample(self, msg: dict[str, Any]) -> None:
        if is_assignment(msg):
            logits = log_probabilities(msg["fn"])
            msg["fn"] = self.family(torch.as_tensor(self.temperature).to(logits), logits=logits)


class Discretize(Messenger):
    """Make ``c`` a discrete one-hot variable, the limit of the relaxed one as τ → 0."""

    def _pyro_sample(self, msg: dict[str, Any]) -> None:
        if is_assignment(msg):
            msg["fn"] = dist.OneHotCategorical(logits=log_probabilities(msg["fn"]))


class Enumerate(Discretize):
    """Make ``c`` discrete and let it take all K values at once, along a new leftmost dimension.

    Inside the plate ``"data"`` of N rows its value is the identity, shape (K, 1, K), so that
    whatever depends on ``c`` has batch shape (K, N).
    """

    def _pyro_sample(self, msg: dict[str, Any]) -> None:
        super()._pyro_sample(msg)
        if is_assignment(msg):
            msg["value"] = one_hot_values(msg["fn"])
            msg["done"] = True


class EnumerateInParallel(Discretize):
    """Make ``c`` discrete and mark it for `pyro.infer.TraceEnum_ELBO`."""

    def _pyro_sample(self, msg: dict[str, Any]) -> None:
        super()._pyro_sample(msg)
        if is_assignment(msg):
            msg["infer"].setdefault("enumerate", "parallel")


class AtTheMean(Messenger):
    """Give reparameterized latent sites the mean of their distribution instead of a sample."""

    def _pyro_sample(self, msg: Any) -> None:
        if not msg["is_observed"] and has_rsample(msg["fn"]):
            msg["value"], msg["done"] = msg["fn"].mean, True


def is_assignment(msg: Any) -> bool:
    """Whether a message or trace node is the unobserved site ``c``."""
    return msg["type"] == "sample" and msg["name"] == "c" and not msg["is_observed"]


def log_probabilities(distribution: Any) -> torch.Tensor:
    """The normalized log-probabilities (..., K) of a discrete or relaxed one-hot distribution.

    Raises:
        TypeError: If the distribution has no logits.
    """
    while hasattr(distribution, "base_dist") and not hasattr(distribution, "logits"):
        distribution = distribution.base_dist
    if not hasattr(distribution, "logits"):
        raise TypeError(
            "expected a OneHotCategorical or RelaxedOneHotCategorical at site 'c'; "
            f"got {type(distribution).__name__}"
        )
    return distribution.logits.log_softmax(-1)


def one_hot_values(distribution: Any) -> torch.Tensor:
    """The K values of ``c``, shape (K, 1, K): one for each k, the same for every row."""
    logits = log_probabilities(distribution)
    return torch.eye(logits.shape[-1], dtype=logits.dtype, device=logits.device).unsqueeze(-2)


def has_rsample(distribution: Any) -> bool:
    """Whether samples of a distribution are differentiable functions of its parameters."""
    return bool(getattr(distribution, "has_rsample", False))
