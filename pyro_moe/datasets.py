"""Data to fit: those of the examples and benchmarks, and tables of a person's own.

All of them come as `Rows`; whatever is random depends on a seed alone.
"""

import gzip
import hashlib
import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from sklearn.datasets import load_digits

from pyro_moe.inference.errors import DataError

from .download import download, one_line
from .regression_data import piecewise_affine, uci
from .rows import Rows, as_tensors

__all__ = ["class_names", "digits", "load", "mnist", "piecewise_affine", "spiral", "table", "uci"]

_MNIST_URL = "https://ossci-datasets.s3.amazonaws.com/mnist/"


@dataclass(frozen=True)
class _MnistFile:
    """One of the four files: its dimensions, and the md5 of it packed and unpacked.

    Copies that were packed anew differ as files, so that of a copy only the content is checked.
    """

    name: str
    dimensions: int
    packed: str
    unpacked: str


_MNIST_TRAIN = (
    _MnistFile(
        "train-images-idx3-ubyte",
        3,
        "f68b3c2dcbeaaa9fbdd348bbdeb94873",
        "6bbc9ace898e44ae57da46a324031adb",
    ),
    _MnistFile(
        "train-labels-idx1-ubyte",
        1,
        "d53e105ee54ea40749a09fcbcd1e9432",
        "a25bea736e30d166cdddb491f175f624",
    ),
)
_MNIST_TEST = (
    _MnistFile(
        "t10k-images-idx3-ubyte",
        3,
        "9fb629c4189551a2d022fa330f9573f3",
        "2646ac647ad5339dbf082846283269ea",
    ),
    _MnistFile(
        "t10k-labels-idx1-ubyte",
        1,
        "ec29112dd5afa0611ce80d1b7f02629c",
        "27ae3e4e09519cfbb04c329615203637",
    ),
)


def spiral(
    *, num_components: int = 5, train_rows: int = 5000, test_rows: int = 1000, seed: int = 0
) -> tuple[Rows, Rows]:
    r"""Interleaved spiral arms in the plane, each of them one regime.

    .. math::
        x = r (\sin a, \cos a), \quad a = a_0 + 0.05\,\epsilon, \quad \epsilon \sim N(0, 1)

    where along arm j the radius r goes evenly from 2.5 to 10 and the angle :math:`a_0`, in
    radians, from 1.25 j to 1.25 (j + 1).

    Args:
        num_components: K, the number of arms.
        train_rows: Rows of each arm to train on.
        test_rows: Rows of each arm to test on, with noise of their own.
        seed: Decides the noise.

    Returns:
        Training and test rows, arm after arm: x of shape (K * rows, 2), labels the arm.

    Raises:
        ValueError: If there is not at least one arm, and one row of it to train and to test on.

    Source:
        Singh and Panda, "Mixture of experts using discrete VAE", section 8.1.2.

    Example:
        >>> train, test = spiral(train_rows=100, test_rows=20)
        >>> train.x.shape, test.labels.unique()
        (torch.Size([500, 2]), tensor([0, 1, 2, 3, 4]))
    """
    counts = {"num_components": num_components, "train_rows": train_rows, "test_rows": test_rows}
    for name, count in counts.items():
        if count < 1:
            raise ValueError(f"expected {name} of at least 1; got {count}")
    train_noise, test_noise = np.random.default_rng(seed).spawn(2)
    return (
        _spiral_rows(num_components, train_rows, train_noise),
        _spiral_rows(num_components, test_rows, test_noise),
    )


def _spiral_rows(num_components: int, num_rows: int, noise: np.random.Generator) -> Rows:
    arm = np.arange(num_components)
    radius = np.linspace(2.5, 10, num_rows)
    angle = np.linspace(1.25 * arm, 1.25 * (arm + 1), num_rows, axis=1)
    angle += 0.05 * noise.standard_normal(angle.shape)
    x = np.stack((radius * np.sin(angle), radius * np.cos(angle)), axis=-1).reshape(-1, 2)
    return Rows(
        x=torch.from_numpy(x.astype(np.float32)),
        labels=torch.from_numpy(arm.repeat(num_rows).astype(np.int64)),
    )


