"""Weighted least squares: the M-step of affine normal experts."""

import torch

RIDGE = 1e-7


def weighted_least_squares(
    u: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor, *, intercept: bool = True
) -> torch.Tensor:
    r"""Weighted least-squares coefficients of K affine maps.

    .. math:: A_k = \arg\min_A \sum_n r_{nk}\, |t_n - A^\top (u_n, 1)|^2
              + \epsilon N_k |A|^2, \quad N_k = \sum_n r_{nk}

    The ridge ε is 1e-7 times the mean square of the entries of (u, 1). If the rows of a component
    do not determine A_k, it selects the solution of smallest norm up to terms of order ε.

    Args:
        u: Inputs, shape (N, C).
        targets: t, shape (N, P).
        weights: r, shape (N, K).
        intercept: Whether there is one. Without it the last row of A is zero.

    Returns:
        A, shape (K, C + 1, P), with the intercept in the last row, in double precision.

    Example:
        >>> u = torch.arange(4.0).unsqueeze(-1)
        >>> weighted_least_squares(u, 2.0 * u + 1.0, torch.ones(4, 1)).round(decimals=3)
        tensor([[[2.],
                 [1.]]], dtype=torch.float64)
    """
    u, t, r = u.double(), targets.double(), weights.double()
    u = torch.cat([u, u.new_full((len(u), 1), float(intercept))], -1)
    ridge = RIDGE * u.square().mean() * torch.eye(u.shape[-1], dtype=u.dtype, device=u.device)
    solutions = []
    for r_k in r.T:
        rows = r_k > 1e-12  # most responsibilities are negligible
        weighted = u[rows] * r_k[rows].unsqueeze(-1)
        gram = weighted.mT @ u[rows] + ridge * r_k.sum().clamp_min(1e-12)
        solutions.append(torch.linalg.solve(gram, weighted.mT @ t[rows]))
    return torch.stack(solutions)
