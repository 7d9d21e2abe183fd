"""Later data made to match the fitted data: columns by name, targets of the fitted type."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch.utils.data import IterableDataset

from pyro_moe.inference.errors import DataError, DataWarning, warn
from pyro_moe.lazy import is_instance
from pyro_moe.rows import Data, Rows, column_names, labels_of, target_names

MOST_NAMES = 8  # in a message
Names = Sequence[str] | None


def described(data: Data) -> dict[str, Any]:
    """What data say of themselves: the names of columns and of targets, and the shape of images.

    Example:
        >>> import pandas as pd
        >>> described((pd.DataFrame({"dose": [1.5]}), pd.Series([1], name="cured")))
        {'columns': ('dose',), 'targets': ('cured',), 'image_shape': None}
    """
    if isinstance(data, IterableDataset):
        named = {name: getattr(data, name, None) for name in ("columns", "targets")}
        return {**named, "image_shape": None}
    return {
        "columns": column_names(data),
        "targets": target_names(data),
        "image_shape": data.image_shape if isinstance(data, Rows) else None,
    }


def in_order(data: Data, columns: Names, targets: Names = None) -> Data:
    """Data with their columns in a given order, by name.

    Columns without names stay where they are.

    Args:
        data: Data as for `fit`.
        columns: Names of the columns of x, or None.
        targets: Names of the columns of y, or None.

    Raises:
        DataError: If a named column is missing, or two columns have the same name.

    Warns:
        DataWarning: If there are further columns. They are left out.

    Example:
        >>> import pandas as pd
        >>> in_order(pd.DataFrame({"age": [70], "dose": [1.5]}), ["dose", "age"])
           dose  age
        0   1.5   70
    """
    if isinstance(data, Rows):
        x = _places(column_names(data), columns, "x")
        y = _places(target_names(data), targets, "y")
        return replace(
            data,
            x=_take(data.x, x),
            y=_take(data.y, y),
            columns=data.columns if x is None else tuple(columns or ()) or None,
            targets=data.targets if y is None else tuple(targets or ()) or None,
        )
    if not isinstance(data, tuple):
        return _take(data, _places(labels_of(data, "x"), columns, "x"))
    named = zip(data, "xy", (columns, targets), strict=False)
    first = [_take(part, _places(labels_of(part, name), like, name)) for part, name, like in named]
    return (*first, *data[2:])


def _places(names: Names, fitted: Names, of: str) -> list[int] | None:
    """Where the fitted columns are among those named, or None to leave columns where they are."""
    if names is None:
        return None
    numbers = [str(i) for i in range(len(names))]
    if fitted is None and sorted(names) == sorted(numbers):
        fitted = numbers
    made_up = list(names) == numbers and set(names) != set(fitted or ())  # by pandas
    if fitted is None or made_up:
        return None
    place = {name: i for i, name in enumerate(names)}
    missing = [name for name in fitted if name not in place]
    if missing:
        raise DataError(
            f"expected {_listed(missing)} among the columns of {of}, as fitted; "
            f"got {_listed(names)}"
        )
    others = sorted(place.keys() - set(fitted), key=place.__getitem__)
    if others:
        warn(
            f"expected the fitted columns of {of} alone; got also {_listed(others)}, left out",
            DataWarning,
        )
    return [place[name] for name in fitted]


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(map(repr, names[:MOST_NAMES]))
    more = len(names) - MOST_NAMES
    return shown if more <= 0 else f"{shown} and {more:,} more"


def _take(column: Any, places: list[int] | None) -> Any:
    if column is None or places is None or len(column.shape) < 2:
        return column
    if places == list(range(column.shape[1])):
        return column
    is_frame = is_instance(column, "pandas", "DataFrame")
    return column.iloc[:, places] if is_frame else column[:, places]


def expect_width(column: torch.Tensor, like: torch.Tensor, name: str) -> None:
    """Check that x or y, shape (N,) or (N, D), has as many columns as the fitted one.

    Raises:
        DataError: If it has another number of columns.
    """
    width, fitted = column.shape[1:].numel(), like.shape[1:].numel()
    if width != fitted:
        raise DataError(f"expected {name} with {fitted} columns, as fitted; got {width}")


def as_fitted(y: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Targets with the shape and the type of the fitted ones, shape (N,) or (N, M).

    Args:
        y: Targets. Missing ones are NaN.
        like: Fitted targets.

    Raises:
        DataError: If y has another number of columns, or fractions where integers were fitted.
    """
    expect_width(y, like, "y")
    y = y.reshape(len(y), *like.shape[1:])
    if like.is_floating_point():
        return y.to(like.dtype)
    fractions = (~y.isnan() & (y != y.round())).reshape(len(y), -1) if y.is_floating_point() else y
    if y.is_floating_point() and fractions.any():
        row = int(fractions.any(-1).nonzero()[0])
        value = y[row].reshape(-1)[fractions[row]][0].item()
        raise DataError(f"expected integers in y, as fitted; got {value:.6g} in row {row}")
    return y if y.isnan().any() else y.to(like.dtype)
