"""Deterministic maps: multilayer perceptrons, standardization and affine maps."""

import itertools
import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from ..m_steps.least_squares import weighted_least_squares


class MLP(nn.Sequential):
    r"""A multilayer perceptron with ReLU units.

    .. math:: h_0 = x, \quad h_{i+1} = \max(0, A_i h_i + a_i), \quad f(x) = A_n h_n + a_n

    Args:
        in_features: Length of the input vector.
        hidden: Widths of the hidden layers. It is empty for an affine map.
        out_features: Length of the output vector.

    Example:
        >>> MLP(2, (16, 16), 3)(torch.zeros(5, 2)).shape
        torch.Size([5, 3])
    """

    def __init__(self, in_features: int, hidden: Sequence[int], out_features: int) -> None:
        widths = (in_features, *hidden)
        layers: list[nn.Module] = []
        for fan_in, fan_out in itertools.pairwise(widths):
            layers += [nn.Linear(fan_in, fan_out), nn.ReLU()]
        super().__init__(*layers, nn.Linear(widths[-1], out_features))


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
        """Set m and s from training rows x, shape (N, D)."""
        x = x.detach().double()
        varies = (x != x[0]).any(0)
        if self.robust:
            low, loc, high = np.quantile(x.cpu().numpy(), [0.25, 0.5, 0.75], axis=0)
            middle, loc = (torch.from_numpy(each).to(x) for each in ((high - low) / 1.349, loc))
            scale = torch.where(middle > 0, middle, x.std(0, correction=0))
        else:
            loc, scale = x.mean(0), x.std(0, correction=0)
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
        """Standardize x, shape (..., D)."""
        return self.varies * (x - self.loc) / self.scale

    def inverse(self, u: torch.Tensor) -> torch.Tensor:
        """Map standardized values u, shape (..., D), back to the units of the data."""
        return u * self.scale + self.loc


class AffineMaps(nn.Module):
    r"""K affine maps of one standardized input.

    .. math:: f_k(x) = \frac{1}{\sqrt D} V_k\, \frac{x - m}{s} + b_k

    The learned parameters are V_k and b_k. The factor 1/√D makes the change of the output in a
    step of Adam nearly independent of the number of columns.

    Args:
        in_features: D, length of the input.
        num_components: K.
        out_features: P, length of each output.
        units: A module that standardizes x by m and s, shared by the story; None for m = 0, s = 1.

    Example:
        >>> AffineMaps(2, 5, 3)(torch.zeros(7, 2)).shape
        torch.Size([7, 5, 3])
    """

    def __init__(
        self,
        in_features: int,
        num_components: int,
        out_features: int,
        *,
        units: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.units = nn.Identity() if units is None else units
        self.weight = nn.Parameter(torch.empty(num_components, out_features, in_features))
        self.bias = nn.Parameter(torch.empty(num_components, out_features))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw different maps: V_k from N(0, 1) and b_k from N(0, 0.25), entry by entry."""
        nn.init.normal_(self.weight)
        nn.init.normal_(self.bias, std=0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map inputs ``(..., D)`` to outputs ``(..., K, P)``."""
        u = self.units(x) / math.sqrt(x.shape[-1])
        flat = nn.functional.linear(u, self.weight.flatten(0, 1), self.bias.flatten())
        return flat.unflatten(-1, self.bias.shape)

    @property
    def coefficients(self) -> torch.Tensor:
        """V_k and b_k, shape (K, P, D + 1), with the intercept in the last column."""
        return torch.cat([self.weight, self.bias.unsqueeze(-1)], -1)

    def inputs(self, x: torch.Tensor) -> torch.Tensor:
        """The inputs of V_k and b_k for rows x, shape (N, D): (N, D + 1), in double precision."""
        u = self.units(x).double() / math.sqrt(x.shape[-1])
        return torch.cat([u, torch.ones_like(u[:, :1])], -1)

    def least_squares(
        self, x: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor
    ) -> torch.Tensor:
        """Set each map to its weighted least-squares solution, and return the residuals.

        Args:
            x: Inputs, shape (N, D).
            targets: t, shape (N, P).
            weights: r, shape (N, K).

        Returns:
            Residuals of every row under every map, shape (N, K, P), in double precision.
        """
        u = self.units(x) / math.sqrt(x.shape[-1])
        with torch.no_grad():
            coefficients = weighted_least_squares(u, targets, weights)
            self.weight.copy_(coefficients[:, :-1].mT)
            self.bias.copy_(coefficients[:, -1])
            return targets.double().unsqueeze(1) - self(x).double()
