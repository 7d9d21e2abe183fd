"""The rows of datasets, data loaders and memory maps, left on disk if they are many."""

import mmap
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset

from pyro_moe.inference.context import reproducible, without_warnings
from pyro_moe.inference.errors import DataError
from pyro_moe.inference.rows import OnDisk, stored
from pyro_moe.inference.rows.on_disk import IN_MEMORY, give_back
from pyro_moe.rows import Data, as_tensor, as_tensors, collated, length_of

ROWS = 4096
Block = tuple[Any, ...]


def on_disk(data: Data, *, missing_targets: bool = False, seed: int = 0) -> Data:
    """Data as tensors on disk, if they come in blocks, and other data as they are.

    A torch `Dataset` is read once, by index or in its order, and so is a `DataLoader`. An iterable
    dataset has rows, or blocks of rows: x of shape (D,) or (B, D). Rows of more than four
    megabytes are written to a temporary file, in the folder that TMPDIR names. Memory maps of
    numpy are used as they are, if they hold numbers of a type that torch has.

    Args:
        data: As for `fit`.
        missing_targets: Whether values of y may be NaN.
        seed: Seed of the random numbers of datasets and loaders, such as a shuffled order.

    Raises:
        DataError: As in `as_tensors`; rows are counted in their block.
    """
    if isinstance(data, Dataset | DataLoader):
        with reproducible(seed, 0, 14):
            return stored(_checked(_blocks(data), missing_targets))
    columns = data if isinstance(data, tuple) else (data,)
    maps = [column for column in columns if isinstance(column, np.memmap)]
    if not maps or sum(column.nbytes for column in maps) <= IN_MEMORY:
        return data
    number = len(columns[0])
    if any(len(column) != number for column in columns):
        return data  # `as_tensors` says what is wrong
    checked = _checked(_of_columns(columns), missing_targets)
    if not all(map(_fits_torch, maps)):
        return stored(checked)
    for _ in checked:  # read all rows once
        pass
    return tuple(_as_it_is(c) if isinstance(c, np.memmap) else c for c in columns)


def _checked(blocks: Iterable[Block], missing_targets: bool) -> Iterator[tuple[torch.Tensor, ...]]:
    """Blocks as validated tensors."""
    first, dtype = 0, None
    for block in blocks:
        dtype = dtype or _precision(as_tensor(block[0], "x"))
        try:
            tensors = as_tensors(block, dtype=dtype, missing_targets=missing_targets)
        except DataError as error:
            raise DataError(f"{error}, in the block from row {first} on") from error
        yield tensors
        first += len(tensors[0])


def _precision(x: torch.Tensor) -> torch.dtype:
    exact = x.is_floating_point() and x.dtype != torch.float64
    return torch.float32 if exact else torch.float64


def _blocks(data: Any) -> Iterator[Block]:
    if isinstance(data, IterableDataset | DataLoader):
        return _of_iterable(iter(data))
    return _of_rows(data)


def _of_rows(dataset: Any) -> Iterator[Block]:
    """Blocks of a dataset that is read by index."""
    number = length_of(dataset)
    for first in range(0, number, ROWS):
        numbers = list(range(first, min(first + ROWS, number)))
        several = getattr(dataset, "__getitems__", None)
        rows = several(numbers) if callable(several) else [dataset[i] for i in numbers]
        yield _columns(collated(list(rows)))


def _of_iterable(items: Iterator[Any]) -> Iterator[Block]:
    """Blocks of rows, or of blocks: x has shape (D,) or (B, D)."""
    for item in items:
        dimensions = np.ndim(_columns(item)[0])
        if dimensions not in (1, 2):
            raise DataError(
                f"expected rows x of shape (D,), or blocks (B, D); got {dimensions} dimensions"
            )
        if dimensions == 2:
            yield _columns(item)
            continue
        rows = [item, *islice(items, ROWS - 1)]
        yield _columns(collated(rows))


def _of_columns(columns: Block) -> Iterator[Block]:
    """Blocks of arrays, whose pages are given back."""
    for first in range(0, len(columns[0]), ROWS):
        yield tuple(column[first : first + ROWS] for column in columns)
        for pages in filter(None, map(_pages, columns)):
            give_back(pages)


def _pages(column: Any) -> mmap.mmap | None:
    """The mapped file of an array. With the mode "c", its pages may have changes."""
    if not isinstance(column, np.memmap) or column.mode == "c":
        return None
    own: Any = column
    while own is not None and not isinstance(own, mmap.mmap):
        own = getattr(own, "base", None)
    return own


def _columns(block: Any) -> Block:
    return tuple(block) if isinstance(block, tuple | list) else (block,)


def _fits_torch(column: np.memmap) -> bool:
    native = column.dtype in (np.float32, np.float64, np.int64) and column.dtype.isnative
    return native and all(step >= 0 for step in column.strides)


def _as_it_is(column: np.memmap) -> OnDisk:
    """Rows that share the memory of a map."""
    with without_warnings(UserWarning, "The given NumPy array is not writable"):
        rows = torch.from_numpy(column)
    return OnDisk.of(rows, _pages(column))