def digits(*, seed: int = 0, test_share: float = 0.2) -> tuple[Rows, Rows]:
    """The 1,797 handwritten digits of 8 by 8 pixels that come with scikit-learn.

    Args:
        seed: Decides which rows are test rows.
        test_share: Their share of all rows, between 0 and 1.

    Returns:
        Training and test rows: x of shape (N, 64), gray values from 0 to 1 in steps of 1/16;
        labels the digit.

    Raises:
        ValueError: If test_share is not between 0 and 1.

    Source:
        Alpaydin and Kaynak, "Cascading classifiers", Kybernetika 34, 1998 (UCI's test set).

    Example:
        >>> train, test = digits()
        >>> len(train), len(test), train.image_shape
        (1438, 359, (1, 8, 8))
    """
    pixels, labels = load_digits(return_X_y=True)
    rows = Rows(
        x=torch.from_numpy((pixels / 16).astype(np.float32)),
        labels=torch.from_numpy(labels.astype(np.int64)),
        image_shape=(1, 8, 8),
    )
    return _split(rows, test_share, seed)


def mnist(root: str | Path | None = None, *, binary: bool = False) -> tuple[Rows, Rows]:
    """The 70,000 handwritten digits of 28 by 28 pixels of the MNIST data.

    Args:
        root: A folder that holds the four files ``train-images-idx3-ubyte``,
            ``train-labels-idx1-ubyte``, ``t10k-images-idx3-ubyte`` and
            ``t10k-labels-idx1-ubyte``, each as such or with ``.gz``. If None, they are downloaded
            once, 11 MB, into the user's cache folder.
        binary: Whether a pixel is 1 where its gray value is above one half and 0 elsewhere, as a
            Bernoulli likelihood wants it.

    Returns:
        60,000 training and 10,000 test rows: x of shape (N, 784), gray values from 0 to 1;
        labels the digit.

    Raises:
        DataError: If a file is missing, damaged or not MNIST's, or cannot be downloaded.

    Source:
        LeCun, Bottou, Bengio and Haffner, "Gradient-based learning applied to document
        recognition", Proceedings of the IEEE 86, 1998.

    Example:
        >>> train, test = mnist("folder/of/the/four/files")  # doctest: +SKIP
        >>> train.x.shape, test.image_shape  # doctest: +SKIP
        (torch.Size([60000, 784]), (1, 28, 28))
    """
    folder = None if root is None else Path(root)
    if folder is not None and not folder.is_dir():
        raise DataError(f"expected a folder of the four MNIST files; got {folder}")
    train, test = (_mnist_rows(files, folder, binary) for files in (_MNIST_TRAIN, _MNIST_TEST))
    return train, test


def _mnist_rows(files: tuple[_MnistFile, _MnistFile], folder: Path | None, binary: bool) -> Rows:
    paths = [_download(file) if folder is None else _find(file, folder) for file in files]
    contents = [_unpack(path) for path in paths]
    pixels, labels = (
        _parse_idx(content, path, file.dimensions)
        for content, path, file in zip(contents, paths, files, strict=True)
    )
    _check_labels(labels, len(pixels), paths[1])
    for content, path, file in zip(contents, paths, files, strict=True):
        _check_content(content, path, file.unpacked)
    gray = pixels.reshape(len(pixels), -1).astype(np.float32) / 255
    return Rows(
        x=torch.from_numpy((gray > 0.5).astype(np.float32) if binary else gray),
        labels=torch.from_numpy(labels.astype(np.int64)),
        image_shape=(1, *pixels.shape[1:]),
    )


def _find(file: _MnistFile, folder: Path) -> Path:
    names = (f"{file.name}.gz", file.name)
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise DataError(f"expected a file {' or '.join(names)} in {folder}; got neither")


def _download(file: _MnistFile) -> Path:
    name = f"{file.name}.gz"
    advice = "give the folder of the four files as root=… (on the command line, --data-dir DIR)"
    return download(_MNIST_URL + name, name, file.packed, advice)


def _unpack(path: Path) -> bytes:
    try:
        content = path.read_bytes()
        return gzip.decompress(content) if path.suffix == ".gz" else content
    except EOFError as error:
        raise DataError(f"expected a whole gzip file; got {path}, which is truncated") from error
    except (OSError, zlib.error) as error:
        kind = "gzip file" if path.suffix == ".gz" else "readable file"
        raise DataError(f"expected a {kind}; got {path}: {one_line(error)}") from error


