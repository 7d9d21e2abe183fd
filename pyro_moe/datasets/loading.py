"""Training and test rows of a data set by its name or path."""

from pathlib import Path
from typing import Any

from pyro_moe.inference.errors import DataError
from pyro_moe.rows import Rows

from .images import digits, mnist
from .reading import is_table
from .synthetic import spiral
from .tables import table


def load(
    name_or_path: str | Path,
    *,
    data_dir: str | Path | None = None,
    seed: int = 0,
    **table_options: Any,
) -> tuple[Rows, Rows]:
    """Training and test rows by the name of the data or the path of a table.

    Args:
        name_or_path: ``"spiral"``, ``"digits"``, ``"mnist"``, or the path of a CSV or Parquet
            file. A fifth of the rows of a file become test rows.
        data_dir: The folder of MNIST's four files; downloaded if None. Other data ignore it.
        seed: Seed of the noise of the spirals, and of the split of digits and tables. MNIST has a
            fixed split.
        **table_options: Arguments of `table` for a file, such as ``target`` and ``columns``.

    Returns:
        Training and test rows.

    Raises:
        DataError: If there is no such data, or it cannot be read.

    Example:
        >>> train, test = load("digits", seed=1)
        >>> len(train), len(test)
        (1438, 359)
    """
    if name_or_path == "spiral":
        return spiral(seed=seed)
    if name_or_path == "digits":
        return digits(seed=seed)
    if name_or_path == "mnist":
        return mnist(data_dir)
    if not is_table(name_or_path):
        raise DataError(
            "expected data 'digits', 'spiral', 'mnist' or a .csv, .tsv, .txt or .parquet file; "
            f"got {str(name_or_path)!r}"
        )
    return table(name_or_path, **table_options).split(0.2, seed)
