"""Data by name: training and test rows."""

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
        name_or_path: ``"spiral"``, ``"digits"``, ``"mnist"``, or a CSV or Parquet file, a fifth
            of whose rows become test rows.
        target: Names of the columns of a table that become y; this and what follows, but for
            ``data_dir`` and ``seed``, are for a `table`.
        columns: Names of those that become x; all but the target if None.
        data_dir: The folder of MNIST's four files; downloaded if None. Other data ignore it.
        drop_missing: Whether to leave out rows that lack a value.
        missing_targets: Whether rows may lack a target.
        classes: The classes of targets that are text.
        seed: Decides the noise of the spirals, and which rows of the others are test rows.

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
