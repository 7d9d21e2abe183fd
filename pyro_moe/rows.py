"""Rows of data, and what users hold them in turned into tensors."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset, default_collate

from pyro_moe.inference.errors import DataError

Data = Any  # a tensor, array, data frame, Rows, torch Dataset, or a tuple (x, y) of the first three


@dataclass(frozen=True)
class Rows:
    """N rows of data.

    Attributes:
        x: Features, float32, shape (N, D).
        y: Targets, shape (N,) or (N, M), or None.
        labels: The true regime of each row where it is known, int64, shape (N,), or None. No
            story sees them; they are for scores.
        image_shape: ``(channels, height, width)`` if a row is a flattened image, or None.
    """

    x: torch.Tensor
    y: torch.Tensor | None = None
    labels: torch.Tensor | None = None
    image_shape: tuple[int, int, int] | None = None

    def __len__(self) -> int:
        return len(self.x)


def as_tensors(data: Data, *, dtype: torch.dtype | None = None) -> tuple[torch.Tensor, ...]:
    """Data as a tuple of checked tensors: ``(x,)`` or ``(x, y)``.

    Args:
        data: x of shape (N, D), or a pair (x, y): tensors, numpy arrays, pandas data frames or
            anything that numpy reads; or `Rows`, or a torch `Dataset` of such rows.
        dtype: What floating-point columns become; the default of torch if None.

    Returns:
        The tensors, x first.

    Raises:
        DataError: If x is not two-dimensional, a value is not a finite number, or x and y have
            different numbers of rows.

    Example:
        >>> as_tensors([[0.0, 1.0], [2.0, 3.0]])[0].shape
        torch.Size([2, 2])
    """
    if isinstance(data, Rows):
        data = (data.x,) if data.y is None else (data.x, data.y)
    elif isinstance(data, Dataset):
        data = default_collate([data[i] for i in range(len(data))])  # type: ignore[arg-type]
    columns = data if isinstance(data, tuple) or _is_pair(data) else (data,)
    names = ("x", "y", *(f"column {i}" for i in range(2, len(columns))))
    tensors = tuple(
        _as_tensor(column, name, dtype or torch.get_default_dtype())
        for column, name in zip(columns, names, strict=False)
    )
    _check_shapes(tensors)
    return tensors


def _is_pair(data: Any) -> bool:
    """Whether a list is what `default_collate` makes of rows (x, y)."""
    return isinstance(data, list) and all(torch.is_tensor(column) for column in data)


def _as_tensor(column: Any, name: str, dtype: torch.dtype) -> torch.Tensor:
    if not torch.is_tensor(column):
        array = np.asarray(column)
        if array.dtype.kind not in "biuf":
            raise DataError(f"expected numbers in {name}; got values such as {array.flat[0]!r}")
        column = torch.as_tensor(array.copy())
    if name == "x" or column.is_floating_point():
        column = column.to(dtype)
    finite = column.isfinite().reshape(len(column), -1).all(-1) if column.dim() else column
    if column.dim() and not finite.all():
        bad = (~finite).nonzero().flatten()
        value = column[bad[0]][~column[bad[0]].isfinite()].flatten()[0].item()
        raise DataError(
            f"expected finite values in {name}; got {value} in row {bad[0].item()} "
            f"({len(bad)} of {len(column)} rows have such values)"
        )
    return column


def _check_shapes(tensors: tuple[torch.Tensor, ...]) -> None:
    x = tensors[0]
    if x.dim() != 2 or 0 in x.shape:
        raise DataError(f"expected x of shape (N, D); got shape {tuple(x.shape)}")
    for other in tensors[1:]:
        if other.dim() == 0 or len(other) != len(x):
            raise DataError(
                f"expected as many rows in y as in x, {len(x)}; got shape {tuple(other.shape)}"
            )
