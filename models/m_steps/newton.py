"""Newton's method for concave likelihoods of affine maps: the M-step of gates and experts."""

from collections.abc import Callable

import torch

MAX_SIZE = 300

Derivatives = Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor, torch.Tensor]]


def softmax_newton(
    u: torch.Tensor,
    targets: torch.Tensor,
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
        targets: Weighted shares t of the classes, shape (N, M).
        start: Initial A, shape (M, C).
        ridge: λ, shape (C,), positive, because a constant may be added to all rows of A.
        steps: Maximum number of steps.

    Returns:
        A, shape (M, C).

    Example:
        >>> u, t = torch.ones(1, 1).double(), torch.tensor([[1.0, 3.0]]).double()
        >>> ridge, start = torch.full((1,), 1e-9), torch.zeros(2, 1).double()
        >>> A = softmax_newton(u, t, start, ridge=ridge, steps=20)
        >>> (A[1] - A[0]).exp().round(decimals=3)
        tensor([3.], dtype=torch.float64)
    """
    weights = targets.sum(-1, keepdim=True)

    def derivatives(flat: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        weight = flat.view_as(start)
        log_p = (u @ weight.mT).log_softmax(-1)
        p = log_p.exp()
        value = (targets * log_p).sum() - 0.5 * (ridge * weight.square()).sum()
        gradient = (targets - weights * p).mT @ u - ridge * weight
        scaled = weights * p
        within = torch.einsum("nm,nc,nd->mcd", scaled, u, u)
        outer = (p.unsqueeze(-1) * u.unsqueeze(1)).flatten(1)  # (N, M C)
        hessian = -(outer.mT @ (weights * outer))
        blocks = hessian.view(*start.shape, *start.shape)
        blocks.diagonal(dim1=0, dim2=2).add_((within + ridge.diag_embed()).permute(1, 2, 0))
        return value, gradient.flatten(), hessian

    return ascend(derivatives, start.flatten(), steps=steps).view_as(start)


def glm_newton(
    u: torch.Tensor,
    log_likelihood: Derivatives,
    weights: torch.Tensor,
    start: torch.Tensor,
    *,
    ridge: torch.Tensor,
    steps: int,
) -> torch.Tensor:
    r"""Increase the penalized likelihood of one target given an affine map, by Newton's method.

    .. math:: \max_a \sum_n r_n \log p(y_n \mid \langle a, u_n \rangle)
              - \tfrac{1}{2} \sum_c \lambda_c a_c^2

    Args:
        u: Inputs with a column of ones, shape (N, C).
        log_likelihood: Maps the N values of the affine map to log p of each row, and to its first
            and its second derivative, each of shape (N,).
        weights: r, shape (N,).
        start: Initial a, shape (C,).
        ridge: λ, shape (C,).
        steps: Maximum number of steps.

    Returns:
        a, shape (C,).
    """

    def derivatives(a: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        log_p, first, second = log_likelihood(u @ a)
        value = (weights * log_p).sum() - 0.5 * (ridge * a.square()).sum()
        gradient = u.mT @ (weights * first) - ridge * a
        return value, gradient, u.mT @ (-(weights * second).unsqueeze(-1) * u) + ridge.diag()

    return ascend(derivatives, start, steps=steps)


def ascend(derivatives: Derivatives, start: torch.Tensor, *, steps: int) -> torch.Tensor:
    """Newton steps on a concave function, each halved until the function increases.

    Args:
        derivatives: The value, the gradient (P,) and the negative Hessian (P, P) at a point.
        start: The first point, shape (P,).
        steps: Maximum number of steps.

    Returns:
        The last point. The value there is at least that at the start.

    Example:
        >>> cosine = lambda t: (t.cos().sum(), -t.sin(), t.cos().diag())
        >>> ascend(cosine, torch.tensor([1.0]).double(), steps=9).abs() < 1e-9
        tensor([True])
    """
    point = start
    value, gradient, curvature = derivatives(point)
    for _ in range(steps):
        ridge = 1e-10 * curvature.diagonal().abs().max() + 1e-300
        factor, failed = torch.linalg.cholesky_ex(
            curvature + ridge * torch.eye(len(start)).to(start)
        )
        if failed:
            return point
        step = torch.cholesky_solve(gradient.unsqueeze(-1), factor).squeeze(-1)
        promised = (gradient @ step).item()
        if not promised > 1e-12 * (1.0 + abs(value.item())):
            return point
        for halvings in range(30):
            candidate = point + 0.5**halvings * step
            result = derivatives(candidate)
            if result[0] >= value + 1e-4 * 0.5**halvings * promised:
                break
        else:
            return point
        point, (value, gradient, curvature) = candidate, result
    return point
