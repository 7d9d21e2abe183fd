"""The softmax gate; a neural one is `CategoricalConditional`, a generative one a story of x."""

import math

import pyro.distributions as dist
import torch
from torch import nn

from ..m_steps.softmax_regression import softmax_regression
from .networks import AffineMaps


class SoftmaxGate(nn.Module):
    r"""The classical gate (paper §4): a multinomial logistic regression.

    .. math:: g_k(x) = \mathrm{softmax}_k\,
              \Big( \Big\langle w_k, \frac{x - m}{s} \Big\rangle + b_k \Big)

    Args:
        x_dim: D.
        num_components: K.
        units: m and s, as the story shares them; those of x itself if None.

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
        """Set the gate to the likeliest given responsibilities: the inner loop of EM for ME.

        Args:
            x: Rows, shape (N, D).
            weights: Responsibilities r, shape (N, K).
            ridge: λ, see `softmax_regression`.
            steps: Of L-BFGS at the most.
        """
        u, r = self.maps.units(x).double().cpu().numpy(), weights.double().cpu().numpy()
        root = math.sqrt(self.maps.weight.shape[-1])  # w = V / √D, see `AffineMaps`
        weight, bias = self.maps.weight[0], self.maps.bias[0]
        start = torch.cat([weight / root, bias.unsqueeze(-1)], -1).detach().double().cpu().numpy()
        solution = torch.from_numpy(softmax_regression(u, r, start, ridge=ridge, steps=steps))
        with torch.no_grad():
            weight.copy_(root * solution[:, :-1])
            bias.copy_(solution[:, -1])
