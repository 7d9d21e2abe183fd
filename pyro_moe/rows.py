"""Rows of data, and the conversion of arrays, data frames and datasets to tensors."""

import reprlib
from collections import Counter
from collections.abc import Mapping, Sized
from dataclasses import dataclass, field, replace
from decimal import Decimal
from numbers import Integral, Real
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset, default_collate

from pyro_moe.inference.context import reproducible
from pyro_moe.inference.errors import DataError
from pyro_moe.lazy import is_instance

Data = Any  # a tensor, array, data frame, Rows, torch Dataset, or a tuple (x, y) of the first three


@dataclass(frozen=True)
class Rows:
    """N rows of data.

    Attributes:
        x: Features, shape (N, D). Those of a table are float64, so that no digit of the file is
            lost before `fit` converts them to the type of the parameters.
        y: Targets, shape (N,) or (N, M), or None.
        labels: The true component or class of each row, int64, shape (N,), or None. They are used
            for scores only, never for fitting.
        image_shape: ``(channels, height, width)`` if a row is a flattened image, or None.
        columns: Names of the columns of x, or None.
        targets: Names of the columns of y, or None.
        annotations: What else is known of the rows, tensors (N,) by the names ``"weights"``,
            ``"groups"`` and ``"labels"``. `fit` uses them, unless it is given others.
    """

    x: torch.Tensor
    y: torch.Tensor | None = None
    labels: torch.Tensor | None = None
    image_shape: tuple[int, int, int] | None = None
    columns: tuple[str, ...] | None = None
    targets: tuple[str, ...] | None = None
    annotations: Mapping[str, torch.Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.x)

    def take(self, chosen: torch.Tensor | slice) -> "Rows":
        """The rows at given indices, or of a slice."""
        y, labels = (None if part is None else part[chosen] for part in (self.y, self.labels))
        known = {name: column[chosen] for name, column in self.annotations.items()}
        return replace(self, x=self.x[chosen], y=y, labels=labels, annotations=known)

    def subsample(self, number: int, seed: int) -> "Rows":
        """At most ``number`` rows, drawn at random without replacement."""
        if len(self) <= number:
            return self
        with reproducible(seed):
            chosen = torch.randperm(len(self))[:number]
        return self.take(chosen)

    def split(self, test_share: float, seed: int) -> tuple["Rows", "Rows"]:
        """Split the rows into training and test rows at random, with whole groups in each.

        Args:
            test_share: Share of test rows, or of groups of rows, between 0 and 1. There is at
                least one of each.
            seed: Seed of the split.

        Raises:
            DataError: If there are fewer than two rows or groups.
            ValueError: If test_share is not between 0 and 1.
        """
        if not 0 < test_share < 1:
            raise ValueError(f"expected test_share between 0 and 1; got {test_share}")
        train, test = parted(len(self), test_share, seed, self.annotations.get("groups"))
        return self.take(torch.from_numpy(train)), self.take(torch.from_numpy(test))

    def with_targets(self) -> "Rows":
        """The rows that have a target."""
        return self.take(has_target(self.y).nonzero().flatten())


def parted(
    num_rows: int, test_share: float, seed: int, groups: Any = None
) -> tuple[np.ndarray, np.ndarray]:
    """The numbers of training rows and of test rows, at random.

    Args:
        num_rows: N.
        test_share: Share of test rows, or of groups.
        seed: Seed of the split.
        groups: Values that are equal in the rows of a group, which are not parted, (N,); or None.

    Raises:
        DataError: If there are fewer than two rows or groups.

    Example:
        >>> [rows.tolist() for rows in parted(4, 0.5, 0, groups=[7, 8, 7, 8])]
        [[1, 3], [0, 2]]
    """
    place = np.arange(num_rows)
    if groups is not None:
        place = np.unique(np.asarray(groups), return_inverse=True)[1]
    number, of = place.max(initial=-1) + 1, "rows" if groups is None else "groups"
    if number < 2:
        raise DataError(f"expected at least 2 {of}, to train and to test on; got {number}")
    num_test = min(max(round(test_share * number), 1), number - 1)
    order = np.random.default_rng(seed).permutation(number)
    train, test = order[num_test:], order[:num_test]
    if groups is None:
        return train, test
    return np.isin(place, train).nonzero()[0], np.isin(place, test).nonzero()[0]


def as_double(column: torch.Tensor) -> torch.Tensor:
    """A column in double precision, or as it is if it has whole numbers."""
    return column.double() if column.is_floating_point() else column


