"""The softmax gate. For a neural gate see `CategoricalConditional`."""

import math
from collections.abc import Sequence

import pyro.distributions as dist
import torch
from torch import nn

from ..m_steps.blocks import Derived, number_of
from ..m_steps.newton import MAX_SIZE, softmax_newton
from ..m_steps.softmax_regression import softmax_regression
from .networks import AffineMaps

NEWTON_STEPS = 5


class SoftmaxGate(nn.Module):
    r"""The softmax gate (paper §4), a multinomial logistic regression.

    .. math:: g_k(x) = \mathrm{softmax}_k\,
              \Big( \Big\langle w_k, \frac{x - m}{s} \Big\rangle + b_k \Big)

    Args:
        x_dim: D.
        num_components: K.
        units: A module that standardizes x by m and s, shared by the story; None for m = 0, s = 1.
        columns: The numbers of the columns of x that the gate reads; all of them if None. A gate
            of no column is constant, as the weights of a mixture are.
        intercept: Whether there is an intercept b_k.

    Attributes:
        ridge: λ of the M-step, see there and `inference.prior`.
        prior_scale: The deviation of all w and b in the posterior of a fit. The log-odds of two
            components then have N(0, 2.5²).

    Example:
        >>> SoftmaxGate(2, 5)(torch.zeros(7, 2)).probs.shape
        torch.Size([7, 5])
    """

    evaluated_once = True
    ridge: float = 1e-4
    prior_scale = 2.5 / math.sqrt(2.0)
    role = "gate"

    def __init__(
        self,
        x_dim: int,
        num_components: int,
        *,
        units: nn.Module | None = None,
        columns: Sequence[int] | None = None,
        intercept: bool = True,
    ) -> None:
        super().__init__()
        width = x_dim if columns is None else len(columns)
        self.maps = AffineMaps(
            width, 1, num_components, units=units, columns=columns, intercept=intercept
        )

    def forward(self, x: torch.Tensor) -> dist.Distribution:
        """The distribution of c given x, shape (..., D), event shape ``(K,)``."""
        return dist.OneHotCategorical(logits=self.maps(x).squeeze(-2))

    def num_free_parameters(self) -> int:
        """The number of coefficients of all components but one."""
        number = sum(p.numel() for p in self.parameters() if p.requires_grad)
        components = self.maps.weight.shape[1]
        return number // components * (components - 1)

    def squared_weights(self) -> torch.Tensor:
        """The sum of squares of the weights w."""
        return self.maps.weight.square().sum() / max(self.maps.weight.shape[-1], 1)

    def maximize(self, x: torch.Tensor, weights: torch.Tensor, *, steps: int = 100) -> None:
        r"""Increase the penalized likelihood of the gate given responsibilities.

        .. math:: \max \sum_{nk} r_{nk} \log g_k(x_n) - \frac{\lambda}{2} |w|^2

        The penalty corresponds to the prior N(0, 1/λ) of each weight. Small gates take Newton
        steps, others L-BFGS iterations.

        Args:
            x: Rows, shape (N, D).
            weights: Responsibilities r, shape (N, K), or (N, S, K) of gates side by side.
            steps: Maximum number of L-BFGS iterations.
        """
        root = math.sqrt(max(self.maps.weight.shape[-1], 1))  # w = V / √D, see `AffineMaps`
        unit = torch.tensor([root] * self.maps.weight.shape[-1] + [1.0], dtype=torch.float64)
        inputs = Derived(lambda part: self.maps.inputs(part) * unit.to(part.device), x)
        r, number = weights.double(), number_of(x)
        start = self.maps.coefficients.detach().double()
        start[..., :-1] /= root
        if start[0].numel() <= MAX_SIZE or not self.maps.intercept:
            ridge = torch.full_like(start[0, 0], self.ridge)
            ridge[-1] = 1e-8 * number  # a constant may be added to all intercepts
            found = softmax_newton(
                inputs, r, start, ridge=ridge.clamp_min(1e-9), steps=NEWTON_STEPS
            )
        else:
            numpy = (part.cpu().numpy() for part in (inputs[:][:, :-1], r, start[0]))
            each = self.ridge / number
            found = torch.from_numpy(softmax_regression(*numpy, ridge=each, steps=steps))[None]
        with torch.no_grad():
            self.maps.weight.copy_(root * found[..., :-1])
            self.maps.bias.copy_(found[..., -1])
