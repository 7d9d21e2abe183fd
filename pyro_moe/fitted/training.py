"""What a fit remembers of its training rows, and a warning of rows that are far from them."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import reduce
from typing import Any

import torch

from pyro_moe.inference.errors import DataWarning, warn

FAR, LEAST_ROWS = 10.0, 10
ROWS = 2**16
_EXPECTED = ContextVar("strange rows are expected", default=False)


@dataclass(frozen=True)
class Training:
    """A summary of training rows.

    Attributes:
        num_rows: N.
        low: The least value in each column of x, shape (D,), and likewise of y.
        high: The largest values, likewise.
        mean: The mean of x, shape (D,).
        fingerprint: SHA-256 of the rows; empty until they are saved.
        log_densities: log p(x) of at most 4,096 rows in ascending order, see
            `evaluation.novelty`; None until they are saved, and if x is not modeled.
        sampled: Whether the fit has a sample of its training rows, because they were on disk.
        total: The sum of the weights of the rows; None without weights.
    """

    num_rows: int
    low: tuple[torch.Tensor, ...]
    high: tuple[torch.Tensor, ...]
    mean: torch.Tensor
    fingerprint: str = ""
    log_densities: torch.Tensor | None = None
    sampled: bool = False
    total: float | None = None

    @classmethod
    def of(cls, data: tuple[torch.Tensor, ...]) -> "Training":
        """The summary of rows, given as tensors of N rows each.

        Example:
            >>> Training.of((torch.tensor([[1.0, 5.0], [3.0, 5.0]]),)).high
            (tensor([3., 5.]),)
        """
        low = tuple(_over_blocks(torch.amin, torch.minimum, column, torch.inf) for column in data)
        high = tuple(_over_blocks(torch.amax, torch.maximum, column, -torch.inf) for column in data)
        known = reduce(torch.add, ((~part.isnan()).sum(0) for part in data[0].split(ROWS)))
        sums = reduce(torch.add, (part.double().nansum(0) for part in data[0].split(ROWS)))
        mean = (
            (sums / known).to(low[0]).clamp(low[0], high[0])
        )  # a constant's may be off by rounding
        return cls(len(data[0]), low, high, mean)

    def warn_of_far(
        self, x: torch.Tensor, names: tuple[str, ...] | None, *, of_images: bool = False
    ) -> None:
        r"""Warn of the first column of x with a value far outside of its range in training.

        A value is far if it is beyond the range by ten times its width:

        .. math:: \max(l_d - x_d, x_d - h_d) > 10 (h_d - l_d)

        This is any change of a column that was constant. Pixels of images have one range. The
        range of fewer than ten training rows says too little.

        Args:
            x: Rows, shape (N, D).
            names: Names of the columns.
            of_images: Whether rows are images.
        """
        if self.num_rows < LEAST_ROWS or _EXPECTED.get():
            return
        low, high = (ends[0].to(x.device) for ends in (self.low, self.high))
        if of_images:
            low, high = low.min().expand_as(low), high.max().expand_as(high)
        most = FAR * (high - low)
        least, largest = _filled(x, torch.inf).amin(0), _filled(x, -torch.inf).amax(0)
        columns = (torch.maximum(low - least, largest - high) > most).nonzero().flatten()
        if len(columns) == 0:
            return
        column = int(columns[0])
        beyond = torch.maximum(low[column] - x[:, column], x[:, column] - high[column])
        row = int((beyond > most[column]).nonzero()[0])
        ends = f"{low[column].item():.6g} to {high[column].item():.6g}"
        seen = f"from {ends}" if low[column] < high[column] else f"{low[column].item():.6g} always"
        others = len(columns) - 1
        more = f" ({others} more columns have such values)" if others else ""
        where = f"column {column}" if names is None else f"column {names[column]!r}"
        warn(
            f"expected rows like those of training, where {where} of x was {seen}; "
            f"got {x[row, column].item():.6g} in row {row}{more}: see evaluation.novelty",
            DataWarning,
        )


def _over_blocks(end: Any, both: Any, column: torch.Tensor, empty: float) -> torch.Tensor:
    return reduce(both, (end(_filled(part, empty), 0) for part in column.split(ROWS)))


def _filled(column: torch.Tensor, value: float) -> torch.Tensor:
    """The column with a value in place of NaN."""
    return column.masked_fill(column.isnan(), value) if column.is_floating_point() else column


def fingerprint(data: tuple[torch.Tensor, ...]) -> str:
    """SHA-256 of rows, given as tensors of N rows each."""
    digest = hashlib.sha256()
    for column in data:
        digest.update(f"{column.dtype}{tuple(column.shape)}".encode())
        for part in column.split(ROWS):
            digest.update(part.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


@contextmanager
def strange_rows_expected() -> Iterator[None]:
    """Give no warning of rows that are far from the training rows, in this block or function."""
    before = _EXPECTED.set(True)
    try:
        yield
    finally:
        _EXPECTED.reset(before)
