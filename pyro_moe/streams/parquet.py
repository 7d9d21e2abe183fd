"""The rows of a Parquet file, one block after the other."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import IterableDataset

from pyro_moe.inference.errors import DataError


class Parquet(IterableDataset):
    """Numbers in columns of a Parquet file, read in blocks within its groups of rows.

    Args:
        path: The file.
        target: Name of the column that becomes y, or several names; None for x alone.
        columns: Names of the columns that become x; all others if None.
        rows: Rows of a block.

    Raises:
        DataError: If the file cannot be read or lacks a column, or if pyarrow is not installed.

    Example:
        >>> import tempfile
        >>> import pandas as pd
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder, "my.parquet")
        ...     pd.DataFrame({"dose": [1.5, 2.5], "cured": [1, 0]}).to_parquet(path)
        ...     blocks = list(Parquet(path, target="cured"))
        >>> blocks
        [(array([[1.5],
               [2.5]]), array([1, 0]))]
    """

    def __init__(
        self,
        path: str | Path,
        *,
        target: str | Sequence[str] | None = None,
        columns: Sequence[str] | None = None,
        rows: int = 2**15,
    ) -> None:
        self.path, self.rows = Path(path), rows
        self.one_target = isinstance(target, str)
        names = list(self._file().schema_arrow.names)
        targets = [target] if isinstance(target, str) else target
        self.targets = None if targets is None else tuple(targets)
        others = [name for name in names if name not in (self.targets or ())]
        self.columns = tuple(others if columns is None else columns)
        for name in (*self.columns, *(self.targets or ())):
            if name not in names:
                raise DataError(f"expected column {name!r} in {self.path}; got {', '.join(names)}")

    def _file(self) -> Any:
        try:
            from pyarrow.parquet import ParquetFile  # an extra

            return ParquetFile(self.path)
        except ImportError as error:
            raise DataError(
                f"expected pyarrow, to read {self.path}; got none: pip install 'pyro-moe[parquet]'"
            ) from error
        except (OSError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise DataError(f"expected a Parquet file at {self.path}; got {reason}") from error

    def __iter__(self) -> Iterator[Any]:
        """Blocks x, or (x, y)."""
        wanted = [*self.columns, *(self.targets or ())]
        with self._file() as file:
            for batch in file.iter_batches(self.rows, columns=wanted):
                x = _matrix(batch, self.columns)
                if self.targets is None:
                    yield x
                    continue
                y = _matrix(batch, self.targets)
                yield x, y[:, 0] if self.one_target else y


def _matrix(batch: Any, names: Sequence[str]) -> np.ndarray:
    """Columns of a block, shape (B, M). Missing values are NaN."""
    return np.stack([batch.column(name).to_numpy(zero_copy_only=False) for name in names], -1)
