"""A record of the data of a run, from which its rows can be loaded again."""

import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from pyro_moe import datasets
from pyro_moe.inference.errors import DataError
from pyro_moe.rows import Rows, parted

from .columns import ANNOTATIONS, check_there
from .reading import Format, read


@dataclass(frozen=True)
class Source:
    """A data set or table, and the options with which it was read. All attributes fit into JSON.

    Attributes:
        name: ``"spiral"``, ``"digits"``, ``"mnist"`` or the path of a table.
        target: Columns of the table that became y.
        columns: Columns that became x; all others if None.
        index: Columns that identify the rows of the table.
        data_dir: The folder of MNIST's files; downloaded if None.
        binary: Whether the pixels of MNIST were made binary.
        made_targets: Whether y is synthetic, see `piecewise_affine`.
        drop_missing: Whether rows of the table with missing values were left out.
        missing_targets: Whether targets of the table may be missing.
        classes: The classes of text targets in their order, by column.
        sep: The separator of the table, see `table`.
        decimal: The decimal mark of the table.
        encoding: The encoding of the table.
        sha256: SHA-256 of the table's content.
        test_share: The share of rows of a table that a formula sets aside for tests.
        weights: The column of weights of the table, or None.
        groups: The column of its groups, or None. Whole groups are set aside.
        labels: The column of known components, or None.
    """

    name: str
    target: Sequence[str] = ()
    columns: Sequence[str] | None = None
    index: Sequence[str] = ()
    data_dir: str | None = None
    binary: bool = False
    made_targets: bool = False
    drop_missing: bool = False
    missing_targets: bool = False
    classes: Mapping[str, Sequence[str]] = field(default_factory=dict)
    sep: str | None = None
    decimal: str = "."
    encoding: str | None = None
    sha256: str | None = None
    test_share: float = 0.0
    weights: str | None = None
    groups: str | None = None
    labels: str | None = None

    def __post_init__(self) -> None:
        if not 0.0 <= self.test_share < 1.0:
            raise ValueError(
                f"expected a test share of at least 0 and below 1; got {self.test_share}"
            )

    @property
    def is_table(self) -> bool:
        """Whether the name is a path."""
        return Path(self.name).suffix != ""

    def recorded(self) -> "Source":
        """The same source with the absolute path of a table and the SHA-256 of its content."""
        if not self.is_table:
            return self
        return replace(self, name=str(Path(self.name).absolute()), sha256=_sha256(self.name))

    def rows(self) -> tuple[Rows, Rows]:
        """Training and test rows.

        Raises:
            DataError: If the data cannot be read.
        """
        if self.name == "mnist":
            train, test = datasets.mnist(self.data_dir, binary=self.binary)
        else:
            train, test = datasets.load(self.name, **(self._choices() if self.is_table else {}))
        return datasets.piecewise_affine(train, test) if self.made_targets else (train, test)

    @property
    def reading(self) -> dict[str, Any]:
        """The arguments of `table` and `class_names` that say how the file is written."""
        return {"sep": self.sep, "decimal": self.decimal, "encoding": self.encoding}

    def rows_again(
        self,
        data: str | Path | None = None,
        *,
        columns: Sequence[str] | None = None,
        **reading: Any,
    ) -> tuple[Rows, Rows]:
        """The same training and test rows, or those of other data.

        Args:
            data: The new path of the table, or of the folder of MNIST's files, if it has moved.
                Or the path of another table. All of its rows are then returned as training rows
                and as test rows.
            columns: Columns that became x; those of the source if None.
            **reading: ``sep``, ``decimal`` and ``encoding`` of the data, where they are others.

        Raises:
            DataError: If the table is missing or its content has changed.
        """
        if not self.is_table:
            return (self if data is None else self._elsewhere(data)).rows()
        chosen = reading | ({} if columns is None else {"columns": columns})
        path, is_fitted = self._found(data)
        if is_fitted:
            return replace(self, name=str(path), **chosen).rows()
        other = replace(self, **chosen | {"index": ()})
        names = read(path, Format(**other.reading)).columns
        absent: dict[str, Any] = {
            each: None for each in ANNOTATIONS if getattr(self, each) not in names
        }
        rows = datasets.table(path, **replace(other, **absent)._choices())
        return rows, rows

    def frames(self, texts: Collection[str] = ()) -> tuple[pd.DataFrame, pd.DataFrame]:
        """Training and test rows of a table as data frames; twice the same without a test share.

        Args:
            texts: Names of columns that are text.

        Raises:
            DataError: If the table cannot be read, or has fewer than two rows or groups to be
                shared.
        """
        frame = read(Path(self.name), Format(**self.reading), texts)
        if self.test_share == 0.0:
            return frame, frame
        groups = None
        if self.groups is not None:
            check_there(self.groups, frame, Path(self.name))
            groups = pd.factorize(frame[self.groups], use_na_sentinel=False)[0]
        parts = parted(len(frame), self.test_share, 0, groups)
        train, test = (frame.iloc[np.sort(part)] for part in parts)
        return train, test

    def frames_again(
        self, data: str | Path | None = None, texts: Collection[str] = (), **reading: Any
    ) -> tuple[pd.DataFrame, pd.DataFrame]:
        """The same training and test rows as data frames, or those of other data, see `rows_again`.

        Raises:
            DataError: If the table is missing or its content has changed.
        """
        path, is_fitted = self._found(data)
        share = self.test_share if is_fitted else 0.0
        return replace(self, name=str(path), test_share=share, **reading).frames(texts)

    def _found(self, data: str | Path | None) -> tuple[Path, bool]:
        """The path of the table or of another one, and whether it has the fitted content."""
        path = Path(self.name if data is None else data)
        if data is None and not path.is_file():
            raise DataError(
                f"expected the fitted table at {path}; got no such file: give its new path as "
                "data=… (on the command line, --data)"
            )
        is_fitted = path.is_file() and _sha256(path) == self.sha256
        if data is None and not is_fitted:
            raise DataError(
                f"expected {path} with the fitted content; got other content: to use all of its "
                "rows as new rows, give it as data=… (on the command line, --data)"
            )
        return path, is_fitted

    def _elsewhere(self, data: str | Path) -> "Source":
        if self.name != "mnist":
            raise DataError(
                f"expected no other data than {self.name}, which was fitted; got {data}"
            )
        return replace(self, data_dir=str(data))

    def _choices(self) -> dict[str, Any]:
        """The arguments of `datasets.load` and `datasets.table` for a table."""
        one = self.target[0] if len(self.target) == 1 else list(self.target) or None
        return {
            "target": one,
            "columns": self.columns,
            "index": self.index,
            "drop_missing": self.drop_missing,
            "missing_targets": self.missing_targets,
            "classes": self.classes,
            **{name: getattr(self, name) for name in ANNOTATIONS},
            **self.reading,
        }


def _sha256(path: str | Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
