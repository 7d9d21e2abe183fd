"""The relaxed one-hot distribution, as which stories write the assignment ``c``."""

import math
from functools import cached_property
from typing import Any

import pyro.distributions as dist
import torch
from torch.distributions import ExpTransform
from torch.distributions.relaxed_categorical import ExpRelaxedCategorical

TEMPERATURE = 0.66
PRIOR_TEMPERATURE = 0.2
MAX_LOG_ODDS = 6.0


class RelaxedOneHotCategorical(dist.RelaxedOneHotCategorical):
    r"""A relaxed one-hot categorical distribution, also known as the concrete distribution.

    .. math:: \zeta = \mathrm{softmax}[(\log \alpha + G) / \tau], \quad
              G_k \sim \mathrm{Gumbel}(0, 1), \quad \log \alpha_k = \mathrm{logit}_k

    Its log-density is finite at every temperature τ and number of classes K. At low τ, entries of
    a sample underflow to zero, where the log-density of Pyro's class of the same name is not
    finite. Here a sample also stores its logarithm, from which the log-density is computed
    (Maddison, Mnih, Teh 2017, appendix C.3). The distribution is otherwise the same.

    ``max_log_odds`` b bounds the differences of the log α of the relaxed variable by b:

    .. math:: \log \alpha_k = -b\, (1 - e^{-d_k / b}), \quad
              d_k = \max_j \mathrm{logit}_j - \mathrm{logit}_k

    ``logits`` and ``probs`` remain the given ones. The bound is for guides. Under a uniform prior
    of temperature :math:`\tau_p`, the KL divergence of the relaxed densities grows with the
    log-odds d as

    .. math:: \mathrm{KL} \approx \frac{\tau_p}{\tau} \sum_k (\max_j d_j - d_k)

    without bound, whereas the KL divergence of the categoricals is at most log K.

    Args:
        temperature: τ > 0, a scalar tensor.
        probs: Class probabilities, shape (..., K). Give either these or ``logits``.
        logits: Log-probabilities up to a constant, shape (..., K).
        max_log_odds: b > 0, or None for no bound.
        validate_args: Whether to validate the arguments.

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
        self._temperature, self._logits = temperature, log_probabilities_of(discrete)
        self.transforms = [ExpTransform()]
        shapes = discrete.batch_shape, self._logits.shape[-1:]
        torch.distributions.Distribution.__init__(self, *shapes, validate_args=validate_args)

    @cached_property
    def base_dist(self) -> Any:
        """The distribution of log ζ, which is not made where only the classes are of interest."""
        logits = _bounded(self._logits, self.max_log_odds)
        return ExpRelaxedCategorical(self._temperature, logits=logits, validate_args=False)

    @property
    def temperature(self) -> torch.Tensor:
        """τ."""
        return self._temperature

    @property
    def logits(self) -> torch.Tensor:
        """The normalized log-probabilities of the K classes, shape (..., K)."""
        return self._logits

    @property
    def probs(self) -> torch.Tensor:
        """The probabilities of the K classes, shape (..., K)."""
        return self._logits.exp()

    def rsample(self, sample_shape: Any = torch.Size()) -> torch.Tensor:  # noqa: B008
        """A reparameterized sample on the simplex, with its logarithm in ``log_value``."""
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
        """The distribution expanded to a batch shape."""
        new = type(self).__new__(type(self))
        new.max_log_odds, new.transforms = self.max_log_odds, self.transforms
        new._temperature, new._logits = self._temperature, self._logits.expand(*batch_shape, -1)
        shapes = torch.Size(batch_shape), self.event_shape
        torch.distributions.Distribution.__init__(new, *shapes, validate_args=False)
        return new


def _bounded(logits: torch.Tensor, bound: float | None) -> torch.Tensor:
    if bound is None:  # the logarithm of a sample must be finite
        least = math.log(torch.finfo(logits.dtype).tiny)
        return torch.where(logits.isneginf(), least, logits)
    behind = logits - logits.amax(-1, keepdim=True)
    return bound * torch.expm1(behind / bound)


class _OneHotCategorical(dist.OneHotCategorical):
    """The same distribution. Torch's reads numbers from the indices that it draws."""

    def sample(self, sample_shape: Any = ()) -> torch.Tensor:
        indices = self._categorical.sample(torch.Size(sample_shape))
        probs = self._categorical.probs
        return torch.eye(probs.shape[-1], dtype=probs.dtype, device=probs.device)[indices]


def one_hot_of(log_probabilities: torch.Tensor) -> Any:
    """The one-hot categorical distribution of probabilities that already sum to one.

    Args:
        log_probabilities: Shape (..., K).

    Example:
        >>> one_hot_of(torch.tensor([0.25, 0.75]).log()).probs
        tensor([0.2500, 0.7500])
    """
    *batch, number = log_probabilities.shape
    one_row = _OneHotCategorical(logits=log_probabilities.new_zeros(number))
    p: Any = one_row.expand(torch.Size(batch))
    vars(p._categorical).pop("probs", None)
    p._categorical._param = p._categorical.logits = log_probabilities
    return p


def log_of(probs: torch.Tensor) -> torch.Tensor:
    """The logarithm, with a gradient of zero at a probability of zero."""
    tiny = torch.finfo(probs.dtype).tiny
    return torch.where(probs > 0, probs.clamp_min(tiny).log(), -torch.inf)


def log_probabilities_of(p: torch.distributions.Categorical) -> torch.Tensor:
    """The normalized log-probabilities, without the limit of PyTorch.

    The ``logits`` of a distribution that was given ``probs`` are those of probabilities that are
    clamped to the precision of their type, 1e-7 or 2e-16.
    """
    return log_of(p.probs) if is_of_probs(p) else p.logits


def is_of_probs(p: Any) -> bool:
    """Whether a discrete distribution was given probabilities, and not their logits."""
    return "logits" not in vars(p) or p._param is vars(p).get("probs")
