"""Deterministic maps: multilayer perceptrons, standardization and affine maps."""

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from pyro_moe.distributions import rows_are_incomplete

from ..m_steps.blocks import Column, Derived, total
from ..m_steps.least_squares import weighted_least_squares
from ..m_steps.moments import mean_and_variance


class MLP(nn.Sequential):
    r"""A multilayer perceptron with ReLU units.

    .. math:: h_0 = x, \quad h_{i+1} = \max(0, A_i h_i + a_i), \quad f(x) = A_n h_n + a_n

    Args:
        in_features: Length of the input vector.
        hidden: Widths of the hidden layers. It is empty for an affine map.
        out_features: Length of the output vector.

    Attributes:
        ridge: The prior precision of the weights A_i, see `inference.prior`.

    Example:
        >>> MLP(2, (16, 16), 3)(torch.zeros(5, 2)).shape
        torch.Size([5, 3])
    """

    ridge: float = 0.0
    role = "network"

    def __init__(self, in_features: int, hidden: Sequence[int], out_features: int) -> None:
        widths = (in_features, *hidden)
        layers: list[nn.Module] = []
        for fan_in, fan_out in itertools.pairwise(widths):
            layers += [nn.Linear(fan_in, fan_out), nn.ReLU()]
        super().__init__(*layers, nn.Linear(widths[-1], out_features))

    def squared_weights(self) -> torch.Tensor:
        """The sum of squares of all weights A_i, a scalar."""
        return sum(
            (part.weight.square().sum() for part in self if isinstance(part, nn.Linear)),
            torch.zeros((), dtype=torch.float64),
        )


def filled(x: torch.Tensor) -> torch.Tensor:
    """Rows x, shape (N, D), with the mean of the observed entries in place of missing ones."""
    missing = x.isnan()
    return torch.where(missing, x.nanmean(0), x) if missing.any() else x


def _first_known(x: torch.Tensor) -> torch.Tensor:
    """The first observed entry of each column of x, shape (D,)."""
    first = x[0]
    return (
        x.gather(0, (~x.isnan()).int().argmax(0, keepdim=True))[0] if first.isnan().any() else first
    )


class Columns(nn.Module):
    """Some columns of the input, by their numbers.

    Args:
        columns: Their numbers.

    Example:
        >>> Columns([1])(torch.tensor([[3.0, 4.0]]))
        tensor([[4.]])
    """

    def __init__(self, columns: Sequence[int]) -> None:
        super().__init__()
        self.columns = list(columns)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The columns of x, shape (..., D)."""
        return x[..., self.columns]


class Standardize(nn.Module):
    r"""Standardization of columns, by constants set from data before training.

    .. math:: u = (x - m) / s, \quad m_d = \mathrm{mean}(x_d), \quad s_d = \mathrm{sd}(x_d)

    Initially it is the identity. The constants are computed in double precision. A column that is
    constant in training has s = 1, and its u is zero for every later value, because training did
    not show what a change means.

    Args:
        dim: D, columns of x.
        common: Whether all columns share one unit, as pixels do. s is then a single number, the
            root mean square of the columns' standard deviations.
        robust: Whether to use statistics that are robust to outliers: m is the median, and s is
            the interquartile range divided by 1.349, that of a standard normal distribution. If
            the interquartile range is zero, s is the standard deviation.

    Example:
        >>> units = Standardize(1)
        >>> units.adapt(torch.tensor([[1.0], [3.0]]))
        >>> units(torch.tensor([[3.0]]))
        tensor([[1.]])
    """

    loc: torch.Tensor
    scale: torch.Tensor
    varies: torch.Tensor

    def __init__(self, dim: int, *, common: bool = False, robust: bool = False) -> None:
        super().__init__()
        self.robust = robust
        self.register_buffer("loc", torch.zeros(dim))
        self.register_buffer("scale", torch.ones(1 if common else dim))
        self.register_buffer("varies", torch.ones(dim))

    def adapt(self, x: torch.Tensor) -> None:
        """Set m and s from the observed entries of training rows x, shape (N, D)."""
        known = Derived(lambda part: (~part.isnan()).double(), x)
        first = _first_known(x)
        varies = total(lambda part: ((part != first) & ~part.isnan()).sum(0), x) > 0
        loc, variance = mean_and_variance(Derived(lambda part: part.nan_to_num(0.0), x), known)
        scale = variance.sqrt()
        if self.robust:
            numbers = x.detach().double().cpu().numpy()
            quantiles = np.nanquantile(numbers, [0.25, 0.5, 0.75], axis=0)
            low, loc, high = torch.from_numpy(quantiles).to(scale)
            middle = (high - low) / 1.349
            scale = torch.where(middle > 0, middle, scale)
        scale = torch.where(varies, scale, 0.0)  # a computed deviation may be a rounding error
        if len(self.scale) == 1:
            scale = scale.square().mean(0, keepdim=True).sqrt()
        self.loc.copy_(loc)
        self.scale.copy_(torch.where(scale > 0, scale, 1.0))
        self.varies.copy_(varies)

    @property
    def slope(self) -> torch.Tensor:
        """The derivative of u by x, 1 / s, or zero for columns that are constant, shape (D,)."""
        return self.varies / self.scale

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Standardize x, shape (..., D). A missing entry becomes that of the mean, zero."""
        u = self.varies * (x - self.loc) / self.scale
        return u.nan_to_num(0.0) if rows_are_incomplete() else u

    def inverse(self, u: torch.Tensor) -> torch.Tensor:
        """Map standardized values u, shape (..., D), back to the units of the data."""
        return u * self.scale + self.loc


