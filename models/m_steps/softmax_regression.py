"""Multinomial logistic regression on responsibilities: the M-step of a softmax gate."""

import numpy as np
import torch

from pyro_moe.processes import Processes


def softmax_regression(
    u: np.ndarray, weights: np.ndarray, start: np.ndarray, *, ridge: float, steps: int
) -> np.ndarray:
    r"""Penalized maximum-likelihood coefficients of a softmax of affine maps.

    .. math:: \max_{W, b} \frac{1}{N} \sum_{nk} r_{nk} \log \mathrm{softmax}_k(W u_n + b)
              - \frac{\lambda}{2} |W|^2 - \frac{10^{-8}}{2} |b|^2

    The maximization is by L-BFGS. Without the penalty, W would grow without bound if the
    components are separable. The penalty on b makes b unique, because adding a constant to all
    intercepts does not change the softmax.

    With 784 columns, convergence to many digits takes thousands of iterations. The number of
    iterations is therefore limited. Each of them increases the objective, so that the procedure
    is generalized EM. Jordan and Jacobs (1994) also stop early, with iteratively reweighted least
    squares (Newton's method) in place of L-BFGS.

    Args:
        u: Inputs, shape (N, C).
        weights: Responsibilities r, shape (N, K).
        start: Initial A = (W, b), shape (K, C + 1), intercepts in the last column.
        ridge: λ.
        steps: Maximum number of L-BFGS iterations.

    Returns:
        A, shape (K, C + 1).

    Example:
        >>> u, r = np.array([[-1.0], [1.0]]), np.array([[0.8, 0.2], [0.2, 0.8]])
        >>> A = softmax_regression(u, r, np.zeros((2, 2)), ridge=0.0, steps=50)
        >>> (A[1, 0] - A[0, 0]).round(3) == np.log(4).round(3)
        np.True_
    """
    from scipy.optimize import minimize
    from scipy.special import log_softmax

    u = np.concatenate([u, np.ones_like(u[:, :1])], axis=1)
    penalty = np.r_[np.full(u.shape[1] - 1, ridge), 1e-8]

    def loss_and_gradient(flat: np.ndarray) -> tuple[float, np.ndarray]:
        w = flat.reshape(start.shape)
        log_gate = log_softmax(u @ w.T, axis=1)
        excess = weights.sum(1, keepdims=True) * np.exp(log_gate) - weights
        sums = np.r_[-(weights * log_gate).sum(), (excess.T @ u).ravel(), len(u)]
        Processes.sharing().add([torch.from_numpy(sums)])
        means = sums[:-1] / sums[-1]
        return means[0] + 0.5 * (penalty * w**2).sum(), means[1:] + (penalty * w).ravel()

    options = {"maxiter": steps, "ftol": 0.0, "gtol": 1e-7}
    found = minimize(loss_and_gradient, start.ravel(), jac=True, method="L-BFGS-B", options=options)
    return found.x.reshape(start.shape)
