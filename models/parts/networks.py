"""Plain neural networks: deterministic maps from one real vector to another."""

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
        hidden: Widths of the hidden layers; empty for an affine map.
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
    r"""An affine change of units, fixed from data before training.

    .. math:: u = (x - m) / s, \quad m_d = \mathrm{mean}(x_d), \quad s_d = \mathrm{sd}(x_d)

    It starts as the identity. A column that is constant keeps unit scale.

    Args:
        dim: Columns of x.
        common: Whether all columns are in one unit, as pixels are: s is then one number, the
            root mean square of the columns' deviations.
        robust: Whether m is the median and s the range of the middle half in that of a standard
            normal, 1.349, which wild values do not spoil. Where half of the values are equal, and
            that range is zero, s stays the standard deviation.

    Example:
        >>> units = Standardize(1)
        >>> units.adapt(torch.tensor([[1.0], [3.0]]))
        >>> units(torch.tensor([[3.0]]))
        tensor([[1.]])
    """

    loc: torch.Tensor
    scale: torch.Tensor

    def __init__(self, dim: int, *, common: bool = False, robust: bool = False) -> None:
        super().__init__()
        self.robust = robust
        self.register_buffer("loc", torch.zeros(dim))
        self.register_buffer("scale", torch.ones(1 if common else dim))

    def adapt(self, x: torch.Tensor) -> None:
        """Take the units in which the rows x, shape (N, D), have zero mean and unit scale."""
        self.loc.copy_(x.mean(0))
        constant = (x == x[0]).all(0)  # whose computed deviation is rounding error, not zero
        variance = torch.where(constant, torch.zeros_like(x[0]), x.var(0, correction=0))
        if len(self.scale) == 1:
            variance = variance.mean(0, keepdim=True)
        self.scale.copy_(torch.where(variance > 0, variance, torch.ones_like(variance)).sqrt())
        if self.robust:
            low, median, high = np.quantile(x.double().cpu().numpy(), [0.25, 0.5, 0.75], axis=0)
            middle = torch.from_numpy((high - low) / 1.349).to(self.scale)
            if len(self.scale) == 1:
                middle = middle.square().mean(0, keepdim=True).sqrt()
            self.loc.copy_(torch.from_numpy(median))
            self.scale.copy_(torch.where(middle > 0, middle, self.scale))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """From the data's units to standard ones."""
        return (x - self.loc) / self.scale

    def inverse(self, u: torch.Tensor) -> torch.Tensor:
        """From standard units back to the data's."""
        return u * self.scale + self.loc


class AffineMaps(nn.Module):
    r"""K affine maps of one input, in its standard units.

    .. math:: f_k(x) = \frac{1}{\sqrt D} V_k\, \frac{x - m}{s} + b_k

    V_k / √D are the maps' weights; V_k is what is learned, so that a step of Adam moves the
    output about as far with hundreds of columns as with two.

    Args:
        in_features: D, length of the input.
        num_components: K.
        out_features: P, length of each output.
        units: m and s, such as a story shares among its parts; those of x itself if None.

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
        """Start from maps that differ: weights of unit length on average, and b_k of 0.5."""
        nn.init.normal_(self.weight)
        nn.init.normal_(self.bias, std=0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map inputs ``(..., D)`` to outputs ``(..., K, P)``."""
        u = self.units(x) / math.sqrt(x.shape[-1])
        flat = nn.functional.linear(u, self.weight.flatten(0, 1), self.bias.flatten())
        return flat.unflatten(-1, self.bias.shape)

    def least_squares(
        self, x: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor
    ) -> torch.Tensor:
        """Set each map to its weighted least squares, and return its residuals.

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