def has_target(y: Any) -> torch.Tensor:
    """Which rows of y, shape (N,) or (N, M), have no NaN, as a boolean tensor of shape (N,).

    Example:
        >>> has_target([[1.0, 2.0], [3.0, float("nan")]])
        tensor([ True, False])
    """
    y = as_tensor(y, "y")
    return ~y.reshape(len(y), -1).isnan().any(-1)


def looks_like_classes(y: torch.Tensor) -> bool:
    """Whether targets are probably classes or counts, which a normal density does not suit.

    They are if the known values of a column are two whole numbers, or at most ten whole numbers
    that are all of 0, …, k - 1 or all of 1, …, k, and some of them repeat.

    Args:
        y: Targets, shape (N,) or (N, M), NaN where missing.

    Example:
        >>> looks_like_classes(torch.tensor([0, 2, 1, 1, 0]))
        True
        >>> looks_like_classes(torch.tensor([0.0, 2.5, 1.0, 1.0, 0.0]))
        False
    """
    return any(map(_looks_like_classes, y.reshape(len(y), -1).T))


def _looks_like_classes(column: torch.Tensor) -> bool:
    known = column[~column.isnan()]
    values = known.unique().tolist()
    if not 2 <= len(values) <= 10 or len(values) == len(known) or any(v % 1 for v in values):
        return False
    return len(values) == 2 or (values[0] in (0, 1) and values[-1] - values[0] == len(values) - 1)


def as_tensors(
    data: Data,
    *,
    dtype: torch.dtype | None = None,
    missing_targets: bool = False,
    missing_features: bool = False,
) -> tuple[torch.Tensor, ...]:
    """Convert data to a tuple of validated tensors, ``(x,)`` or ``(x, y)``.

    Args:
        data: x of shape (N, D), or a pair (x, y): tensors, numpy arrays, pandas data frames,
            sparse matrices or anything that numpy converts to an array; or `Rows`; or a torch
            `Dataset` of rows. Masked values, None, NA and NaT are missing.
        dtype: Type of x and of floating-point columns; torch's default type if None. Integers and
            booleans in y become int64.
        missing_targets: Whether values of y may be NaN.
        missing_features: Whether values of x may be NaN.

    Returns:
        The tensors, x first.

    Raises:
        DataError: If x is not two-dimensional, if a value is not a finite number, if x and y have
            different numbers of rows, or if they have the same pandas index in different orders.
            Messages count rows from 0.

    Example:
        >>> as_tensors([[0.0, 1.0], [2.0, 3.0]])[0].shape
        torch.Size([2, 2])
    """
    columns = _columns(data)
    check_index(columns)
    names = ("x", "y", *(f"column {i}" for i in range(2, len(columns))))[: len(columns)]
    named = dict(zip(names, map(as_tensor, columns, names), strict=True))
    _check_shapes(named)
    dtype = dtype or torch.get_default_dtype()
    missing = {"x": missing_features, "y": missing_targets}
    labels = {"x": column_names(data), "y": data.targets if isinstance(data, Rows) else None}
    return tuple(
        _as_type(column, name, dtype, labels=labels.get(name), missing=missing.get(name, False))
        for name, column in named.items()
    )


def column_names(data: Data) -> tuple[str, ...] | None:
    """Names of the columns of x, or None if they have no names.

    Example:
        >>> import pandas as pd
        >>> column_names(pd.DataFrame({"dose": [1.5], "weight": [70]}))
        ('dose', 'weight')
    """
    if isinstance(data, Rows):
        return _checked_names(data.columns, data.x, "x")
    return _own_names(data[0] if isinstance(data, tuple) and data else data, "x")


def target_names(data: Data) -> tuple[str, ...] | None:
    """Names of the columns of y, or None if they have no names or there is no y.

    Example:
        >>> import pandas as pd
        >>> target_names(([[1.5], [2.5]], pd.Series([0, 1], name="cured")))
        ('cured',)
    """
    if isinstance(data, Rows):
        return _checked_names(data.targets, data.y, "y")
    return _own_names(data[1], "y") if isinstance(data, tuple) and len(data) > 1 else None


def _own_names(column: Any, name: str) -> tuple[str, ...] | None:
    """Names other than the numbers that pandas gives to columns without names."""
    labels = labels_of(column, name)
    made_up = labels == tuple(str(i) for i in range(len(labels or ())))
    return None if made_up else labels


