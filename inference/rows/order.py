"""Random orders and samples of rows, in memory that hardly grows with their number."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from ..context import reproducible, stream
from .on_disk import OnDisk, stored

WINDOW = 2**18
RUN = 64
SAMPLE, VALUES = 2**16, 2**22


def shuffled(number: int, *seeds: int) -> Iterator[torch.Tensor]:
    """Numbers of all rows in random order, window by window.

    A quarter of a million rows are one window, in an order of torch's generator. Windows of more
    rows are made of runs of 64 rows from all places, and each window is shuffled.

    Args:
        number: N.
        seeds: Integers that together identify the order of more than one window.

    Example:
        >>> sum(len(rows) for rows in shuffled(2**18 + 9, 0)) == 2**18 + 9
        True
    """
    if number <= WINDOW:
        yield torch.randperm(number)
        return
    own = torch.Generator().manual_seed(stream(*seeds))
    runs = torch.randperm(-(-number // RUN), generator=own)
    for some in runs.split(WINDOW // RUN):
        rows = (some.unsqueeze(-1) * RUN + torch.arange(RUN)).flatten()
        rows = rows[rows < number]
        yield rows[torch.randperm(len(rows), generator=own)]


def sample(columns: Sequence[Any], seed: int, most: int = SAMPLE) -> tuple[Any, ...]:
    """Columns of at most ``most`` rows as they are, and a random choice of more, in memory.

    There are fewer rows if they are wide.
    """
    rows = chosen(columns, seed, most)
    return tuple(column[rows] for column in columns)


def chosen(columns: Sequence[Any], seed: int, most: int = SAMPLE) -> Any:
    """The numbers of the rows of `sample`, or a slice of all."""
    number = len(columns[0])
    most = max(1, min(most, VALUES // max(1, columns[0].shape[1:].numel())))
    if number <= most:
        return slice(None)
    with reproducible(seed, 0, 12):
        return torch.randint(number, (most,)).unique()


def without(column: torch.Tensor, held: torch.Tensor) -> torch.Tensor:
    """The rows that are not held out, in their order.

    Args:
        column: N rows.
        held: Numbers of the held-out rows, in ascending order.
    """
    if not len(held):
        return column
    if not isinstance(column, OnDisk):
        kept = torch.ones(len(column), dtype=torch.bool).index_fill_(0, held, False)
        return column[kept.nonzero().flatten()]
    return stored(_kept(column, held))[0]


def _kept(column: OnDisk, held: torch.Tensor) -> Iterator[tuple[torch.Tensor]]:
    rows = max(1, 2**20 // max(1, column.shape[1:].numel()))
    for first in range(0, len(column), rows):
        block = column[first : first + rows]
        inside = held[(held >= first) & (held < first + len(block))] - first
        kept = torch.ones(len(block), dtype=torch.bool).index_fill_(0, inside, False)
        yield (block[kept],)
