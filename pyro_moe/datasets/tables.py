"""Reading of CSV and Parquet tables."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from pyro_moe.inference.errors import DataError
from pyro_moe.rows import Rows, as_tensors

from .download import one_line


def table(
    path: str | Path,
    *,
    target: str | Sequence[str] | None = None,
    columns: str | Sequence[str] | None = None,
    drop_missing: bool = False,
    missing_targets: bool = False,
    classes: Mapping[str, Sequence[str]] | None = None,
) -> Rows:
    r"""Read the rows of a CSV or Parquet file.

    Args:
        path: The file. The first line of a CSV file has the column names.
        target: Name of the column that becomes y, shape (N,); or several names, for y of shape
            (N, M). Integers, such as classes and counts, become int64.
        columns: Names of the columns that become x; all but the target if None.
        drop_missing: Whether to leave out rows with a missing value in a selected column. With
            ``missing_targets``, rows with a missing target are kept.
        missing_targets: Whether targets may be missing. They become NaN.
        classes: The classes of text targets, by column, see `class_names`. A target becomes the
            index of its class, from 0.

    Returns:
        The rows, with x of shape (N, D) in the order of ``columns``, in the units of the file.

    Raises:
        DataError: If the file cannot be read, lacks a column or has no rows, or if a selected
            value is missing, not a finite number, or none of the classes. Messages count rows
            from 0.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder, "my.csv")
        ...     _ = path.write_text("dose,weight,cured\n1.5,70,1\n2.5,81,0\n")
        ...     rows = table(path, target="cured")
        >>> rows.x, rows.y
        (tensor([[ 1.5000, 70.0000], [ 2.5000, 81.0000]]), tensor([1, 0]))
    """
    path = Path(path)
    frame = _read_frame(path)
    targets = _names(target)
    others = [name for name in frame if name not in targets]
    features = others if columns is None else _names(columns)
    frame = _select(frame, features, targets, path)
    if drop_missing:
        wanted = features if missing_targets else list(frame)
        frame = frame[~frame[wanted].isna().any(axis=1)]
    for name, names in (classes or {}).items():
        if name in targets:
            frame = frame.assign(**{name: _class_numbers(frame[name], names, path)})
    if frame.empty:
        raise DataError(f"expected rows of data in {path}; got none")
    for name in frame:
        _check_column(frame[name], path, target=name in targets, may_lack=missing_targets)
    x = _as_array(frame[features])
    names = tuple(map(str, features))
    if not targets:
        return Rows(as_tensors(x, dtype=torch.float32)[0], columns=names)
    y = _as_array(frame[target if isinstance(target, str) else targets])
    tensors = as_tensors((x, y), dtype=torch.float32, missing_targets=missing_targets)
    return Rows(tensors[0], tensors[1], columns=names, targets=tuple(map(str, targets)))


def class_names(path: str | Path, column: str) -> tuple[str, ...] | None:
    r"""The classes in a text column of a CSV or Parquet file.

    Args:
        path: The file.
        column: Name of the column.

    Returns:
        Its distinct values in alphabetical order, or None if they are numbers.

    Raises:
        DataError: If the file cannot be read, or lacks the column.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder, "my.csv")
        ...     _ = path.write_text("dose,animal\n1.5,dog\n2.5,cat\n2.0,dog\n")
        ...     class_names(path, "animal")
        ('cat', 'dog')
    """
    path = Path(path)
    values = _select(_read_frame(path), [column], [], path)[column].dropna()
    numbers = pd.api.types.is_numeric_dtype(values) or not len(values)
    return None if numbers else tuple(sorted(set(values.astype(str))))


def _class_numbers(column: pd.Series, names: Sequence[str], path: Path) -> pd.Series:
    """The index of each value among the classes. Missing values stay missing."""
    known = column.dropna().astype(str)
    strange = known[~known.isin(names)]
    if len(strange):
        raise DataError(
            f"expected one of {', '.join(names)} in column {column.name!r} of {path}; "
            f"got {strange.iloc[0]!r} in row {strange.index[0]}"
        )
    number = {name: place for place, name in enumerate(names)}
    return known.map(number).reindex(column.index).astype("Int64")


def _read_frame(path: Path) -> pd.DataFrame:
    if path.suffix.lower() not in (".csv", ".parquet"):
        raise DataError(f"expected a .csv or .parquet file; got {path}")
    if not path.is_file():
        raise DataError(f"expected an existing file; got {path}")
    try:
        # Nullable types keep integers as integers if values are missing.
        if path.suffix.lower() == ".csv":
            frame = pd.read_csv(path, dtype_backend="numpy_nullable", low_memory=False)
        else:
            frame = pd.read_parquet(path, dtype_backend="numpy_nullable")
    except ImportError as error:
        raise DataError(
            f"expected pyarrow, to read {path}; got none: pip install 'pyro-moe[parquet]'"
        ) from error
    except (OSError, ValueError) as error:
        raise DataError(f"expected a table in {path}; got {one_line(error)}") from error
    if path.suffix.lower() == ".csv" and not isinstance(frame.index, pd.RangeIndex):
        raise DataError(
            f"expected as many values in a row of {path} as there are column names, "
            f"{frame.shape[1]}; got more"
        )
    decimal = [name for name in frame if pd.api.types.infer_dtype(frame[name]) == "decimal"]
    # The index counts the rows of the file, for messages after rows are dropped.
    return frame.astype(dict.fromkeys(decimal, "Float64")).reset_index(drop=True)


def _names(names: str | Sequence[str] | None) -> list[str]:
    if names is None:
        return []
    return [names] if isinstance(names, str) else list(names)


def _select(
    frame: pd.DataFrame, features: list[str], targets: list[str], path: Path
) -> pd.DataFrame:
    if not features:
        raise DataError(f"expected at least one column for x in {path}; got none")
    used = features + targets
    for name in used:
        if name not in frame:
            there = ", ".join(map(repr, frame))
            raise DataError(f"expected a column {name!r} in {path}; got {there}")
        if used.count(name) > 1:
            raise DataError(f"expected each column of {path} once; got {name!r} twice")
    return frame[used]


def _check_column(column: pd.Series, path: Path, *, target: bool, may_lack: bool) -> None:
    """Check that a column has finite numbers in all rows, except where a target may be missing."""
    where = f"column {column.name!r} of {path}"
    known = column.dropna()
    if not pd.api.types.is_numeric_dtype(column) and len(known):
        readable = pd.to_numeric(known.astype(str), errors="coerce").notna()
        row = known.index[0] if readable.all() else readable.index[~readable][0]
        hint = (
            "text targets require classes=… (on the command line, --experts categorical)"
            if target
            else "choose other columns with columns=… (on the command line, --columns)"
        )
        raise DataError(
            f"expected numbers in {where}; got {str(known[row])!r} in row {row}: {hint}"
        )
    if len(known) < len(column) and not (target and may_lack):
        missing = column.index[column.isna()]
        keep = (
            "; or keep them for a model of x with missing_targets=True (--missing-targets)"
            if target
            else ""
        )
        raise DataError(
            f"expected a value in every row of {where}; got none in row {missing[0]} "
            f"({len(missing)} of {len(column)} rows lack one): leave them out with "
            f"drop_missing=True (on the command line of fit, --drop-missing){keep}"
        )
    infinite = known.index[np.isinf(known.to_numpy(dtype=np.float64))]
    if len(infinite):
        raise DataError(
            f"expected finite numbers in {where}; got {known[infinite[0]]} in row {infinite[0]}"
        )


def _as_array(columns: pd.DataFrame | pd.Series) -> np.ndarray:
    types = [columns.dtype] if isinstance(columns, pd.Series) else columns.dtypes
    whole = all(
        pd.api.types.is_integer_dtype(kind) or pd.api.types.is_bool_dtype(kind) for kind in types
    )
    if columns.isna().to_numpy().any():
        return columns.to_numpy(dtype=np.float64, na_value=np.nan)
    return columns.to_numpy(dtype=np.int64 if whole else np.float64)
