"""The M-step of affine maps under a normal likelihood: weighted least squares."""

import torch

RIDGE = 1e-7


def weighted_least_squares(
    u: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor
) -> torch.Tensor:
    r"""The coefficients of K affine maps, each by the weights of its component.

    .. math:: \min_{A_k} \sum_n r_{nk}\, |t_n - A_k^\top (u_n, 1)|^2 + \epsilon N_k |A_k|^2

    with ε a ten-millionth of the mean square of (u, 1). It sets to zero the coefficients of
    directions in which the rows of a component do not vary.

    Args:
        u: Inputs, shape (N, C).
        targets: t, shape (N, P).
        weights: r, shape (N, K).

    Returns:
        A of shape (K, C + 1, P), intercepts last, in double precision.

    Example:
        >>> u = torch.arange(4.0).unsqueeze(-1)
        >>> weighted_least_squares(u, 2.0 * u + 1.0, torch.ones(4, 1)).round(decimals=3)
        tensor([[[2.],
                 [1.]]], dtype=torch.float64)
    """
    u, t, r = u.double(), targets.double(), weights.double()
    u = torch.cat([u, torch.ones_like(u[:, :1])], -1)
    ridge = RIDGE * u.square().mean() * torch.eye(u.shape[-1], dtype=u.dtype, device=u.device)
    solutions = []
    for r_k in r.T:
        rows = r_k > 1e-12  # most responsibilities are next to nothing
        weighted = u[rows] * r_k[rows].unsqueeze(-1)
        gram = weighted.mT @ u[rows] + ridge * r_k.sum().clamp_min(1e-12)
        solutions.append(torch.linalg.solve(gram, weighted.mT @ t[rows]))
    return torch.stack(solutions)
