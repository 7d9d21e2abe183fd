"""The M-step of a softmax gate: a multinomial logistic regression on responsibilities."""

import numpy as np
from scipy.optimize import minimize
from scipy.special import log_softmax


def softmax_regression(
    u: np.ndarray, weights: np.ndarray, start: np.ndarray, *, ridge: float, steps: int
) -> np.ndarray:
    r"""The likeliest coefficients of a softmax of an affine map.

    .. math:: \max_A \frac{1}{N} \sum_{nk} r_{nk} \log \mathrm{softmax}_k(A (u_n, 1))
              - \frac{\lambda}{2} |A|^2

    by L-BFGS from where it starts. Where components can be separated, A would grow without end
    but for λ, and with 784 columns its last digits take thousands of steps: hence the limit.
    Every step gains, so that EM does, too. Jordan and Jacobs (1994) take Newton's method, which
    is iteratively reweighted least squares, and also stop it early. Intercepts have a penalty of
    1e-8 instead of λ: to shift them all changes nothing.

    Args:
        u: Inputs, shape (N, C).
        weights: Responsibilities r, shape (N, K).
        start: A to start from, shape (K, C + 1), intercepts last.
        ridge: λ.
        steps: Of L-BFGS at the most.

    Returns:
        A, shape (K, C + 1).

    Example:
        >>> u, r = np.array([[-1.0], [1.0]]), np.array([[0.8, 0.2], [0.2, 0.8]])
        >>> A = softmax_regression(u, r, np.zeros((2, 2)), ridge=0.0, steps=50)
        >>> (A[1, 0] - A[0, 0]).round(3) == np.log(4).round(3)
        np.True_
    """
    u = np.concatenate([u, np.ones_like(u[:, :1])], axis=1)
    penalty = np.r_[np.full(u.shape[1] - 1, ridge), 1e-8]

    def loss_and_gradient(flat: np.ndarray) -> tuple[float, np.ndarray]:
        w = flat.reshape(start.shape)
        log_gate = log_softmax(u @ w.T, axis=1)
        loss = 0.5 * (penalty * w**2).sum() - (weights * log_gate).sum() / len(u)
        excess = weights.sum(1, keepdims=True) * np.exp(log_gate) - weights
        return loss, (excess.T @ u / len(u) + penalty * w).ravel()

    options = {"maxiter": steps, "ftol": 0.0, "gtol": 1e-7}
    found = minimize(loss_and_gradient, start.ravel(), jac=True, method="L-BFGS-B", options=options)
    return found.x.reshape(start.shape)
