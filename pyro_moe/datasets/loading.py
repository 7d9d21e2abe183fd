"""Training and test rows of a data set by its name or path."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from pyro_moe.inference.errors import DataError
from pyro_moe.rows import Rows

from .images import digits, mnist
from .synthetic import spiral
from .tables import table


def load(
    name_or_path: str | Path,
    *,
    target: str | Sequence[str] | None = None,
    columns: str | Sequence[str] | None = None,
    data_dir: str | Path | None = None,
    drop_missing: bool = False,
    missing_targets: bool = False,
    classes: Mapping[str, Sequence[str]] | None = None,
    seed: int = 0,
) -> tuple[Rows, Rows]:
    """Training and test rows by the name of the data or the path of a table.

    Args:
        name_or_path: ``"spiral"``, ``"digits"``, ``"mnist"``, or the path of a CSV or Parquet
            file. A fifth of the rows of a file become test rows.
        target: Names of the columns of a table that become y. This and the other arguments
            except ``data_dir`` and ``seed`` are for tables only, see `table`.
        columns: Names of the columns that become x; all but the target if None.
        data_dir: The folder of MNIST's four files; downloaded if None. Other data ignore it.
        drop_missing: Whether to leave out rows with missing values.
        missing_targets: Whether targets may be missing.
        classes: The classes of text targets, by column.
        seed: Seed of the noise of the spirals, and of the split of digits and tables. MNIST has a
            fixed split.

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
    if Path(name_or_path).suffix.lower() not in (".csv", ".parquet"):
        raise DataError(
            "expected data 'digits', 'spiral', 'mnist' or a .csv or .parquet file; "
            f"got {str(name_or_path)!r}"
        )
    rows = table(
        name_or_path,
        target=target,
        columns=columns,
        drop_missing=drop_missing,
        missing_targets=missing_targets,
        classes=classes,
    )
    return rows.split(0.2, seed)