def _residuals(maps: nn.Module, x: torch.Tensor, targets: Column) -> Derived:
    """Targets (N, P) minus the values of maps, shape (N, K, P), in double precision."""

    def of(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return t.double().unsqueeze(1) - maps(x).detach().double()

    return Derived(of, x, targets)


class AffineMaps(nn.Module):
    r"""K affine maps of one standardized input.

    .. math:: f_k(x) = \frac{1}{\sqrt D} V_k\, \frac{x - m}{s} + b_k

    The learned parameters are V_k and b_k. The factor 1/√D makes the change of the output in a
    step of Adam nearly independent of the number of columns. The maps may read some columns of x
    alone. Maps of no column are constants.

    Args:
        in_features: D, length of the input.
        num_components: K.
        out_features: P, length of each output.
        units: A module that standardizes x by m and s, shared by the story; None for m = 0, s = 1.
        columns: The numbers of the columns of x that are the input; all of them if None.
        intercept: Whether b_k is learned. It is zero if it is not.
        centered: Whether x is centered, m ≠ 0; as ``intercept`` if None. Without both f_k(0) = 0.
        shrinkage: κ, rows that the prior of V_k counts as in `weighted_least_squares`.

    Raises:
        ValueError: If ``shrinkage`` is negative.

    Example:
        >>> AffineMaps(2, 5, 3)(torch.zeros(7, 2)).shape
        torch.Size([7, 5, 3])
        >>> AffineMaps(1, 5, 3, columns=[1])(torch.zeros(7, 2)).shape
        torch.Size([7, 5, 3])
    """

    bias: torch.Tensor

    def __init__(
        self,
        in_features: int,
        num_components: int,
        out_features: int,
        *,
        units: nn.Module | None = None,
        columns: Sequence[int] | None = None,
        intercept: bool = True,
        centered: bool | None = None,
        shrinkage: float = 0.0,
    ) -> None:
        super().__init__()
        if not shrinkage >= 0:
            raise ValueError(f"expected shrinkage of at least 0; got {shrinkage}")
        self.shrinkage = shrinkage
        self.units = nn.Identity() if units is None else units
        self.columns = None if columns is None else list(columns)
        self.intercept = intercept
        self.centered = intercept if centered is None else centered
        self.weight = nn.Parameter(torch.empty(num_components, out_features, in_features))
        bias = torch.zeros(num_components, out_features)
        self.bias = nn.Parameter(bias) if intercept else nn.Buffer(bias)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw different maps: V_k from N(0, 1) and b_k from N(0, 0.25), entry by entry."""
        if self.weight.numel():
            nn.init.normal_(self.weight)
        if self.intercept:
            nn.init.normal_(self.bias, std=0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map inputs ``(..., D)`` to outputs ``(..., K, P)``."""
        flat = nn.functional.linear(
            self.features(x), self.weight.flatten(0, 1), self.bias.flatten()
        )
        return flat.unflatten(-1, self.bias.shape)

    def features(self, x: torch.Tensor) -> torch.Tensor:
        """The inputs of V_k, (..., D): the columns of x in standard units, divided by √D."""
        u = self.units(x)
        if not self.centered:
            u = u - self.units(torch.zeros_like(x))
        if self.columns is not None:
            u = u[..., self.columns]
        return u / math.sqrt(max(u.shape[-1], 1))

    @property
    def coefficients(self) -> torch.Tensor:
        """V_k and b_k, shape (K, P, D + 1), with the intercept in the last column."""
        return torch.cat([self.weight, self.bias.unsqueeze(-1)], -1)

    def in_units(self, width: int) -> torch.Tensor:
        r"""The slopes and the intercepts of the maps in the units of x, shape (K, P, D + 1).

        .. math:: f_k(x) = A_k\, (x, 1)

        Args:
            width: D, the number of columns of x. Those that are not read have zero slopes.
        """
        slopes = self.weight.new_zeros(*self.bias.shape, width)
        columns = list(range(width)) if self.columns is None else self.columns
        factors = self.weight.new_ones(width)
        if isinstance(self.units, Standardize):
            factors = (self.units.varies / self.units.scale).to(factors)
        read = self.weight * factors[columns] / math.sqrt(max(len(columns), 1))
        slopes = slopes.index_copy(-1, torch.tensor(columns, device=slopes.device).long(), read)
        origin = self(slopes.new_zeros(1, width))[0]
        return torch.cat([slopes, origin.unsqueeze(-1)], -1)

    def inputs(self, x: torch.Tensor) -> torch.Tensor:
        """The inputs of V_k and b_k for rows x, shape (N, D): (N, D + 1), in double precision.

        The last column is one, or zero without an intercept.
        """
        u = self.features(x).double()
        return torch.cat([u, u.new_full((len(u), 1), float(self.intercept))], -1)

    def least_squares(self, x: torch.Tensor, targets: Column, weights: torch.Tensor) -> Derived:
        """Set each map to its weighted least-squares solution, and return the residuals.

        Args:
            x: Inputs, shape (N, D).
            targets: t, shape (N, P).
            weights: r, shape (N, K).

        Returns:
            Residuals of every row under every map, shape (N, K, P), in double precision.
        """
        with torch.no_grad():
            coefficients = weighted_least_squares(
                Derived(self.features, x),
                targets,
                weights,
                intercept=self.intercept,
                shrinkage=self.shrinkage,
            )
            self.weight.copy_(coefficients[:, :-1].mT)
            self.bias.copy_(coefficients[:, -1])
        return _residuals(self, x, targets)


class PartlySharedMaps(nn.Module):
    r"""K affine maps with coefficients of their own, and with common ones.

    .. math:: f_k(x) = A_k\, x_O + b_k + B\, x_S

    Args:
        columns: The numbers of the columns of x that are the input, O and S.
        shared: The numbers of the columns S, whose coefficients are common.
        num_components: K.
        out_features: P, length of each output.
        units: As in `AffineMaps`.
        intercept: Whether there is an intercept b_k.
        shared_intercept: Whether it is the same in all maps.

    Example:
        >>> maps = PartlySharedMaps([0, 1], [1], num_components=5, out_features=3)
        >>> slopes = maps.in_units(2)[..., :2]
        >>> torch.equal(slopes[0, :, 1], slopes[4, :, 1]), torch.equal(slopes[0], slopes[4])
        (True, False)
    """

    def __init__(
        self,
        columns: Sequence[int],
        shared: Sequence[int],
        num_components: int,
        out_features: int,
        *,
        units: nn.Module | None = None,
        intercept: bool = True,
        shared_intercept: bool = False,
    ) -> None:
        super().__init__()
        own = [column for column in columns if column not in shared]
        self.intercept = intercept
        free, common = intercept and not shared_intercept, intercept and shared_intercept
        # An intercept of one part is enough for both to have centered columns
        options: dict[str, Any] = {"units": units, "centered": intercept}
        self.own = AffineMaps(
            len(own), num_components, out_features, columns=own, intercept=free, **options
        )
        self.shared = AffineMaps(
            len(shared), 1, out_features, columns=shared, intercept=common, **options
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map inputs ``(..., D)`` to outputs ``(..., K, P)``."""
        return self.own(x) + self.shared(x)

    def in_units(self, width: int) -> torch.Tensor:
        """The slopes and the intercepts in the units of x, see `AffineMaps`."""
        return self.own.in_units(width) + self.shared.in_units(width)

    @property
    def coefficients(self) -> torch.Tensor:
        """All coefficients of each output, shape (P, C): of each map, then the common ones."""
        own = self.own.coefficients.transpose(0, 1).flatten(1)
        return torch.cat([own, self.shared.coefficients[0]], -1)

    def inputs(self, x: torch.Tensor) -> torch.Tensor:
        """The inputs of the coefficients for each map and each row, (K N, C), in double."""
        own, common = self.own.inputs(x), self.shared.inputs(x)
        number = len(self.own.weight)
        blocks = torch.block_diag(*(own for _ in range(number)))
        return torch.cat([blocks, common.repeat(number, 1)], -1)

    def least_squares(
        self, x: torch.Tensor, targets: Column, weights: torch.Tensor, variance: torch.Tensor
    ) -> Derived:
        """Set the maps to their weighted least-squares solution, and return the residuals.

        Args:
            x: Inputs, shape (N, D).
            targets: t, shape (N, P).
            weights: r, shape (N, K).
            variance: The variance of each residual, shape (K, P), (1, P) or (K, 1).

        Returns:
            Residuals of every row under every map, shape (N, K, P), in double precision.
        """
        inputs, found, columns = self.inputs(x), [], targets[:].T
        for values, v in zip(columns, variance.expand(-1, len(columns)).T, strict=True):
            many = values.repeat(weights.shape[1])
            each = (weights.double() / v).T.flatten()
            solution = weighted_least_squares(inputs, many[:, None], each[:, None], intercept=False)
            found.append(solution[0, :-1, 0])
        self.take(torch.stack(found))
        return _residuals(self, x, targets)

    def take(self, coefficients: torch.Tensor) -> None:
        """Set all coefficients, shape (P, C)."""
        width = self.shared.weight.shape[-1] + 1
        own = coefficients[:, :-width].unflatten(1, (len(self.own.weight), -1)).transpose(0, 1)
        with torch.no_grad():
            for maps, values in ((self.own, own), (self.shared, coefficients[None, :, -width:])):
                maps.weight.copy_(values[..., :-1])
                maps.bias.copy_(values[..., -1])
