"""The M-step of a Gaussian mixture: weighted moments."""

import torch
from sklearn.cluster import kmeans_plusplus


def weighted_moments(z: torch.Tensor, weights: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    r"""Means and covariances of points under the weights of each component.

    .. math:: \mu_k = \frac{1}{N_k} \sum_n r_{nk} z_n, \quad
              S_k = \frac{1}{N_k} \sum_n r_{nk} (z_n - \mu_k)(z_n - \mu_k)^\top, \quad
              N_k = \sum_n r_{nk}

    Args:
        z: Points, shape (N, L).
        weights: r, shape (N, K), each component with some.

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
        rows = share > 0  # of many columns each row belongs to hardly more than one component
        centered = z[rows] - loc[k]
        covariance[k] = centered.mT @ (share[rows].unsqueeze(-1) * centered)
    return loc, covariance


def shrunk(
    covariance: torch.Tensor, variance: torch.Tensor, shrinkage: float, *, common: bool
) -> torch.Tensor:
    r"""Covariances shrunk towards a diagonal matrix (Ledoit and Wolf 2004).

    .. math:: (1 - \lambda)\, S_k + \lambda T

    Args:
        covariance: S, shape (K, L, L).
        variance: Of each column over all points, shape (L,).
        shrinkage: λ.
        common: Whether T is the mean variance times I, and not the variance of each column;
            constant columns take the mean all the same.

    Example:
        >>> shrunk(torch.ones(1, 2, 2), torch.ones(2), 0.5, common=True)
        tensor([[[1.0000, 0.5000],
                 [0.5000, 1.0000]]])
    """
    average = variance.mean().expand_as(variance)
    target = torch.where((variance <= 0) | common, average, variance).diag_embed()
    return (1.0 - shrinkage) * covariance + shrinkage * target


def distant_rows(x: torch.Tensor, number: int) -> torch.Tensor:
    """Numbers of rows of x, shape (N, D), that lie far apart (k-means++), by torch's generator."""
    seed = int(torch.randint(2**31 - 1, ()))
    _, rows = kmeans_plusplus(x.cpu().numpy(), number, random_state=seed)
    return torch.as_tensor(rows, dtype=torch.long)
