"""Weighted moments: the M-step of a Gaussian mixture."""

import torch


def weighted_moments(z: torch.Tensor, weights: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    r"""Weighted means and covariances of points for each component.

    .. math:: \mu_k = \frac{1}{N_k} \sum_n r_{nk} z_n, \quad
              S_k = \frac{1}{N_k} \sum_n r_{nk} (z_n - \mu_k)(z_n - \mu_k)^\top, \quad
              N_k = \sum_n r_{nk}

    Args:
        z: Points, shape (N, L).
        weights: r, shape (N, K), with a positive sum in each column.

    Returns:
        μ of shape (K, L), and S of shape (K, L, L).

    Example:
        >>> loc, covariance = weighted_moments(torch.tensor([[0.0], [2.0]]), torch.ones(2, 1))
        >>> loc, covariance
        (tensor([[1.]]), tensor([[[1.]]]))
    """
    shares = weights / weights.sum(0)
    loc, covariance = shares.T @ z, z.new_empty(shares.shape[1], z.shape[1], z.shape[1])
    for k, share in enumerate(shares.T):
        rows = share > 0  # with many columns, a row has weight in about one component only
        centered = z[rows] - loc[k]
        covariance[k] = centered.mT @ (share[rows].unsqueeze(-1) * centered)
    return loc, covariance


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
