"""The softmax gate. For a neural gate see `CategoricalConditional`."""

import math

import pyro.distributions as dist
import torch
from torch import nn

from ..m_steps.softmax_regression import softmax_regression
from .networks import AffineMaps


class SoftmaxGate(nn.Module):
    r"""The softmax gate (paper §4), a multinomial logistic regression.

    .. math:: g_k(x) = \mathrm{softmax}_k\,
              \Big( \Big\langle w_k, \frac{x - m}{s} \Big\rangle + b_k \Big)

    Args:
        x_dim: D.
        num_components: K.
        units: A module that standardizes x by m and s, shared by the story; None for m = 0, s = 1.

    Example:
        >>> SoftmaxGate(2, 5)(torch.zeros(7, 2)).probs.shape
        torch.Size([7, 5])
    """

    evaluated_once = True

    def __init__(self, x_dim: int, num_components: int, *, units: nn.Module | None = None) -> None:
        super().__init__()
        self.maps = AffineMaps(x_dim, 1, num_components, units=units)

    def forward(self, x: torch.Tensor) -> dist.Distribution:
        """The distribution of c given x, shape (..., D), event shape ``(K,)``."""
        return dist.OneHotCategorical(logits=self.maps(x).squeeze(-2))

    def maximize(
        self, x: torch.Tensor, weights: torch.Tensor, *, ridge: float = 1e-4, steps: int = 100
    ) -> None:
        r"""Increase the penalized likelihood of the gate given responsibilities, by L-BFGS.

        .. math:: \max \frac{1}{N} \sum_{nk} r_{nk} \log g_k(x_n) - \frac{\lambda}{2} |w|^2

        Args:
            x: Rows, shape (N, D).
            weights: Responsibilities r, shape (N, K).
            ridge: λ, see `softmax_regression`.
            steps: Maximum number of L-BFGS iterations.
        """
        u, r = self.maps.units(x).double().cpu().numpy(), weights.double().cpu().numpy()
        root = math.sqrt(self.maps.weight.shape[-1])  # w = V / √D, see `AffineMaps`
        weight, bias = self.maps.weight[0], self.maps.bias[0]
        start = torch.cat([weight / root, bias.unsqueeze(-1)], -1).detach().double().cpu().numpy()
        solution = torch.from_numpy(softmax_regression(u, r, start, ridge=ridge, steps=steps))
        with torch.no_grad():
            weight.copy_(root * solution[:, :-1])
            bias.copy_(solution[:, -1])
