"""Weighted moments: the M-step of a Gaussian mixture."""

from collections.abc import Callable

import torch

from .blocks import Column, total, weighted_products


def weighted_moments(
    z: torch.Tensor,
    weights: torch.Tensor,
    units: Callable[[torch.Tensor], torch.Tensor] | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    r"""Weighted means and covariances of points for each component.

    .. math:: \mu_k = \frac{1}{N_k} \sum_n r_{nk} z_n, \quad
              S_k = \frac{1}{N_k} \sum_n r_{nk} (z_n - \mu_k)(z_n - \mu_k)^\top, \quad
              N_k = \sum_n r_{nk}

    Args:
        z: Points, shape (N, L).
        weights: r, shape (N, K), with a positive sum in each column.
        units: A map of each row that is applied to z first, or None.

    Returns:
        μ of shape (K, L), and S of shape (K, L, L).

    Example:
        >>> loc, covariance = weighted_moments(torch.tensor([[0.0], [2.0]]), torch.ones(2, 1))
        >>> loc, covariance
        (tensor([[1.]]), tensor([[[1.]]]))
    """
    counts = total(lambda r: r.sum(0), weights)

    def average(of: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> torch.Tensor:
        def terms(u: torch.Tensor, r: torch.Tensor) -> torch.Tensor:
            return of((u if units is None else units(u)).mT.contiguous(), r)

        found = total(terms, z, weights)
        return found / counts.reshape(-1, *(1 for _ in found.shape[1:]))

    def squares(u: torch.Tensor, r: torch.Tensor) -> torch.Tensor:
        centered = u - loc.unsqueeze(-1)
        return weighted_products(centered, centered, r)

    loc = average(lambda u, r: (u @ r).mT)
    return loc, average(squares)


def mean_and_variance(x: Column, weights: Column) -> tuple[torch.Tensor, torch.Tensor]:
    """The mean and the variance of each column of x, in double precision.

    Args:
        x: Rows, shape (N, D).
        weights: Shape (N, 1), or (N, D) for one of each entry.

    Example:
        >>> mean_and_variance(torch.tensor([[1.0], [3.0]]), torch.ones(2, 1))
        (tensor([2.], dtype=torch.float64), tensor([1.], dtype=torch.float64))
    """
    number = total(lambda w: w.double().sum(0), weights)
    mean = total(lambda part, w: (w * part.double()).sum(0), x, weights) / number

    def squares(part: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        return (w * (part.double() - mean).square()).sum(0)

    return mean, total(squares, x, weights) / number


def shrunk(
    covariance: torch.Tensor, variance: torch.Tensor, shrinkage: float, *, common: bool
) -> torch.Tensor:
    r"""Covariances shrunk toward a diagonal matrix (Ledoit and Wolf 2004).

    .. math:: (1 - \lambda)\, S_k + \lambda T, \quad
              T = \bar v I \text{ or } T = \mathrm{diag}(v_1, \dots, v_L)

    with v the variances of the columns and v̄ their mean.

    Args:
        covariance: S, shape (K, L, L).
        variance: v, the variance of each column over all points, shape (L,).
        shrinkage: λ, from 0 to 1.
        common: Whether T = v̄ I. Otherwise T is the diagonal matrix of v, with v̄ in place of
            the variance of constant columns.

    Returns:
        Shape (K, L, L).

    Example:
        >>> shrunk(torch.ones(1, 2, 2), torch.ones(2), 0.5, common=True)
        tensor([[[1.0000, 0.5000],
                 [0.5000, 1.0000]]])
    """
    average = variance.mean().expand_as(variance)
    target = torch.where((variance <= 0) | common, average, variance).diag_embed()
    return (1.0 - shrinkage) * covariance + shrinkage * target


def distant_rows(x: torch.Tensor, number: int) -> torch.Tensor:
    """Indices of ``number`` distant rows of x, shape (N, D), by k-means++ and torch's generator."""
    from sklearn.cluster import kmeans_plusplus

    seed = int(torch.randint(2**31 - 1, ()))
    _, rows = kmeans_plusplus(x.cpu().numpy(), number, random_state=seed)
    return torch.as_tensor(rows, dtype=torch.long)
