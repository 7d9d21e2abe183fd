"""Experts of classes."""

import math

import pyro.distributions as dist
import torch
from torch import nn

from ...m_steps.blocks import Derived
from ...m_steps.newton import softmax_newton
from .base import NEWTON_STEPS, GeneralizedLinear


class CategoricalExperts(GeneralizedLinear):
    r"""Categorical experts, the classification model of the paper (§4.2).

    .. math:: p_k(y = l \mid x) = \mathrm{softmax}_l\, f_k(x)

    Args:
        network: Maps a context to logits ``(..., K, M)`` of M classes.

    Example:
        >>> from pyro_moe.models import AffineMaps
        >>> CategoricalExperts(AffineMaps(2, 5, 3))(torch.zeros(7, 2)).probs.shape
        torch.Size([7, 5, 3])
    """

    ridge = 0.04
    prior_scale = 2.5 / math.sqrt(2.0)  # of log-odds, in the posterior of a fit

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, context: torch.Tensor) -> dist.Distribution:
        """The K distributions of the class 0, …, M-1 given a context, event shape ``()``."""
        return dist.Categorical(logits=self.network(context))

    def newton_step(
        self,
        inputs: torch.Tensor,
        y: torch.Tensor,
        weights: torch.Tensor,
        start: torch.Tensor,
        context: torch.Tensor,
    ) -> torch.Tensor:
        """Increase the penalized likelihood of the experts, see `GeneralizedLinear`."""

        def shares(r: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            one_hot = nn.functional.one_hot(y.reshape(-1).long(), start.shape[1]).double()
            return r.unsqueeze(-1) * one_hot.unsqueeze(1)

        targets = Derived(shares, weights, y)
        return softmax_newton(inputs, targets, start, ridge=self.ridges(inputs), steps=NEWTON_STEPS)
