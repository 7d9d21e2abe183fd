"""Reading of CSV and Parquet files as data frames."""

import bz2
import codecs
import gzip
import lzma
import re
import warnings
import zlib
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from pandas.errors import ParserWarning

from pyro_moe.inference.errors import DataError
from pyro_moe.inference.programs import ONE_THREAD

from .download import one_line

TEXT = (".csv", ".tsv", ".txt")
OPENERS: dict[str, Callable[..., Any]] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
BOMS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",  # begins with the mark of UTF-16
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
# A compressed table may grow to a hundred times its size, and a small one to 256 MiB.
MOST_GROWTH, LEAST_LIMIT = 100, 2**28
SEPARATORS = (",", ";", "\t", "|")
AS_TEXT: dict[str, Any] = {"dtype": str, "keep_default_na": False}
# Nullable types keep integers as integers if values are missing.
NULLABLE: dict[str, Any] = {"dtype_backend": "numpy_nullable"}
# What stands for a missing value among numbers. Among other texts each of them is a text.
MISSING = {"", "#n/a", "#na", "<na>", "n/a", "na", "nan", "-nan", "nat", "none", "null"}


@dataclass(frozen=True)
class Format:
    r"""How a text file is written.

    Attributes:
        sep: The separator of columns: one character, or ``r"\s+"`` for any white space. If None, it
            is a tab in .tsv files, and a comma in others.
        decimal: The decimal mark, ``"."`` or ``","``.
        encoding: The encoding; if None, UTF-8, or what a byte order mark says.

    Raises:
        ValueError: If one of them is none of these.
    """

    sep: str | None = None
    decimal: str = "."
    encoding: str | None = None

    def __post_init__(self) -> None:
        sep = "\t" if self.sep in ("\\t", "tab") else self.sep
        object.__setattr__(self, "sep", sep)
        if sep is not None and sep != r"\s+" and (len(sep) != 1 or sep.isalnum() or sep in '"\n\r'):
            raise ValueError(
                "expected sep of one character, such as ';', or '\\s+' for white space; "
                f"got {self.sep!r}"
            )
        if self.decimal not in (".", ","):
            raise ValueError(f"expected decimal '.' or ','; got {self.decimal!r}")
        try:
            "".encode(self.encoding or "utf-8")
        except LookupError as error:
            raise ValueError(
                f"expected an encoding such as 'utf-8', 'latin-1' or 'utf-16'; "
                f"got {self.encoding!r}"
            ) from error


def is_table(path: str | Path) -> bool:
    """Whether a path has the suffix of a table.

    Example:
        >>> is_table("my.csv.gz"), is_table("my.xlsx")
        (True, False)
    """
    return _suffix(Path(path)) in (*TEXT, ".parquet")


def read(path: Path, form: Format, texts: Collection[str] = ()) -> pd.DataFrame:
    """All columns of a file as numbers, booleans or text, with NA for missing values.

    Columns without a name are called "Unnamed: 0", …, by their place, as in pandas.

    Args:
        path: The file.
        form: How a text file is written.
        texts: Names of columns that are text, also if all of their values look like others.

    Raises:
        DataError: If the file cannot be read, or has another separator or encoding.
    """
    if not is_table(path):
        raise DataError(f"expected a .csv, .tsv, .txt or .parquet file; got {path}")
    if not path.is_file():
        raise DataError(f"expected an existing file; got {path}")
    try:
        return _parquet(path) if _suffix(path) == ".parquet" else _delimited(path, form, texts)
    except DataError:
        raise
    except UnicodeError as error:
        raise _other_encoding(path, form) from error
    except ImportError as error:
        raise DataError(
            f"expected pyarrow, to read {path}; got none: pip install 'pyro-moe[parquet]'"
        ) from error
    except (OSError, EOFError, ValueError, zlib.error, lzma.LZMAError) as error:
        raise DataError(f"expected a table in {path}; got {one_line(error)}") from error


def _suffix(path: Path) -> str:
    suffix = path.suffix.lower()
    return Path(path.stem).suffix.lower() if suffix in OPENERS else suffix


def _most_bytes(path: Path) -> int:
    """The largest size to which a compressed table may grow."""
    return max(LEAST_LIMIT, MOST_GROWTH * path.stat().st_size)


def _too_large(path: Path) -> DataError:
    return DataError(
        f"expected a table of at most {_most_bytes(path):,} bytes in {path}, {MOST_GROWTH} times "
        "its compressed size; got more: if you trust its source, unpack it, or write it as .csv"
    )


def _check_growth(path: Path) -> None:
    """Check the size of a compressed text before it is read: nothing in the file announces it."""
    opener = OPENERS.get(path.suffix.lower())
    if opener is None:
        return
    size, most = 0, _most_bytes(path)
    with opener(path, "rb") as file:
        while piece := file.read(1 << 20):
            size += len(piece)
            if size > most:
                raise _too_large(path)


def _check_announced(path: Path) -> None:
    """Check what the metadata of a Parquet file announce: its columns, and eight bytes a value."""
    from pyarrow.parquet import ParquetFile  # an extra

    metadata = ParquetFile(path).metadata
    groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
    size = sum(group.total_byte_size for group in groups)
    if max(size, 8 * metadata.num_rows * metadata.num_columns) > _most_bytes(path):
        raise _too_large(path)


def _parquet(path: Path) -> pd.DataFrame:
    _check_announced(path)
    frame = pd.read_parquet(path, **NULLABLE).reset_index(drop=True)
    kinds = {}
    for name in frame:
        if isinstance(frame[name].dtype, pd.CategoricalDtype):
            kinds[name] = pd.Series(frame[name].cat.categories).convert_dtypes().dtype
        elif pd.api.types.infer_dtype(frame[name]) == "decimal":
            kinds[name] = "Float64"
    return frame.astype(kinds).set_axis(map(str, frame), axis=1)


