"""Experts of several targets: of one family side by side, and of a family each."""

from collections.abc import Sequence
from typing import Any

import pyro.distributions as dist
import torch
from torch import nn

from pyro_moe.distributions import (
    Joint,
    Stacked,
)

from ..targets import known_rows
from .base import Experts, adapt_experts


class StackedExperts(Experts):
    """K conditional distributions of any families as one module of experts.

    Args:
        experts: K modules, each from a context to a distribution of batch shape (N,).

    Example:
        >>> from pyro_moe.models import NormalConditional
        >>> experts = StackedExperts([NormalConditional(nn.Linear(2, 6)) for _ in range(5)])
        >>> experts(torch.zeros(7, 2)).batch_shape
        torch.Size([7, 5])
    """

    def __init__(self, experts: Sequence[nn.Module]) -> None:
        super().__init__()
        self.experts = nn.ModuleList(experts)

    def adapt(self, x: torch.Tensor, y: torch.Tensor) -> None:
        """Set the units of each expert from training rows x, shape (N, D), and y, (N, M)."""
        for expert in self.experts:
            adapt_experts(expert, x, y)

    def forward(self, context: torch.Tensor) -> dist.Distribution:
        """The K distributions of y given a context."""
        return Stacked([expert(context) for expert in self.experts])


class JointExperts(nn.Module):
    r"""Experts of several targets, each of a family of its own.

    .. math:: p_k(y \mid x) = \prod_m p_{km}(y_m \mid x)

    Args:
        parts: Experts of one column of y each, with the same number of components.

    Example:
        >>> from pyro_moe.models.parts.experts import experts_of
        >>> parts = [experts_of(family, 2, 5, 1) for family in ("normal", "poisson")]
        >>> JointExperts(parts)(torch.zeros(7, 2)).mean.shape
        torch.Size([7, 5, 2])
    """

    evaluated_once = True

    def __init__(self, parts: Sequence[nn.Module]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)

    def adapt(self, x: torch.Tensor, y: torch.Tensor) -> None:
        """Set the units of each part from training rows x, shape (N, D), and y, (N, M)."""
        for part, column in zip(self.parts, y.split(1, -1), strict=True):
            adapt_experts(part, x, column)

    def forward(self, context: torch.Tensor) -> dist.Distribution:
        """The K distributions of y given a context, event shape ``(M,)``."""
        return Joint([part(context) for part in self.parts])

    def maximize(
        self, context: torch.Tensor, y: torch.Tensor, weights: torch.Tensor, **step: Any
    ) -> None:
        """Update each part by its M-step, see there."""
        y, context, weights = known_rows(y, context, weights)
        for part, column in zip(self.parts, y.split(1, -1), strict=True):
            part_of: Any = part
            part_of.maximize(context, column, weights, **step)

    def linear_predictor(self, width: int) -> torch.Tensor:
        """The slopes and intercepts of all targets, see `Experts`."""
        parts: Any = self.parts
        return torch.cat([part.linear_predictor(width) for part in parts], 1)
