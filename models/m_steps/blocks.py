"""Sums over blocks of rows, in memory that does not grow with the number of rows."""

from collections.abc import Callable, Iterator
from typing import Any

import torch

from pyro_moe.processes import Processes

ROWS = 4096
VALUES = 2**20
WIDE = 32
NEGLIGIBLE = 1e-12
SAMPLE = 2**16


def blocks(*columns: "Column") -> Iterator[tuple[torch.Tensor, ...]]:
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
        return iter([tuple(column[:] for column in columns)])
    return zip(*(column.split(rows) for column in columns), strict=True)


def computed(*columns: "Column") -> tuple["Column", ...]:
    """Columns of one block as tensors, which are then computed once, and others as they are."""
    blocks_of_rows = blocks(*columns)
    first = next(blocks_of_rows)
    return first if len(first[0]) == len(columns[0]) else columns


class Derived:
    """Rows that are computed from others, block by block: a function of tensors of N rows each.

    Args:
        of: A function of blocks of the columns, whose value has as many rows.
        *columns: Tensors of N rows each, or further derived rows.

    Example:
        >>> rows = Derived(torch.square, torch.arange(3.0))
        >>> rows.shape, rows[1:]
        (torch.Size([3]), tensor([1., 4.]))
    """

    def __init__(self, of: Callable[..., torch.Tensor], *columns: Any) -> None:
        self.of, self.columns = of, columns

    def __len__(self) -> int:
        return len(self.columns[0])

    def __getitem__(self, rows: Any) -> torch.Tensor:
        return self.of(*(column[rows] for column in self.columns))

    @property
    def shape(self) -> torch.Size:
        """The shape of all rows."""
        return torch.Size([len(self), *self[:1].shape[1:]])

    def split(self, rows: int) -> Iterator[torch.Tensor]:
        """Blocks of so many rows."""
        return (self[first : first + rows] for first in range(0, len(self), rows))


Column = torch.Tensor | Derived


def total(of: Callable[..., torch.Tensor], *columns: Column) -> torch.Tensor:
    """The sum of a function of blocks of rows, in this process and in others that share the rows.

    Args:
        of: A function of a block of each column, whose value is a sum over the rows of the block.
        *columns: Tensors of N rows each.

    Example:
        >>> total(lambda x: x.sum(0), torch.ones(5000, 2))
        tensor([5000., 5000.])
    """
    return totals(lambda *block: (of(*block),), *columns)[0]


def totals(
    of: Callable[..., tuple[torch.Tensor, ...]], *columns: Column
) -> tuple[torch.Tensor, ...]:
    """The same of several sums."""
    found: Any = None
    for block in blocks(*columns):
        terms = of(*block)
        found = terms if found is None else tuple(map(torch.add, found, terms))
    Processes.sharing().add(found)
    return found


def some_rows(*columns: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Tensors of N rows each, or of 65,536 rows at most that torch's generator chooses."""
    number = len(columns[0])
    if number <= SAMPLE:
        return columns
    rows = torch.randint(number, (SAMPLE,)).unique().to(columns[0].device)
    return tuple(column[rows] for column in columns)


def number_of(rows: torch.Tensor) -> int:
    """The number of rows, in all processes that share them."""
    number = torch.tensor([len(rows)], dtype=torch.float64, device=rows.device)
    Processes.sharing().add([number])
    return int(number.item())


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
