"""Sums over blocks of rows, in memory that does not grow with the number of rows."""

from collections.abc import Iterator

import torch

ROWS = 4096
VALUES = 2**20
WIDE = 32
NEGLIGIBLE = 1e-12


def blocks(*columns: torch.Tensor) -> Iterator[tuple[torch.Tensor, ...]]:
    """Split tensors of N rows each into blocks of the same rows.

    Args:
        *columns: Tensors of N rows each. The widest limits the size of the blocks.

    Example:
        >>> [len(x) for x, _ in blocks(torch.zeros(5000, 1000), torch.zeros(5000))]
        [1048, 1048, 1048, 1048, 808]
    """
    width = max(column[:1].numel() for column in columns)
    rows = max(1, min(ROWS, VALUES // max(width, 1)))
    if len(columns[0]) <= rows:
        return iter([columns])
    return zip(*(column.split(rows) for column in columns), strict=True)


def weighted_products(u: torch.Tensor, v: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    r"""Weighted sums of products for each component.

    .. math:: P_k = \sum_n r_{nk}\, u_n v_n^\top

    Rows of negligible weight are left out if u has many columns: each row then has weight in
    about one component only.

    Args:
        u: Shape (C, N), or (K, C, N) for one of each component.
        v: Shape (P, N), or (K, P, N).
        weights: r, shape (N, K).

    Returns:
        P, shape (K, C, P).

    Example:
        >>> weighted_products(torch.ones(1, 2), torch.ones(1, 2), torch.ones(2, 1))
        tensor([[[2.]]])
    """
    if u.shape[-2] < WIDE:
        return (weights.mT.unsqueeze(1) * u) @ v.mT
    products = []
    for k, r in enumerate(weights.mT):
        used = r > NEGLIGIBLE * r.max()
        left, right = (part[k] if part.dim() == 3 else part for part in (u, v))
        products.append((r[used] * left[:, used]) @ right[:, used].mT)
    return torch.stack(products)
