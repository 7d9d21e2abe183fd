"""Experts of binary targets, and of numbers of successes."""

import pyro.distributions as dist
import torch
from torch import nn

from pyro_moe.distributions import (
    Binomial,
)

from .base import GeneralizedLinear, by_column


class BernoulliExperts(GeneralizedLinear):
    r"""Experts of M binary targets.

    .. math:: p_k(y \mid x) = \prod_m \mathrm{Ber}(y_m \mid \mathrm{logit} = f_k(x)_m)

    Args:
        network: Maps a context to logits ``(..., K, M)``.

    Example:
        >>> from pyro_moe.models import AffineMaps
        >>> BernoulliExperts(AffineMaps(2, 5, 1))(torch.zeros(7, 2)).batch_shape
        torch.Size([7, 5])
    """

    ridge = 0.04
    prior_scale = 2.5  # of log-odds, in the posterior of a fit

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, context: torch.Tensor) -> dist.Distribution:
        """The K distributions of y given a context, event shape ``(M,)``."""
        return dist.Bernoulli(logits=self.logits(context)).to_event(1)

    def logits(self, context: torch.Tensor) -> torch.Tensor:
        """The logits (N, K, M), with the offset."""
        logits = self.network(context)
        if self.offset_column is None:
            return logits
        return logits + self.offsets(context)[..., None, None].to(logits)

    def trials(self, context: torch.Tensor) -> torch.Tensor:
        """The number of trials of each row, shape (N,) or ()."""
        return context.new_ones(())

    def newton_step(
        self,
        inputs: torch.Tensor,
        y: torch.Tensor,
        weights: torch.Tensor,
        start: torch.Tensor,
        context: torch.Tensor,
    ) -> torch.Tensor:
        """Increase the penalized likelihood of the experts, see `GeneralizedLinear`."""
        offset, trials = self.offsets(context)[..., None], self.trials(context)[..., None]

        def derivatives(value: torch.Tensor, logit: torch.Tensor) -> tuple[torch.Tensor, ...]:
            logit = logit + offset
            p = logit.sigmoid()
            log_p = value * logit - trials * nn.functional.softplus(logit)
            return log_p, value - trials * p, -trials * p * (1.0 - p)

        return by_column(self, derivatives, inputs, y, weights, start)


class BinomialExperts(BernoulliExperts):
    r"""Experts of M counts of successes in a known number of trials.

    .. math:: p_k(y \mid x) = \prod_m \mathrm{Bin}(y_m \mid n, \mathrm{logit} = f_k(x)_m)

    Args:
        network: Maps a context to logits ``(..., K, M)``.
        trials_column: The number of the context's column with n.

    Example:
        >>> from pyro_moe.models import AffineMaps
        >>> BinomialExperts(AffineMaps(1, 5, 1, columns=[0]), 1)(torch.ones(7, 2)).batch_shape
        torch.Size([7, 5])
    """

    def __init__(self, network: nn.Module, trials_column: int) -> None:
        super().__init__(network)
        self.trials_column = trials_column

    def forward(self, context: torch.Tensor) -> dist.Distribution:
        """The K distributions of y given a context, event shape ``(M,)``."""
        logits = self.logits(context)
        trials = self.trials(context)[..., None, None].to(logits).expand(logits.shape)
        return Binomial(total_count=trials, logits=logits).to_event(1)

    def trials(self, context: torch.Tensor) -> torch.Tensor:
        """The number of trials of each row, shape (N,)."""
        return context[..., self.trials_column].double()