def _delimited(path: Path, form: Format, known_texts: Collection[str]) -> pd.DataFrame:
    _check_growth(path)
    encoding, first_line = _encoding(path, form)
    declared = re.fullmatch(r'"?sep=(.)"?', first_line, re.IGNORECASE)  # by Excel
    default = declared[1] if declared else "\t" if _suffix(path) == ".tsv" else ","
    options: dict[str, Any] = {
        "sep": form.sep or default,
        "encoding": encoding,
        "skiprows": 1 if declared else 0,
        "index_col": False,
        "low_memory": False,
    }
    header = pd.read_csv(path, header=None, nrows=1, **AS_TEXT, **options).iloc[0].tolist()
    _check_header(header, path)
    if len(header) == 1:
        _check_separator(header[0], path, form, options)
    frame = _body(path, len(header), form, options)
    known = [place for place, name in enumerate(header) if name in known_texts]
    for place, text in _texts(path, frame, options, known).items():
        frame[place] = _text(text) if place in known else _converted(text, form.decimal)
    names = [name if name.strip() else _no_name(place, header) for place, name in enumerate(header)]
    return frame.set_axis(names, axis=1)


def _no_name(place: int, header: list[str]) -> str:
    name = f"Unnamed: {place}"
    while name in header:  # of a table that was written with its index twice
        name += ".1"
    return name


def _encoding(path: Path, form: Format) -> tuple[str, str]:
    """The encoding of a file, and its first line."""
    with OPENERS.get(path.suffix.lower(), open)(path, "rb") as file:
        start = file.read(4096)
    marked = [name for mark, name in BOMS.items() if start.startswith(mark)]
    encoding = marked[0] if marked else codecs.lookup(form.encoding or "utf-8").name
    wide = encoding.startswith(("utf-16", "utf-32"))
    if start and wide != (b"\0" in start):  # line ends have a zero byte in these encodings alone
        raise _other_encoding(path, form)
    lines = start.decode(encoding, errors="ignore").splitlines()
    return encoding, lines[0] if lines else ""


def _other_encoding(path: Path, form: Format) -> DataError:
    return DataError(
        f"expected {form.encoding or 'utf-8'} text in {path}; got other bytes: name its encoding, "
        "such as latin-1 or utf-16, with encoding=… (on the command line, --encoding)"
    )


def _check_header(names: list[str], path: Path) -> None:
    """Check that the first line does not have data in place of names."""
    numbers = pd.to_numeric(pd.Series(names, dtype=str), errors="coerce")
    if numbers.notna().all() and (numbers % 1 != 0).any():
        raise DataError(
            f"expected names of columns in the first line of {path}; got numbers: "
            f"{', '.join(names[:5])}"
        )


def _check_separator(name: str, path: Path, form: Format, options: dict[str, Any]) -> None:
    """Check that the name of the only column holds no other separator."""
    rows = pd.read_csv(path, header=None, nrows=2, names=[0], usecols=[0], **AS_TEXT, **options)
    first = rows[0].iloc[-1]
    used = options["sep"]
    others = [sep for sep in SEPARATORS if sep != used and sep in name]
    found = [sep for sep in others if form.sep is None or sep in first]
    if not found and len(name.split()) == len(first.split()) > 1:
        found = [r"\s+"]
    if found:
        shown = found[0].replace("\t", "\\t")
        raise DataError(
            f"expected columns separated by {used!r} in {path}; got one column {name!r}: "
            f"try sep={found[0]!r} (on the command line, --sep '{shown}')"
        )


def _body(path: Path, width: int, form: Format, options: dict[str, Any]) -> pd.DataFrame:
    """The rows below the header. The rows may have one empty value more than there are names."""
    options = {**options, **NULLABLE, "decimal": form.decimal}
    try:
        with ONE_THREAD, warnings.catch_warnings():
            warnings.simplefilter("error", ParserWarning)
            return pd.read_csv(path, header=0, names=range(width), **options)
    except ParserWarning as error:
        raise DataError(
            f"expected as many values in a row of {path} as there are column names, {width}; "
            "got more"
        ) from error


def _text(texts: pd.Series) -> pd.Series:
    """A column of text, in which only an empty value is missing."""
    texts = texts.fillna("").str.strip()
    return texts.mask(texts == "")


def _texts(
    path: Path, frame: pd.DataFrame, options: dict[str, Any], known: Collection[int]
) -> pd.DataFrame:
    """The columns that are neither numbers nor booleans, with every text as it is written."""
    places = [
        place
        for place in frame
        if place in known
        or (not pd.api.types.is_numeric_dtype(frame[place]) and frame[place].notna().any())
    ]
    options = {**options, **AS_TEXT, "names": list(frame), "usecols": places}
    return pd.read_csv(path, header=0, **options) if places else frame[[]]


def _converted(texts: pd.Series, decimal: str) -> pd.Series:
    """A column of text as booleans or numbers if all of its values are, apart from white space."""
    texts = texts.fillna("").str.strip()
    known = texts[~texts.str.lower().isin(MISSING)]
    lower = known.str.lower()
    if len(known) and lower.isin(("true", "false")).all():
        return (lower == "true").astype("boolean").reindex(texts.index)
    if decimal == ",":
        known = known.str.translate({ord(","): ".", ord("."): ","})
    numbers = pd.to_numeric(known, errors="coerce", dtype_backend="numpy_nullable")
    if numbers.notna().all():
        return numbers.reindex(texts.index)
    return _text(texts)