def labels_of(column: Any, name: str) -> tuple[str, ...] | None:
    """The labels of a data frame's columns, or of a series, as text; None for other objects.

    The levels of a hierarchical label are joined by dots.

    Raises:
        DataError: If two columns have the same label.
    """
    if not hasattr(column, "to_numpy"):  # neither pandas nor polars
        return None
    if hasattr(column, "columns"):
        labels = list(column.columns)
    elif len(column.shape) == 1 and getattr(column, "name", None) not in (None, ""):
        labels = [column.name]
    else:
        return None
    joined = [".".join(map(str, k)) if isinstance(k, tuple) else str(k) for k in labels]
    return _checked_names(tuple(joined), column, name)


def _checked_names(names: tuple[str, ...] | None, column: Any, of: str) -> tuple[str, ...] | None:
    """Names of the columns of x or y, after a check that each column has one of its own."""
    if names is None or column is None:
        return None
    width = column.shape[1] if len(column.shape) == 2 else 1
    if len(names) != width:
        raise DataError(f"expected {width} names of columns of {of}; got {len(names)}")
    name, times = Counter(names).most_common(1)[0] if names else ("", 0)
    if times > 1:
        raise DataError(f"expected columns of {of} with distinct names; got {name!r} twice")
    return names


def numbered(name: str, size: int) -> tuple[str, ...]:
    """Default names of ``size`` columns of x or y.

    Example:
        >>> numbered("y", 1), numbered("x", 2)
        (('y',), ('x0', 'x1'))
    """
    return (name,) if size == 1 else tuple(f"{name}{i}" for i in range(size))


def check_index(columns: tuple[Any, ...]) -> None:
    """Check that pandas objects with the same index labels have them in the same order.

    Args:
        columns: x and others, of which those that are not of pandas are not checked.

    Raises:
        DataError: If the labels of x and another are the same in another order.
    """
    x, *others = columns
    for other in others:
        pandas = all(is_instance(column, "pandas", "DataFrame", "Series") for column in (x, other))
        if not pandas or len(x) != len(other) or x.index.equals(other.index):
            continue
        if x.index.isin(other.index).all() and other.index.isin(x.index).all():
            row = int((x.index != other.index).argmax())
            raise DataError(
                "expected rows of x and y in the same order; "
                f"got index {x.index[row]} in x and {other.index[row]} in y in row {row}"
            )


def _columns(data: Data) -> tuple[Any, ...]:
    if isinstance(data, Rows):
        return (data.x,) if data.y is None else (data.x, data.y)
    if isinstance(data, Dataset):
        data = collated([data[i] for i in range(length_of(data))])
    if not isinstance(data, tuple) and not _is_pair(data):
        return (data,)
    if not data:
        raise DataError("expected x or a pair (x, y); got an empty tuple")
    return tuple(data)


def length_of(dataset: Any) -> int:
    """The number of rows of a dataset.

    Raises:
        DataError: If it has none.
    """
    if not isinstance(dataset, Sized):
        raise DataError(f"expected a Dataset that has a length; got {type(dataset).__name__}")
    return len(dataset)


def collated(rows: list[Any]) -> Any:
    """The rows of a torch `Dataset` as tensors: x, or a list of x and y.

    Raises:
        DataError: If there are none, or if they cannot be stacked.
    """
    if not rows:
        raise DataError("expected a Dataset with rows; got none")
    try:
        return default_collate(list(map(_without_mask, rows)))
    except (RuntimeError, TypeError) as error:
        reason = str(error).splitlines()[0]
        raise DataError(f"expected a Dataset whose rows can be stacked; got {reason}") from error


def _without_mask(row: Any) -> Any:
    if isinstance(row, tuple):
        return tuple(map(_without_mask, row))
    return np.ma.filled(row.astype(float), np.nan)[()] if np.ma.isMaskedArray(row) else row


def _is_pair(data: Any) -> bool:
    """Whether data is a list of tensors, as `default_collate` returns it for rows (x, y)."""
    return isinstance(data, list) and len(data) > 0 and all(map(torch.is_tensor, data))


def as_tensor(column: Any, name: str) -> torch.Tensor:
    """Convert x or y to a tensor of real numbers. Values may be missing or infinite."""
    if torch.is_tensor(column):
        return _as_dense(column, name)
    array = _as_array(column, name)
    if array.dtype.kind not in "biuf":
        array = _as_numbers(
            array, name, column.columns if is_instance(column, "pandas", "DataFrame") else None
        )
    if array.dtype.kind == "u" and array.max(initial=0) > np.iinfo(np.int64).max:
        array = array.astype(np.float64)
    # Torch supports neither long doubles nor foreign byte order. The copy owns its memory.
    floating = np.float64 if array.dtype.itemsize > 8 else array.dtype.newbyteorder("=")
    dtype = floating if array.dtype.kind == "f" else np.int64
    return torch.from_numpy(np.array(array, dtype=dtype, order="C"))


