"""Reading of the rows of CSV and Parquet tables."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from pyro_moe.inference.errors import DataError, DataWarning, warn
from pyro_moe.rows import Rows, as_tensors

from .columns import (
    ANNOTATIONS,
    UNNAMED,
    annotations_of,
    as_array,
    check_classes,
    check_there,
    check_values,
    class_numbers,
    empty_columns,
    index_columns,
    row_numbers,
)
from .reading import Format, read


def table(
    path: str | Path,
    *,
    target: str | Sequence[str] | None = None,
    columns: str | Sequence[str] | None = None,
    index: str | Sequence[str] | None = None,
    drop_missing: bool = False,
    missing_targets: bool = False,
    classes: Mapping[str, Sequence[str]] | None = None,
    weights: str | None = None,
    groups: str | None = None,
    labels: str | None = None,
    sep: str | None = None,
    decimal: str = ".",
    encoding: str | None = None,
) -> Rows:
    r"""Read the rows of a CSV or Parquet file.

    An empty value is missing. In a column of numbers, so are ``NA``, ``nan``, ``null``, ``None``
    and the like; in a column of other texts they are texts, such as the country ``NA``.

    Args:
        path: The file: .csv, .tsv, .txt, any of them compressed as .gz, .bz2 or .xz, or .parquet.
            The first line of a text file has the column names. A compressed file may grow to 256
            MiB, or to a hundred times its size if that is more.
        target: Name of the column that becomes y, shape (N,); or several names, for y of shape
            (N, M). Integers, such as classes and counts, become int64.
        columns: Names of the columns that become x. If None, all but those that are named here.
            Then the first columns without a name are left out if they number or name the rows, as
            pandas writes them, and so are columns with neither name nor values.
        index: Names of columns that identify the rows and are not data. They are left out.
        drop_missing: Whether to leave out rows with a missing value in a selected column. With
            ``missing_targets``, rows with a missing target are kept.
        missing_targets: Whether targets may be missing. They become NaN.
        classes: The classes of text targets, by column, see `class_names`. A target becomes the
            index of its class, from 0.
        weights: Name of the column of weights, see `fit`, which are `Rows.annotations`.
        groups: Name of the column of groups, numbers or texts.
        labels: Name of the column with the component of each row, missing where it is not known.
        sep: The separator of a text file, one character, or ``r"\s+"`` for white space. If None, a
            tab in .tsv files, and a comma in others.
        decimal: The decimal mark of a text file, ``"."`` or ``","``.
        encoding: The encoding of a text file; if None, UTF-8, or what a byte order mark says.

    Returns:
        The rows, with x of shape (N, D) in the order of ``columns``, in the units of the file, as
        float64. Targets that are not integers are float64. `fit` converts them to the type of the
        parameters, which is float32 by default.

    Raises:
        DataError: If the file cannot be read, lacks a column or has no rows, or if a selected
            value is missing, not a finite number, too large for float32, or none of the classes.
            Messages count rows from 0.
        ValueError: If ``sep``, ``decimal`` or ``encoding`` is none of the above.

    Warns:
        DataWarning: If a column without a name is left out, or if a feature such as ``id``
            numbers the rows.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder, "my.csv")
        ...     _ = path.write_text("dose,weight,cured\n1.5,70,1\n2.5,81,0\n")
        ...     rows = table(path, target="cured")
        >>> rows.x.tolist(), rows.y
        ([[1.5, 70.0], [2.5, 81.0]], tensor([1, 0]))
    """
    path = Path(path)
    frame = read(path, Format(sep, decimal, encoding))
    targets, indices = _names(target), _names(index)
    given = zip(ANNOTATIONS, (weights, groups, labels), strict=True)
    about = {kind: name for kind, name in given if name is not None}
    for name in indices:
        check_there(name, frame, path)
    if columns is not None:
        features = _names(columns)
    else:
        features = _features(frame, targets, [*indices, *about.values()], path)
    frame = _select(frame, features, targets, indices, list(about.values()), path)
    if drop_missing:
        wanted = features if missing_targets else features + targets
        wanted = wanted + [name for kind, name in about.items() if kind != "labels"]
        frame = frame[~frame[wanted].isna().any(axis=1)]
    for name, names in (classes or {}).items():
        if name in targets:
            frame = frame.assign(**{name: class_numbers(frame[name], names, path)})
    if frame.empty:
        raise DataError(f"expected rows of data in {path}; got none")
    for name in features + targets:
        is_target = name in targets
        check_values(frame[name], path, decimal=decimal, target=is_target, may_lack=missing_targets)
    x = as_array(frame[features])
    described: dict[str, Any] = {"columns": tuple(map(str, features))}
    described["annotations"] = annotations_of(frame, about, path, decimal)
    if not targets:
        return Rows(as_tensors(x, dtype=torch.float64)[0], **described)
    y = as_array(frame[target if isinstance(target, str) else targets])
    tensors = as_tensors((x, y), dtype=torch.float64, missing_targets=missing_targets)
    return Rows(tensors[0], tensors[1], targets=tuple(map(str, targets)), **described)


def class_names(
    path: str | Path,
    column: str,
    *,
    sep: str | None = None,
    decimal: str = ".",
    encoding: str | None = None,
) -> tuple[str, ...] | None:
    r"""The classes in a text column of a CSV or Parquet file.

    Args:
        path: The file.
        column: Name of the column.
        sep: The separator, see `table`.
        decimal: The decimal mark, see `table`.
        encoding: The encoding, see `table`.

    Returns:
        Its distinct values in alphabetical order, or None if they are numbers. The texts ``NA``
        and ``null`` are classes; an empty value is none.

    Raises:
        DataError: If the file cannot be read, or lacks the column, or if all of its texts are
            numbers in another notation.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder, "my.csv")
        ...     _ = path.write_text("dose,country\n1.5,NA\n2.5,DE\n2.0,FR\n")
        ...     class_names(path, "country")
        ('DE', 'FR', 'NA')
    """
    path = Path(path)
    frame = read(path, Format(sep, decimal, encoding))
    check_there(column, frame, path)
    values = frame[column].dropna()
    if pd.api.types.is_numeric_dtype(values) or not len(values):
        return None
    check_classes(values, path, decimal)
    return tuple(sorted(set(values.astype(str))))


def _names(names: str | Sequence[str] | None) -> list[str]:
    if names is None:
        return []
    return [names] if isinstance(names, str) else list(names)


def _features(frame: pd.DataFrame, targets: list[str], indices: list[str], path: Path) -> list[str]:
    """All columns but targets and indices. Unnamed columns that are no data are left out."""
    left_out = dict.fromkeys(
        index_columns(frame),
        "its values identify the rows: to use it, list it in columns=… (on the command line, "
        "--columns)",
    )
    left_out |= dict.fromkeys(empty_columns(frame), "it has no values")
    features = [name for name in frame if name not in (*targets, *indices, *left_out)]
    for name in [name for name in left_out if name not in (*targets, *indices)]:
        message = f"left out column {name!r} of {path}: it has no name, and {left_out[name]}"
        warn(message, DataWarning)
    for name in row_numbers(frame[features]):
        warn(
            f"column {name!r} of {path} is used as a feature and numbers the rows: leave it out "
            f"with index={name!r} (on the command line, --index {name})",
            DataWarning,
        )
    for name in features:
        if UNNAMED.fullmatch(str(name)):
            raise DataError(
                f"expected a name of each column of {path}; got none of column {name!r}: leave it "
                f"out with index={name!r} (on the command line, --index {name!r}), or choose "
                "columns with columns=… (--columns)"
            )
    return features


def _select(
    frame: pd.DataFrame,
    features: list[str],
    targets: list[str],
    indices: list[str],
    about: list[str],
    path: Path,
) -> pd.DataFrame:
    if not features:
        raise DataError(f"expected at least one column for x in {path}; got none")
    used = features + targets + indices
    for name in [*used, *about]:
        check_there(name, frame, path)
        if used.count(name) > 1:
            raise DataError(f"expected each column of {path} once; got {name!r} twice")
    return frame[list(dict.fromkeys(features + targets + about))]
