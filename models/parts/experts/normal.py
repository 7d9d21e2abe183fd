"""Normal experts, with a scalar, diagonal or full covariance."""

import math
from typing import Any

import pyro.distributions as dist
import torch
from torch import nn

from pyro_moe.distributions import (
    MultivariateNormal,
    Normal,
    rounded,
    rounding_error,
)

from ...m_steps.blocks import Derived, totals, weighted_products
from ..networks import AffineMaps, PartlySharedMaps, Standardize
from ..targets import known_rows
from .base import MIN_SCALE, LocationScale, of_some_row

COVARIANCES = ("scalar", "diagonal", "full")


class NormalExperts(LocationScale):
    r"""Normal experts, the regression model of the paper (§4.1).

    .. math:: p_k(y \mid x) = N(y \mid m + s f_k(x),\; s \Gamma_k s)

    with the units m, s of the target, and s as a diagonal matrix. Γ_k is scalar, diagonal or
    full. Its scales have a lower limit, because the likelihood is unbounded if an expert fits its
    rows exactly. If the values of a target are rounded to a grid of step h, the limit is at least
    h / √12, the standard deviation of the error of rounding.

    Args:
        network: Maps a context to ``(..., K, M)``, such as `AffineMaps`.
        num_components: K.
        y_dim: M.
        covariance: Γ_k ``"scalar"``, ``"diagonal"`` or ``"full"``.
        initial_scale: Initial scales of Γ_k, in standard deviations of the target.
        shared_scale: Whether all experts have the same Γ.
        min_scale: Lower limit of the scales, in the same unit. For almost noise-free targets with
            many inputs a larger value is advisable: gradient steps otherwise are much longer than
            the noise scale.

    Raises:
        ValueError: If ``covariance`` is none of these.

    Example:
        >>> experts = NormalExperts(AffineMaps(2, 5, 3), num_components=5, y_dim=3)
        >>> experts(torch.zeros(7, 2)).batch_shape, experts(torch.zeros(7, 2)).event_shape
        (torch.Size([7, 5]), torch.Size([3]))
    """

    floor: torch.Tensor

    def __init__(
        self,
        network: nn.Module,
        num_components: int,
        y_dim: int,
        *,
        covariance: str = "diagonal",
        initial_scale: float = 1.0,
        shared_scale: bool = False,
        min_scale: float = MIN_SCALE,
    ) -> None:
        super().__init__()
        if covariance not in COVARIANCES:
            raise ValueError(f"expected covariance in {COVARIANCES}; got {covariance!r}")
        self.network, self.covariance = network, covariance
        self.initial_scale, self.min_scale = initial_scale, min_scale
        self.units = Standardize(y_dim)
        self.floor = nn.Buffer(torch.full((y_dim,), min_scale))
        width = 1 if covariance == "scalar" else y_dim
        number = 1 if shared_scale else num_components
        self.log_scale = nn.Parameter(torch.empty(number, width))
        if covariance == "full":
            # L_k = diag(s_k) (I + strictly lower triangle), Γ_k = L_k L_k^T
            self.correlation = nn.Parameter(torch.empty(number, y_dim, y_dim))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set all scales to ``initial_scale`` and all correlations to zero."""
        nn.init.constant_(self.log_scale, math.log(self.initial_scale))
        if self.covariance == "full":
            nn.init.zeros_(self.correlation)

    def adapt(self, x: torch.Tensor, y: torch.Tensor) -> None:
        """Set the units and the lower limit of the scales from training targets y, (N, M)."""
        self.units.adapt(y - self.offsets(x)[..., None].to(y))
        if not self.has_intercept:
            self.units.loc.zero_()
        self.floor.copy_((rounding_error(y) / self.units.scale).clamp_min(self.min_scale))

    def forward(self, context: torch.Tensor) -> dist.Distribution:
        """The K distributions of y given a context, event shape ``(M,)``."""
        loc = (
            self.units.inverse(self.network(context).double())
            + self.offsets(context)[..., None, None]
        )
        scale = self.scales()
        if self.covariance != "full":
            return rounded(Normal(loc, scale), self.log_scale.dtype).to_event(1)
        eye = torch.eye(loc.shape[-1], dtype=loc.dtype, device=loc.device)
        scale_tril = scale.unsqueeze(-1) * (self.correlation.tril(-1) + eye)
        return rounded(MultivariateNormal(loc, scale_tril=scale_tril), self.log_scale.dtype)

    def num_free_parameters(self) -> int:
        """The number of coefficients, scales and correlations."""
        number = sum(p.numel() for p in self.parameters() if p.requires_grad)
        if self.covariance != "full":
            return number
        experts, size, _ = self.correlation.shape
        return number - experts * size * (size + 1) // 2

    def covariances(self) -> torch.Tensor:
        """The covariances of y in its units, shape (K, M, M) or (1, M, M)."""
        scale = self.scales() * torch.ones_like(self.units.scale)
        if self.covariance != "full":
            return scale.square().diag_embed()
        eye = torch.eye(scale.shape[-1], dtype=scale.dtype, device=scale.device)
        scale_tril = scale.unsqueeze(-1) * (self.correlation.tril(-1) + eye)
        return scale_tril @ scale_tril.mT

    def scales(self) -> torch.Tensor:
        """The scales of Γ_k in the units of y, shape (K, M); if it is full, of its factor."""
        floor = self.floor if self.covariance != "scalar" else self.floor.amax(-1, keepdim=True)
        return self.units.scale * (floor + self.log_scale.double().exp())

    def maximize(
        self, context: torch.Tensor, y: torch.Tensor, weights: torch.Tensor, **step: Any
    ) -> None:
        r"""Set the experts to the maximum-likelihood estimates from weighted rows.

        Affine maps have a closed form: weighted least squares, and Γ_k from the weighted
        residuals. Other networks take the step of `Experts`.

        Args:
            context: Inputs of the experts, shape (N, C).
            y: Targets, shape (N,) or (N, M). Rows with NaN are left out.
            weights: Responsibilities r, shape (N, K). An expert with zero weight in all rows is
                fitted to all rows.
            **step: Arguments of the step of `Experts`.
        """
        y, context, weights = known_rows(y, context, weights)
        maps: Any = self.network
        shared = isinstance(maps, PartlySharedMaps) and self.covariance != "full"
        if not isinstance(maps, AffineMaps) and not shared:
            super().maximize(context, y, weights, **step)
            return
        weights = of_some_row(weights)
        targets = Derived(self.in_units, context, y)
        if shared:
            variance = (self.scales() / self.units.scale).detach().double().square()
            residuals = maps.least_squares(context, targets, weights, variance)
        else:
            residuals = maps.least_squares(context, targets, weights)

        def products(e: torch.Tensor, r: torch.Tensor) -> tuple[torch.Tensor, ...]:
            each, r = e.permute(1, 2, 0), r.double()
            return weighted_products(each, each, r), r.sum(0)

        with torch.no_grad():
            covariance, counts = totals(products, residuals, weights)
            covariance = covariance / counts.clamp_min(1e-12).reshape(-1, 1, 1)
            if len(self.log_scale) < len(counts):  # one for all experts
                shares = counts / counts.sum()
                covariance = torch.einsum("k,kij->ij", shares, covariance).unsqueeze(0)
            self._take(covariance)

    def _take(self, covariance: torch.Tensor) -> None:
        """Set Γ_k from covariances (K, M, M)."""
        variance = covariance.diagonal(dim1=-2, dim2=-1)
        if self.covariance == "scalar":
            variance = variance.mean(-1, keepdim=True)
        floor = self.floor.double()
        if self.covariance == "full":
            least = floor.square() * torch.ones_like(variance)
            tril = torch.linalg.cholesky(covariance + least.diag_embed())
            scale = tril.diagonal(dim1=-2, dim2=-1)
            self.correlation.copy_((tril / scale.unsqueeze(-1)).tril(-1))
        else:
            scale = variance.sqrt()
        if self.covariance == "scalar":
            floor = floor.amax(-1, keepdim=True)
        self.log_scale.copy_((scale - floor).clamp_min(1e-3 * floor).log())