def _as_dense(column: torch.Tensor, name: str) -> torch.Tensor:
    if column.is_complex():
        raise DataError(f"expected real numbers in {name}; got {column.dtype}")
    if column.is_nested:
        raise DataError(f"expected rows of equal length in {name}; got a nested tensor")
    column = column.detach()
    if column.is_inference() and not torch.is_inference_mode_enabled():
        column = column.clone()  # which gradients can pass through
    if column.dtype == torch.uint64:
        return as_tensor(column.cpu().numpy(), name)
    if isinstance(column, torch.masked.MaskedTensor):
        value = column.get_data().to_dense()
        value = value if value.is_floating_point() else value.double()
        return value.masked_fill(~column.get_mask().to_dense(), torch.nan)
    return column.to_dense()


def _as_array(column: Any, name: str) -> np.ndarray:
    """Convert x or y to an array. Masked values become NaN, or None among objects."""
    if is_instance(column, "scipy.sparse", "spmatrix", "sparray"):
        column = column.toarray()
    elif is_instance(column, "pandas", "DataFrame"):
        column = column.apply(_without_gaps)
    try:
        if isinstance(column, list | tuple) and any(map(np.ma.isMaskedArray, column)):
            column = np.ma.array(column)
        masked = np.ma.isMaskedArray(column) and column.dtype.names is None
        if masked and column.mask.any():
            number = column.dtype.kind in "biuf"
            return np.asarray(np.where(column.mask, np.nan if number else None, column.data))
        return np.asarray(column)
    except ValueError as error:
        raise DataError(
            f"expected rows of equal length in {name}, or a tuple (x, y); got unequal ones"
        ) from error


def _without_gaps(column: Any) -> Any:
    is_sparse = is_instance(column.dtype, "pandas", "SparseDtype")
    return column.sparse.to_dense() if is_sparse else column


def _as_numbers(array: np.ndarray, name: str, labels: Any) -> np.ndarray:
    """Convert an array of objects to numbers, with NaN for missing values."""
    import pandas as pd  # which knows all kinds of missing values

    numbers = np.full(array.shape, np.nan)
    missing = np.asarray(pd.isna(array))
    for index, value in np.ndenumerate(array):
        if missing[index]:
            continue
        if not isinstance(value, Real | Decimal | np.bool_) or isinstance(value, np.timedelta64):
            row = f" in row {index[0]}" if index else ""
            label = f", column {labels[index[1]]!r}" if labels is not None else ""
            raise DataError(
                f"expected numbers in {name}; got {reprlib.repr(str(value))}{row}{label}"
            )
        numbers[index] = float(value)
    whole = all(isinstance(value, Integral | np.bool_) for value in array.flat)
    largest = np.abs(numbers).max(initial=0)
    return array.astype(np.int64) if whole and largest < 2.0**63 else numbers


def _check_shapes(columns: dict[str, torch.Tensor]) -> None:
    x = columns["x"]
    if x.dim() != 2 or 0 in x.shape:
        raise DataError(f"expected x of shape (N, D); got shape {tuple(x.shape)}")
    for name, other in columns.items():
        if other.dim() == 0 or len(other) != len(x):
            raise DataError(
                f"expected as many rows in {name} as in x, {len(x)}; got shape {tuple(other.shape)}"
            )
        if 0 in other.shape:
            raise DataError(
                f"expected {name} of shape (N,) or (N, M); got shape {tuple(other.shape)}"
            )


def _as_type(
    column: torch.Tensor,
    name: str,
    dtype: torch.dtype,
    *,
    labels: tuple[str, ...] | None,
    missing: bool,
) -> torch.Tensor:
    if name != "x" and not column.is_floating_point():
        return column.to(torch.int64)
    result = column.to(dtype)
    finite = result.isfinite() | (result.isnan() if missing else torch.tensor(False))
    finite = finite.reshape(len(result), -1)
    if not finite.all():
        row, place = (~finite).nonzero()[0].tolist()
        value = column.reshape(len(column), -1)[row, place]
        limit = f", which {dtype} cannot hold," if value.isfinite() else ""
        label = f", column {labels[place]!r}" if labels is not None else ""
        gap = name == "x" and value.isnan()
        hint = (
            ": leave these rows out, impute them (evaluation.impute), or fit a story with a "
            "density of x, such as GMMMoE, with missing_features=True"
        )
        raise DataError(
            f"expected finite values in {name}; got {value.item()}{limit} in row {row}{label} "
            f"({(~finite.all(-1)).sum()} of {len(column)} rows have such values)"
            + (hint if gap else "")
        )
    return result
