"""Newton's method for concave likelihoods of affine maps: the M-step of gates and experts."""

from collections.abc import Callable

import torch

from pyro_moe.processes import Processes

from .blocks import Column, computed, totals, weighted_products

MAX_SIZE = 300
TOLERANCE = 1e-12
ROUNDING = 1e-15  # of a value, in which a smaller increase is lost

Derivatives = Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor, torch.Tensor]]


def softmax_newton(
    u: Column,
    targets: Column,
    start: torch.Tensor,
    *,
    ridge: torch.Tensor,
    steps: int,
) -> torch.Tensor:
    r"""Increase the penalized likelihood of a softmax of affine maps, by Newton's method.

    .. math:: \max_A \sum_{nm} t_{nm} \log \mathrm{softmax}_m(A u_n)
              - \tfrac{1}{2} \sum_{mc} \lambda_c A_{mc}^2

    Args:
        u: Inputs with a column of ones, shape (N, C).
        targets: Weighted shares t of the classes, shape (N, M), or (N, K, M) of K problems.
        start: Initial A, shape (M, C), or (K, M, C).
        ridge: λ, shape (C,), positive, because a constant may be added to all rows of A.
        steps: Maximum number of steps.

    Returns:
        A, of the shape of ``start``.

    Example:
        >>> u, t = torch.ones(1, 1).double(), torch.tensor([[1.0, 3.0]]).double()
        >>> ridge, start = torch.full((1,), 1e-9), torch.zeros(2, 1).double()
        >>> A = softmax_newton(u, t, start, ridge=ridge, steps=20)
        >>> (A[1] - A[0]).exp().round(decimals=3)
        tensor([3.], dtype=torch.float64)
    """
    u, targets = computed(u, targets)
    (number, size), problems = start.shape[-2:], start.shape[:-2].numel()
    penalty = ridge.to(start).expand(number, size).reshape(-1)
    curvature = penalty.diag().unsqueeze(0)

    def derivatives(flat: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        def terms(u_b: torch.Tensor, t_b: torch.Tensor) -> tuple[torch.Tensor, ...]:
            t_b = t_b.reshape(len(u_b), problems, number)
            logits = (u_b @ flat.view(-1, size).mT).view(t_b.shape)
            log_p, weights = logits.log_softmax(-1), t_b.sum(-1, keepdim=True)
            p = log_p.exp()
            value = (t_b * log_p).sum((0, -1))
            residuals = (t_b - weights * p).flatten(1)
            gradient = (residuals.mT @ u_b).view_as(flat)
            outer = (p.unsqueeze(-1) * u_b.unsqueeze(1).unsqueeze(1)).flatten(2).transpose(0, 1)
            weighted = weights.transpose(0, 1) * outer
            within = (weighted.mT @ u_b).view(-1, number, size, size)
            hessian = -outer.mT @ weighted
            parts = hessian.view(-1, number, size, number, size)
            parts.diagonal(dim1=1, dim2=3).add_(within.permute(0, 2, 3, 1))
            return value, gradient, hessian

        value, gradient, hessian = totals(terms, u, targets)
        value = value - 0.5 * (penalty * flat.square()).sum(-1)
        return value, gradient - penalty * flat, hessian + curvature

    return ascend(derivatives, start.reshape(problems, -1), steps=steps).view_as(start)


def glm_newton(
    u: torch.Tensor,
    log_likelihood: Derivatives,
    weights: torch.Tensor,
    start: torch.Tensor,
    *,
    ridge: torch.Tensor,
    steps: int,
    tolerance: float = TOLERANCE,
) -> torch.Tensor:
    r"""Increase the penalized likelihood of one target given an affine map, by Newton's method.

    .. math:: \max_a \sum_n r_n \log p(y_n \mid \langle a, u_n \rangle)
              - \tfrac{1}{2} \sum_c \lambda_c a_c^2

    Args:
        u: Inputs with a column of ones, shape (N, C).
        log_likelihood: Maps values of the affine map, shape (N,), or (N, K) of K problems, to
            log p of each, and to its first and its second derivative.
        weights: r, shape (N,), or (N, K).
        start: Initial a, shape (C,), or (K, C).
        ridge: λ, shape (C,), or (K, C).
        steps: Maximum number of steps.
        tolerance: As in `ascend`.

    Returns:
        a, of the shape of ``start``.
    """
    several, penalty = start.dim() > 1, ridge.diag_embed()
    r = weights.reshape(len(u), -1)

    def derivatives(a: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        values = u @ a.mT
        found = log_likelihood(values if several else values[:, 0])
        log_p, first, second = (part.reshape(r.shape) for part in found)
        products = weighted_products(u.mT, u.mT, -r * second)
        sums = (r * log_p).sum(0), (r * first).mT @ u, products
        Processes.sharing().add(sums)
        value = sums[0] - 0.5 * (ridge * a.square()).sum(-1)
        return value, sums[1] - ridge * a, sums[2] + penalty

    points = start.reshape(-1, u.shape[1])
    return ascend(derivatives, points, steps=steps, tolerance=tolerance).view_as(start)


def ascend(
    derivatives: Derivatives, start: torch.Tensor, *, steps: int, tolerance: float = TOLERANCE
) -> torch.Tensor:
    """Newton steps on concave functions, each halved until the function increases.

    Args:
        derivatives: Values (K,), gradients (K, P) and negative Hessians (K, P, P) of K functions
            at a point of each.
        start: The first points, shape (K, P).
        steps: Maximum number of steps.
        tolerance: The relative increase below which no step is taken.

    Returns:
        The last points. No value there is less than that at the start, up to rounding.

    Example:
        >>> cosine = lambda t: (t.cos().sum(-1), -t.sin(), t.cos().diag_embed())
        >>> ascend(cosine, torch.tensor([[1.0]]).double(), steps=9).abs() < 1e-9
        tensor([[True]])
    """
    point = start
    value, gradient, curvature = derivatives(point)
    moves = torch.ones_like(value, dtype=torch.bool)
    for _ in range(steps):
        curvature.diagonal(dim1=-2, dim2=-1).mul_(1.0 + 1e-10)
        factor, failed = torch.linalg.cholesky_ex(curvature)
        step = torch.cholesky_solve(gradient.unsqueeze(-1), factor).squeeze(-1)
        promised = (gradient * step).sum(-1)
        moves = moves & (failed == 0) & (promised > tolerance * (1.0 + value.abs()))
        least = value - ROUNDING * (1.0 + value.abs())
        length = moves.to(start)
        for _ in range(30):
            if not moves.any():
                return point
            candidate = torch.where(moves[:, None], point + length[:, None] * step, point)
            result = derivatives(candidate)
            higher = result[0] >= least + 1e-4 * length * promised
            if (higher | ~moves).all():
                break
            length = torch.where(higher, length, 0.5 * length)
        else:
            moves = moves & higher
            candidate = torch.where(moves[:, None], candidate, point)
            result = derivatives(candidate)
        point, (value, gradient, curvature) = candidate, result
    return point
