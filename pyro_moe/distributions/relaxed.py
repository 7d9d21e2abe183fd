"""The relaxed one-hot variable: how stories write the assignment ``c``."""

from typing import Any

import pyro.distributions as dist
import torch

TEMPERATURE = 0.66
PRIOR_TEMPERATURE = 0.2
MAX_LOG_ODDS = 6.0


class RelaxedOneHotCategorical(dist.RelaxedOneHotCategorical):
    r"""A relaxed one-hot variable that stays finite however cold and however large K.

    .. math:: \zeta = \mathrm{softmax}[(\log \alpha + G) / \tau], \quad G_k \sim \mathrm{Gumbel}

    A cold sample has entries that underflow to zero, where the density of Pyro's class of this
    name is not finite. Samples of this one remember their logarithm, in which the density is
    computed (Maddison, Mnih, Teh 2017, appendix C.3). Otherwise the two are the same.

    With ``max_log_odds`` b the relaxed variable, and it alone, takes

    .. math:: \log \alpha_k = -b\, (1 - e^{-d_k / b}), \quad
              d_k = \max_j \mathrm{logit}_j - \mathrm{logit}_k

    for its logits, which are never further apart than b. A guide wants that: under a prior of
    temperature :math:`\tau_p` the relaxed ELBO charges about
    :math:`\tau_p / \tau\, \sum_k d_k` for log-odds d, without end as they grow, whereas the
    divergence of the categoricals ends at log K. ``logits`` and ``probs`` remain those given.

    Args:
        temperature: τ > 0, a tensor of no dimensions.
        probs: Probabilities, shape (..., K); or
        logits: Their logarithms, up to a constant.
        max_log_odds: b, or None for the logits as they are.
        validate_args: Whether to check the arguments.

    Example:
        >>> c = RelaxedOneHotCategorical(torch.tensor(0.5), logits=torch.zeros(7, 3))
        >>> c.rsample().shape, c.probs.shape
        (torch.Size([7, 3]), torch.Size([7, 3]))
    """

    def __init__(
        self,
        temperature: torch.Tensor,
        probs: torch.Tensor | None = None,
        logits: torch.Tensor | None = None,
        *,
        max_log_odds: float | None = None,
        validate_args: bool | None = None,
    ) -> None:
        discrete = torch.distributions.Categorical(probs, logits, validate_args=validate_args)
        self.max_log_odds = max_log_odds
        self._logits = discrete.logits
        relaxed = self._logits if max_log_odds is None else _bounded(self._logits, max_log_odds)
        super().__init__(temperature, logits=relaxed, validate_args=validate_args)

    @property
    def logits(self) -> torch.Tensor:
        """The log-probabilities of the K values, shape (..., K)."""
        return self._logits

    @property
    def probs(self) -> torch.Tensor:
        """The probabilities of the K values, shape (..., K)."""
        return self._logits.exp()

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
        logits = self._logits.expand(*batch_shape, self._logits.shape[-1])
        return type(self)(
            self.temperature, logits=logits, max_log_odds=self.max_log_odds, validate_args=False
        )


def _bounded(logits: torch.Tensor, bound: float) -> torch.Tensor:
    behind = logits - logits.amax(-1, keepdim=True)
    return bound * torch.expm1(behind / bound)
