"""Writing of tables that spreadsheets open."""

import csv
import unicodedata
from pathlib import Path
from typing import Any

import pandas as pd

from pyro_moe import files

FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")


def write(path: str | Path, table: pd.DataFrame, *, escape: bool = True) -> Path:
    r"""Write a CSV file, whole or not at all.

    A spreadsheet takes a text for a formula if it begins with ``=``, ``+``, ``-``, ``@``, a tab or
    a line end. Such texts, also names of columns, are written with ``'`` before them. Numbers stay
    numbers.

    Args:
        path: The file.
        table: The table. Its index is not written.
        escape: Whether to write ``'`` before texts that spreadsheets take for formulas.

    Returns:
        The path.

    Raises:
        DataError: If the file cannot be written.

    Example:
        >>> import tempfile
        >>> table = pd.DataFrame({"kind": ["=1+1", "cat"], "-p": [-0.5, 0.5]})
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write(Path(folder, "my.csv"), table).read_text()
        "kind,'-p\n'=1+1,-0.5\ncat,0.5\n"
    """
    if escape:
        columns = [table.iloc[:, place].map(_escaped) for place in range(table.shape[1])]
        names = list(map(_escaped, table.columns))
        table = pd.concat(columns, axis=1).set_axis(names, axis=1) if columns else table
    text = table.to_csv(index=False)
    if "\r" in text:  # which is quoted only if all texts are
        text = table.to_csv(index=False, quoting=csv.QUOTE_NONNUMERIC)
    return files.write(path, text.encode())


def _escaped(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    first = unicodedata.normalize("NFKC", value[:1])  # there are wide forms of these characters
    return f"'{value}" if first in FORMULA else value
