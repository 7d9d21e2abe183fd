"""Columns of a table: which of them are data, and checks of their values."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from pyro_moe.inference.errors import DataError
from pyro_moe.text import in_one_line

from .reading import MISSING

UNNAMED = re.compile(r"Unnamed: \d+(\.\d+)*|__index_level_\d+__")
NUMBERS = {"id", "index", "level_0", "no", "row", "row_id", "rowid"}
ANNOTATIONS = ("weights", "groups", "labels")
LARGEST = float(np.finfo(np.float32).max)
_GAPS = r"' _\u2019\u00a0\u202f"
_GROUPED = re.compile(
    rf"[+-]?[1-9]\d{{0,2}}(?P<mark>[,.{_GAPS}])\d{{3}}((?P=mark)\d{{3}})*([.,]\d*)?"
)
TARGETS = "text targets require classes=… (on the command line, --experts categorical)"
FEATURES = (
    "choose other columns with columns=… (on the command line, --columns), or write a formula, in "
    "which text is a factor (pyro_moe.mixture; --formula)"
)
_YES_NO = {"yes", "no", "y", "n", "t", "f", "true", "false"}


def index_columns(frame: pd.DataFrame) -> list[str]:
    """The first columns, as long as they have no name and number or name the rows.

    Example:
        >>> index_columns(pd.DataFrame({"Unnamed: 0": [2, 0, 1], "dose": [1.5, 2.5, 2.0]}))
        ['Unnamed: 0']
    """
    found: list[str] = []
    for place, name in enumerate(frame):
        values = frame.iloc[:, place]
        if not UNNAMED.fullmatch(str(name)) or pd.api.types.is_float_dtype(values):
            break
        if not values.is_unique or pd.api.types.is_bool_dtype(values):
            break
        found.append(name)
    return found


def row_numbers(frame: pd.DataFrame) -> list[str]:
    """The columns that number the rows and have a name that says so, such as "id".

    Example:
        >>> row_numbers(pd.DataFrame({"id": [3, 1, 2], "dose": [1, 3, 2]}))
        ['id']
    """
    return [
        name
        for place, name in enumerate(frame)
        if name.casefold() in NUMBERS
        and pd.api.types.is_integer_dtype(values := frame.iloc[:, place].dropna())
        and len(frame) > 1
        and values.nunique() == len(frame) == values.max() - values.min() + 1
    ]


def empty_columns(frame: pd.DataFrame) -> list[str]:
    """The columns that have neither a name nor a value.

    Example:
        >>> empty_columns(pd.DataFrame({"dose": [1.5, 2.5], "Unnamed: 1": [None, None]}))
        ['Unnamed: 1']
    """
    empty = frame.isna().all().tolist()
    return [n for n, lacks in zip(frame, empty, strict=True) if lacks and UNNAMED.fullmatch(str(n))]


def check_there(name: str, frame: pd.DataFrame, path: Path) -> None:
    """Check that exactly one column has a name."""
    names = list(map(str, frame))
    if name not in names:
        like = [repr(other) for other in names if _plain(other) == _plain(name)]
        hint = f": did you mean {' or '.join(like)}?" if like else ""
        there = ", ".join(map(repr, names))
        raise DataError(f"expected a column {name!r} in {path}; got {there}{hint}")
    if names.count(name) > 1:
        raise DataError(
            f"expected each column name of {path} once; got {name!r} {names.count(name)} times"
        )


def _plain(name: str) -> str:
    return " ".join(name.casefold().split())


def class_numbers(column: pd.Series, names: Sequence[str], path: Path) -> pd.Series:
    """The index of each value among the classes. Missing values stay missing."""
    known = column.dropna().astype(str)
    strange = known[~known.isin(names)]
    if len(strange):
        known_names = ", ".join(map(in_one_line, names))
        raise DataError(
            f"expected one of {known_names} in column {column.name!r} of {path}; "
            f"got {strange.iloc[0]!r} in row {strange.index[0]}"
        )
    number = {name: place for place, name in enumerate(names)}
    return known.map(number).reindex(column.index).astype("Int64")


def check_values(
    column: pd.Series, path: Path, *, decimal: str, target: bool, may_lack: bool
) -> None:
    """Check that a column has finite numbers in all rows, except where a target may be missing."""
    where = f"column {column.name!r} of {path}"
    known = column.dropna()
    if not pd.api.types.is_numeric_dtype(column) and len(known):
        _refuse_text(known, where, decimal, TARGETS if target else FEATURES)
    if not (target and may_lack):
        keep = "; or keep them for a model of x with missing_targets=True (--missing-targets)"
        _refuse_gaps(column, where, keep if target else "")
    size = np.abs(known.to_numpy(dtype=np.float64))
    for bad, wanted in (
        (np.isinf(size), "finite numbers"),
        (size > LARGEST, "numbers that float32 can hold"),
    ):
        if bad.any():
            row = known.index[bad][0]
            raise DataError(f"expected {wanted} in {where}; got {known[row]} in row {row}")


def _refuse_gaps(column: pd.Series, where: str, keep: str = "") -> None:
    missing = column.index[column.isna()]
    if len(missing):
        raise DataError(
            f"expected a value in every row of {where}; got none in row {missing[0]} "
            f"({len(missing)} of {len(column)} rows lack one): leave them out with "
            f"drop_missing=True (on the command line of fit, --drop-missing){keep}"
        )


def annotations_of(
    frame: pd.DataFrame, names: Mapping[str, str], path: Path, decimal: str
) -> dict[str, torch.Tensor]:
    """The weights, groups and labels of rows as tensors (N,): groups by number, no label as NaN.

    Args:
        frame: The rows.
        names: The names of columns by the names of arguments of `fit`.
        path: The file, for messages.
        decimal: The decimal mark of the file.

    Raises:
        DataError: If a weight or a group is missing, or a weight or a label is not a number.
    """
    found = {}
    for kind, name in names.items():
        column, where = frame[name], f"column {name!r} of {path}"
        if kind != "labels":
            _refuse_gaps(column, where)
        if kind == "groups":
            found[kind] = torch.from_numpy(pd.factorize(column)[0].astype(np.int64))
            continue
        known = column.dropna()
        if len(known) and not pd.api.types.is_numeric_dtype(column):
            _refuse_text(known, where, decimal, f"{kind} are numbers")
        numbers = column.to_numpy(np.float64, na_value=np.nan)
        found[kind] = torch.from_numpy(np.array(numbers))  # pandas may share one to be read
    return found


def check_classes(column: pd.Series, path: Path, decimal: str) -> None:
    """Check that texts are not numbers in another notation."""
    known = column.dropna().astype(str)
    if len(known) and all(number_advice(text, decimal) for text in known):
        _refuse_text(known, f"column {column.name!r} of {path}", decimal, TARGETS)


def _refuse_text(known: pd.Series, where: str, decimal: str, hint: str) -> None:
    texts = known.astype(str)
    strange = pd.to_numeric(texts, errors="coerce").isna() & ~texts.str.lower().isin(MISSING)
    row = texts.index[strange][0] if strange.any() else texts.index[0]
    is_answer = texts[row].lower() in _YES_NO and hint == FEATURES
    hint = number_advice(texts[row], decimal) or _separator_advice(texts[row]) or hint
    if is_answer:
        hint = f"write yes and no as 1 and 0, or {hint}"
    raise DataError(f"expected numbers in {where}; got {texts[row]!r} in row {row}: {hint}")


def _separator_advice(text: str) -> str | None:
    found = re.search(r"\d *([;|])", text)
    if not found:
        return None
    sep = found[1]
    return f"if {sep!r} separates columns, give sep={sep!r} (on the command line, --sep '{sep}')"


def number_advice(text: str, decimal: str) -> str | None:
    """What to do about a number that is written with another decimal mark, or in groups of digits.

    Example:
        >>> number_advice("1,5", decimal=".")
        "if the decimal mark is ',', give decimal=',' (on the command line, --decimal ,)"
        >>> number_advice("1'000'000", decimal=".")
        'write numbers without separators of thousands'
    """
    mark = "," if decimal == "." else "."
    advice = []
    if text.count(mark) == 1 and re.fullmatch(
        rf"[+-]?[\d.,{_GAPS}]*\{mark}\d+(e[+-]?\d+)?", text, re.IGNORECASE
    ):
        advice.append(
            f"if the decimal mark is {mark!r}, give decimal={mark!r} "
            f"(on the command line, --decimal {mark})"
        )
    if _GROUPED.fullmatch(text):
        advice.append("write numbers without separators of thousands")
    return "; ".join(advice) or None


def as_array(columns: pd.DataFrame | pd.Series) -> np.ndarray:
    """Integers and booleans as int64 if it holds them all, other columns as float64."""
    types = [columns.dtype] if isinstance(columns, pd.Series) else columns.dtypes
    whole = all(
        pd.api.types.is_integer_dtype(kind) or pd.api.types.is_bool_dtype(kind) for kind in types
    )
    lacks = columns.isna().to_numpy().any()
    if lacks or not whole or (columns > np.iinfo(np.int64).max).to_numpy().any():
        return columns.to_numpy(dtype=np.float64, na_value=np.nan)
    return columns.to_numpy(dtype=np.int64)
