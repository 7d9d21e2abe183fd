"""Weighted least squares: the M-step of affine normal experts."""

import torch

from .blocks import Column, totals, weighted_products

RIDGE = 1e-11
REFINEMENTS = 5
WIDE, RIDGE_OF_WIDE = 60, 1e-7


def weighted_least_squares(
    u: Column,
    targets: Column,
    weights: Column,
    *,
    intercept: bool = True,
    shrinkage: float = 0.0,
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

    Shrinkage κ adds the prior that all slopes of a map together explain the variance v of its
    target, with the weight of κ rows, see `penalty`.

    Args:
        u: Inputs, shape (N, C).
        targets: t, shape (N, P).
        weights: r, shape (N, K).
        intercept: Whether there is one. Without it the last row of A is zero.
        shrinkage: κ.

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
        square = inputs.square().sum()
        return weighted_products(inputs, both, r), r.mT @ t_b.square(), r.sum(0), square, number

    products, squared_targets, counts, squares, number = totals(terms, u, targets, weights)
    size = products.shape[-2]
    gram, moments = products[..., :size], products[..., size:]
    counts = counts.clamp_min(1e-12)
    square = squares / (size * number)
    wide = u.shape[1] > WIDE
    ridge = (RIDGE_OF_WIDE if wide else RIDGE) * square * counts.reshape(-1, 1, 1)
    regular = gram + ridge * torch.eye(size).to(gram)
    factors = torch.linalg.lu_factor(regular)
    found = torch.linalg.lu_solve(*factors, moments)
    if shrinkage:
        more = penalty(gram, moments, squared_targets, counts, found, shrinkage)
        return torch.linalg.solve(regular + more.diag_embed(), moments)
    for _ in range(0 if wide else REFINEMENTS):
        found = found + torch.linalg.lu_solve(*factors, moments - gram @ found)
    return found


def penalty(
    gram: torch.Tensor,
    moments: torch.Tensor,
    squared_targets: torch.Tensor,
    counts: torch.Tensor,
    found: torch.Tensor,
    shrinkage: float,
) -> torch.Tensor:
    r"""The ridge of a prior of the slopes, by which together they explain the variance of t.

    .. math:: A_{kd} \sim N\Bigl(0, \frac{v_k}{\kappa \sum_d s_{kd}^2}\Bigr), \quad
              \lambda_k = \kappa\, (1 - R_k^2) \sum_d s_{kd}^2

    with the variances v of t and s² of the inputs, and the share R² of v that least squares
    explains, all by the weights of component k. λ is the variance of the residuals over that of
    the prior. It vanishes where the inputs explain t.

    Args:
        gram: :math:`\sum_n r_{nk} (u_n, 1) (u_n, 1)^\top`, shape (K, C + 1, C + 1).
        moments: :math:`\sum_n r_{nk} (u_n, 1)\, t_n^\top`, shape (K, C + 1, P).
        squared_targets: :math:`\sum_n r_{nk} t_n^2`, shape (K, P).
        counts: N_k, shape (K,).
        found: A by least squares, shape (K, C + 1, P).
        shrinkage: κ.

    Returns:
        λ of each slope, and zero of the intercept, shape (K, C + 1).
    """
    number = counts.unsqueeze(-1)
    residuals = squared_targets + (found * (gram @ found - 2 * moments)).sum(1)
    variance = squared_targets - moments[:, -1].square() / number
    unexplained = residuals.sum(-1) / variance.sum(-1).clamp_min(1e-300)
    spread = gram.diagonal(dim1=-2, dim2=-1) / number - (gram[:, -1] / number).square()
    strength = shrinkage * unexplained.clamp(0, 1) * spread[:, :-1].sum(-1)
    slopes = torch.ones_like(spread)
    slopes[:, -1] = 0.0
    return strength.unsqueeze(-1) * slopes
