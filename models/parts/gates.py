"""The softmax gate; a neural one is `CategoricalConditional`, a generative one a story of x."""

import math

import numpy as np
import pyro.distributions as dist
import torch
from scipy.optimize import minimize
from scipy.special import log_softmax
from torch import nn

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
        r"""Set the gate to the likeliest given responsibilities: the inner loop of EM for ME.

        .. math:: \max_{w, b} \frac{1}{N} \sum_{nk} r_{nk} \log g_k(x_n)
                  - \frac{\lambda}{2} |w|^2

        by L-BFGS from where the gate stands. Where components can be separated, w would grow
        without end but for λ, and with 784 columns the last digits of w take thousands of steps:
        hence the limit. Every step gains, so that EM does, too. Jordan and Jacobs (1994) take
        Newton's method, which is iteratively reweighted least squares, and also stop it early.

        Args:
            x: Rows, shape (N, D).
            weights: Responsibilities r, shape (N, K).
            ridge: λ.
            steps: Of L-BFGS at the most.
        """
        u = self.maps.units(x).double().cpu().numpy()
        u = np.concatenate([u, np.ones_like(u[:, :1])], axis=1)
        r = weights.double().cpu().numpy()
        penalty = np.r_[np.full(u.shape[1] - 1, ridge), 1e-8]  # shifts of all b_k change nothing

        def loss_and_gradient(flat: np.ndarray) -> tuple[float, np.ndarray]:
            w = flat.reshape(r.shape[1], u.shape[1])
            log_gate = log_softmax(u @ w.T, axis=1)
            loss = 0.5 * (penalty * w**2).sum() - (r * log_gate).sum() / len(u)
            excess = r.sum(1, keepdims=True) * np.exp(log_gate) - r
            return loss, (excess.T @ u / len(u) + penalty * w).ravel()

        root = math.sqrt(self.maps.weight.shape[-1])  # w = V / √D, see `AffineMaps`
        weight, bias = self.maps.weight[0], self.maps.bias[0]
        start = torch.cat([weight / root, bias.unsqueeze(-1)], -1).detach().double().cpu().numpy()
        options = {"maxiter": steps, "ftol": 0.0, "gtol": 1e-7}
        found = minimize(
            loss_and_gradient, start.ravel(), jac=True, method="L-BFGS-B", options=options
        )
        solution = torch.from_numpy(found.x.reshape(start.shape)).to(weight)
        with torch.no_grad():
            weight.copy_(root * solution[:, :-1])
            bias.copy_(solution[:, -1])
