"""Weighted least squares: the M-step of affine normal experts."""

import torch

from .blocks import Column, totals, weighted_products

RIDGE = 1e-11
REFINEMENTS = 5
WIDE, RIDGE_OF_WIDE = 60, 1e-7


def weighted_least_squares(
    u: Column, targets: Column, weights: Column, *, intercept: bool = True
) -> torch.Tensor:
    r"""Weighted least-squares coefficients of K affine maps.

    .. math:: A_k = \arg\min_A \sum_n r_{nk}\, |t_n - A^\top (u_n, 1)|^2
              + \epsilon N_k |A|^2, \quad N_k = \sum_n r_{nk}

    The ridge ε is 1e-11 times the mean square of the entries of (u, 1). If the rows of a component
    do not determine A_k, it selects the solution of smallest norm up to terms of order ε.
    Refinement by the residuals of the normal equations takes its effect away where columns are
    nearly dependent, such as a year and its square.

    With more than 60 columns, such as pixels, ε is 1e-7 and stays: some columns do not vary among
    the rows of a component, and would else have the coefficients that fit the rows of others, of
    which it has a share of 1e-9.

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

    def terms(*block: torch.Tensor) -> tuple[torch.Tensor, ...]:
        u_b, t_b, r = (part.double() for part in block)
        last = u_b.new_full((len(u_b), 1), float(intercept))
        inputs = torch.cat([u_b, last], -1).mT
        both = torch.cat([inputs, t_b.mT])
        number = last.new_full((), len(last))
        return weighted_products(inputs, both, r), r.sum(0), inputs.square().sum(), number

    products, counts, squares, number = totals(terms, u, targets, weights)
    size = products.shape[-2]
    gram, moments = products[..., :size], products[..., size:]
    counts = counts.clamp_min(1e-12)
    square = squares / (size * number)
    wide = u.shape[1] > WIDE
    ridge = (RIDGE_OF_WIDE if wide else RIDGE) * square * counts.reshape(-1, 1, 1)
    factors = torch.linalg.lu_factor(gram + ridge * torch.eye(size).to(gram))
    found = torch.linalg.lu_solve(*factors, moments)
    for _ in range(0 if wide else REFINEMENTS):
        found = found + torch.linalg.lu_solve(*factors, moments - gram @ found)
    return found
