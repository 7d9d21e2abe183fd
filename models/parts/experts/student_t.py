"""Experts with heavy tails."""

import math
from typing import Any

import pyro.distributions as dist
import torch
from torch import nn

from pyro_moe.distributions import (
    StudentT,
    rounded,
)

from ...m_steps.blocks import Derived
from ...m_steps.student_t import LARGEST, StudentTMaps, student_t_step
from ..networks import AffineMaps, Standardize
from ..targets import known_rows
from .base import MIN_SCALE, LocationScale, of_some_row

STEPS = 2  # of reweighted least squares in an M-step


class StudentTExperts(LocationScale):
    r"""Experts with heavy tails, for targets with outliers.

    .. math:: p_k(y \mid x) = \prod_m \mathrm{t}_{\nu_k}
              \Big( \frac{y_m - m_m}{s_m} \,\Big|\, f_k(x)_m, \sigma_{km} \Big) \frac{1}{s_m},
              \quad \nu_k > \tfrac12

    with the units m, s of the target. They are computed from its median and quartiles, which are
    robust to outliers. Of ν of at most 2 the variance is infinite, and of at most 1 the mean that
    is reported is the center.

    Args:
        network: Maps a context to ``(..., K, M)``.
        num_components: K.
        y_dim: M.

    Attributes:
        least_df: The lower end of ν.

    Example:
        >>> experts = StudentTExperts(AffineMaps(2, 5, 3), num_components=5, y_dim=3)
        >>> experts(torch.zeros(7, 2)).batch_shape
        torch.Size([7, 5])
    """

    least_df = 0.5

    def __init__(self, network: nn.Module, num_components: int, y_dim: int) -> None:
        super().__init__()
        self.network, self.units = network, Standardize(y_dim, robust=True)
        self.log_scale = nn.Parameter(torch.empty(num_components, y_dim))
        self.log_excess_df = nn.Parameter(torch.empty(num_components, 1))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set all scales to one and ν to 6."""
        nn.init.zeros_(self.log_scale)
        nn.init.constant_(self.log_excess_df, math.log(6.0 - self.least_df))

    def adapt(self, x: torch.Tensor, y: torch.Tensor) -> None:
        """Set the units from training targets y, shape (N, M)."""
        self.units.adapt(y - self.offsets(x)[..., None].to(y))
        if not self.has_intercept:
            self.units.loc.zero_()

    def scales(self) -> torch.Tensor:
        """The scales σ in the units of y, shape (K, M)."""
        return self.units.scale * (MIN_SCALE + self.log_scale.double().exp())

    def degrees_of_freedom(self) -> torch.Tensor:
        """The degrees of freedom ν, shape (K, 1)."""
        excess = self.log_excess_df.double().clamp(-LARGEST, LARGEST)
        return self.least_df + excess.exp()

    def forward(self, context: torch.Tensor) -> dist.Distribution:
        """The K distributions of y given a context, event shape ``(M,)``."""
        loc = (
            self.units.inverse(self.network(context).double())
            + self.offsets(context)[..., None, None]
        )
        scale = self.scales()
        df = self.degrees_of_freedom()
        return rounded(StudentT(df, loc, scale), self.log_excess_df.dtype).to_event(1)

    def maximize(
        self, context: torch.Tensor, y: torch.Tensor, weights: torch.Tensor, **step: Any
    ) -> None:
        """Increase the weighted likelihood, from the current parameters.

        Affine maps take steps of reweighted least squares, see `student_t_step`. Other networks
        take the step of `Experts`.

        Args:
            context: Inputs of the experts, shape (N, C).
            y: Targets, shape (N,) or (N, M). Rows with NaN are left out.
            weights: Responsibilities r, shape (N, K). An expert with zero weight in all rows is
                fitted to all rows.
            **step: Arguments of the step of `Experts`.
        """
        maps: Any = self.network
        if not isinstance(maps, AffineMaps):
            super().maximize(context, y, weights, **step)
            return
        y, context, weights = known_rows(y, context, weights)
        weights = of_some_row(weights)
        u, targets = Derived(maps.features, context), Derived(self.in_units, context, y)
        with torch.no_grad():
            found = StudentTMaps(
                maps.coefficients.double(),
                (self.scales() / self.units.scale).double(),
                self.log_excess_df.double(),
            )
            for _ in range(STEPS):
                found = student_t_step(
                    u,
                    targets,
                    weights,
                    found,
                    least_df=self.least_df,
                    least_scale=1.001 * MIN_SCALE,
                    intercept=maps.intercept,
                )
            maps.weight.copy_(found.coefficients[..., :-1])
            maps.bias.copy_(found.coefficients[..., -1])
            self.log_scale.copy_((found.scale - MIN_SCALE).log())
            self.log_excess_df.copy_(found.log_excess_df)