def _parse_idx(content: bytes, path: Path, dimensions: int) -> np.ndarray:
    """The array of bytes in an IDX file: a magic number, the lengths, and the values."""
    magic = bytes((0, 0, 8, dimensions))  # 8 says unsigned bytes
    if content[:4] != magic[: len(content)]:
        raise DataError(
            f"expected the magic number 0x{magic.hex()} at the start of {path}; "
            f"got 0x{content[:4].hex()}"
        )
    header = 4 + 4 * dimensions
    if len(content) < header:
        raise DataError(
            f"expected a header of {header} bytes in {path}; got {len(content)}: it is truncated"
        )
    shape = tuple(int(length) for length in np.frombuffer(content, ">u4", dimensions, offset=4))
    size = header + math.prod(shape)
    if len(content) != size:
        damage = "truncated" if len(content) < size else "damaged"
        raise DataError(
            f"expected {size} bytes in {path}, as its header says; got {len(content)}: "
            f"it is {damage}"
        )
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape)


def _check_labels(labels: np.ndarray, num_images: int, path: Path) -> None:
    if len(labels) != num_images:
        raise DataError(
            f"expected as many labels in {path} as there are images, {num_images}; "
            f"got {len(labels)}"
        )
    if (labels > 9).any():
        row = int((labels > 9).argmax())
        raise DataError(f"expected labels 0 to 9 in {path}; got {labels[row]} in row {row}")


def _check_content(content: bytes, path: Path, expected: str) -> None:
    found = hashlib.md5(content, usedforsecurity=False).hexdigest()
    if found != expected:
        raise DataError(
            f"expected MNIST's own content in {path}, of md5 {expected}; got md5 {found}"
        )


def table(
    path: str | Path,
    *,
    target: str | Sequence[str] | None = None,
    columns: str | Sequence[str] | None = None,
    drop_missing: bool = False,
    missing_targets: bool = False,
    classes: Mapping[str, Sequence[str]] | None = None,
) -> Rows:
    r"""The rows of a CSV or Parquet file.

    Args:
        path: The file. A CSV file starts with a line of column names.
        target: Name of the column that becomes y, of shape (N,); or several names, of shape
            (N, M). Whole numbers (classes, counts) stay whole: int64.
        columns: Names of the columns that become x; all but the target if None.
        drop_missing: Whether to leave out rows that lack a value in a column that is used; but
            those that lack a target are kept if ``missing_targets``.
        missing_targets: Whether rows may lack a target, which is NaN then.
        classes: The classes of targets that are text, by column, see `class_names`; a target
            becomes the number of its class, from 0.

    Returns:
        The rows, x of shape (N, D) in the order of columns, in the units of the file.

    Raises:
        DataError: If the file cannot be read, lacks a column or has no rows, or if a value that
            is used is missing, no finite number or none of the classes. Rows are counted from 0.

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
    r"""The classes in a column of a CSV or Parquet file.

    Args:
        path: The file.
        column: The column's name.

    Returns:
        Its different values in the order of the alphabet, or None if they are numbers.

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
    """Each value's place among the names of classes; missing where it is missing."""
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
        raise DataError(f"expected a file; got {path}, where there is none")
    try:
        # These types keep a column of whole numbers whole where values are missing.
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
    # Row numbers shall count the rows of the file, also after some are dropped.
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
    """See that a column has a finite number in every row; a target, in those that have one."""
    where = f"column {column.name!r} of {path}"
    known = column.dropna()
    if not pd.api.types.is_numeric_dtype(column) and len(known):
        readable = pd.to_numeric(known.astype(str), errors="coerce").notna()
        row = known.index[0] if readable.all() else readable.index[~readable][0]
        hint = (
            "targets that are text want classes=… (on the command line, --experts categorical)"
            if target
            else "choose other columns with columns=… (on the command line, --columns)"
        )
        raise DataError(
            f"expected numbers in {where}; got {str(known[row])!r} in row {row}: {hint}"
        )
    if len(known) < len(column) and not (target and may_lack):
        missing = column.index[column.isna()]
        keep = (
            "; a story of x learns from them, too, with missing_targets (--missing-targets)"
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
    return _split(rows, 0.2, seed)


def _split(rows: Rows, test_share: float, seed: int) -> tuple[Rows, Rows]:
    if not 0 < test_share < 1:
        raise ValueError(f"expected test_share between 0 and 1; got {test_share}")
    if len(rows) < 2:
        raise DataError(f"expected at least 2 rows, to train and to test on; got {len(rows)}")
    num_test = min(max(round(test_share * len(rows)), 1), len(rows) - 1)
    order = torch.from_numpy(np.random.default_rng(seed).permutation(len(rows)))
    return rows.take(order[num_test:]), rows.take(order[:num_test])
