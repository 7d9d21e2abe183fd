"""Experts of counts."""

import pyro.distributions as dist
import torch
from torch import nn

from pyro_moe.distributions import (
    Poisson,
    rounded,
)

from .base import GeneralizedLinear, by_column


class PoissonExperts(GeneralizedLinear):
    r"""Poisson experts of M counts.

    .. math:: p_k(y \mid x) = \prod_m \mathrm{Poisson}(y_m \mid \exp(a_m + f_k(x)_m))

    with a the logarithm of the mean count. The exponent is limited to the range from -20 to
    a + 20, so that the rate does not overflow far from the training data. The density is that of
    a rate in double precision: for large counts it depends on more digits than float32 has.

    Args:
        network: Maps a context to ``(..., K, M)``.
        y_dim: M.

    Example:
        >>> from pyro_moe.models import AffineMaps
        >>> PoissonExperts(AffineMaps(2, 5, 1), y_dim=1)(torch.zeros(7, 2)).batch_shape
        torch.Size([7, 5])
    """

    offset: torch.Tensor

    def __init__(self, network: nn.Module, y_dim: int) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("offset", torch.zeros(y_dim))

    def linear_predictor(self, width: int) -> torch.Tensor:
        """The slopes and intercepts of the log-rate, see `Experts`."""
        coefficients = super().linear_predictor(width)
        shift = torch.zeros_like(coefficients)
        shift[..., -1] = self.offset.double()
        return coefficients + shift

    def adapt(self, x: torch.Tensor, y: torch.Tensor) -> None:
        """Set a from the counts y, shape (N, M), and from their exposures."""
        exposure = self.offsets(x).exp().mean()
        mean = (y.mean(0) / exposure).clamp_min(1e-3)
        self.offset.copy_(mean.log() if self.has_intercept else torch.zeros_like(mean))

    def forward(self, context: torch.Tensor) -> dist.Distribution:
        """The K distributions of y given a context, event shape ``(M,)``."""
        offset = self.offset.double()
        log_rate = (offset + self.network(context)).clamp_min(-20.0)
        log_rate = torch.minimum(log_rate, offset + 20.0) + self.offsets(context)[..., None, None]
        rate = log_rate.exp()
        return rounded(Poisson(rate), self.offset.dtype).to_event(1)

    def newton_step(
        self,
        inputs: torch.Tensor,
        y: torch.Tensor,
        weights: torch.Tensor,
        start: torch.Tensor,
        context: torch.Tensor,
    ) -> torch.Tensor:
        """Increase the penalized likelihood of the experts, see `GeneralizedLinear`."""
        mean = self.offset.double().exp()  # the unit of counts, and so of likelihoods
        scaled = y.reshape(len(y), -1).double() / mean
        offset = self.offsets(context)[..., None]

        def derivatives(value: torch.Tensor, logit: torch.Tensor) -> tuple[torch.Tensor, ...]:
            rate = logit.clamp(max=20.0).add(offset).exp()
            return value * logit - rate, value - rate, -rate

        return by_column(self, derivatives, inputs, scaled, weights, start, unit=mean)
