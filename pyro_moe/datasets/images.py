"""Images of handwritten digits: those of scikit-learn, and MNIST."""

import gzip
import hashlib
import math
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import IO, cast

import numpy as np
import torch

from pyro_moe.inference.errors import DataError
from pyro_moe.rows import Rows

from .download import download, one_line

_MNIST_URL = "https://ossci-datasets.s3.amazonaws.com/mnist/"
_LARGEST = 16 + 60_000 * 28 * 28  # bytes of the training images


@dataclass(frozen=True)
class _MnistFile:
    """One of the four files: its number of dimensions, and its md5 with and without gzip.

    Recompressed copies have another md5 of the gzip file. Of local copies only the content is
    checked.
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


def digits(*, seed: int = 0, test_share: float = 0.2) -> tuple[Rows, Rows]:
    """The 1,797 handwritten digits of 8 by 8 pixels of scikit-learn.

    Args:
        seed: Seed of the split into training and test rows.
        test_share: Share of test rows, between 0 and 1.

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
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    rows = Rows(
        x=torch.from_numpy((pixels / 16).astype(np.float32)),
        labels=torch.from_numpy(labels.astype(np.int64)),
        image_shape=(1, 8, 8),
    )
    return rows.split(test_share, seed)


def mnist(root: str | Path | None = None, *, binary: bool = False) -> tuple[Rows, Rows]:
    """The 70,000 handwritten digits of 28 by 28 pixels of the MNIST data.

    Args:
        root: A folder with the four files ``train-images-idx3-ubyte``,
            ``train-labels-idx1-ubyte``, ``t10k-images-idx3-ubyte`` and
            ``t10k-labels-idx1-ubyte``, with or without the ending ``.gz``. If None, they are
            downloaded once to the user's cache folder (11 MB).
        binary: Whether to replace gray values above one half by 1 and all others by 0, for a
            Bernoulli likelihood.

    Returns:
        60,000 training and 10,000 test rows: x of shape (N, 784), gray values from 0 to 1;
        labels the digit.

    Raises:
        DataError: If a file is missing, damaged, not of MNIST, or cannot be downloaded.

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
    contents = [_unpack(path, file.dimensions) for path, file in zip(paths, files, strict=True)]
    pixels, labels = (
        _parse_idx(content, file.dimensions) for content, file in zip(contents, files, strict=True)
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


def _unpack(path: Path, dimensions: int) -> bytes:
    """The content of an IDX file, of which no more is read than its header announces."""
    packed = path.suffix == ".gz"
    try:
        with cast(IO[bytes], gzip.open(path)) if packed else path.open("rb") as file:
            header = _filled(file, 4 + 4 * dimensions)
            size = _size(header, path, dimensions)
            content = header + _filled(file, size - len(header) + 1)
    except EOFError as error:
        raise DataError(f"expected a whole gzip file; got {path}, which is truncated") from error
    except (OSError, zlib.error) as error:
        kind = "gzip file" if packed else "readable file"
        raise DataError(f"expected a {kind}; got {path}: {one_line(error)}") from error
    if len(content) != size:
        got = f"{len(content)}: it is truncated" if len(content) < size else "more: it is damaged"
        raise DataError(f"expected {size} bytes in {path}, as its header says; got {got}")
    return content


def _filled(file: IO[bytes], size: int) -> bytes:
    """The next bytes of a file, which are fewer at its end."""
    content = bytearray()
    while len(content) < size and (piece := file.read(min(size - len(content), 1 << 20))):
        content += piece
    return bytes(content)


def _size(header: bytes, path: Path, dimensions: int) -> int:
    """The size that a header announces, which has a magic number and the lengths."""
    magic = bytes((0, 0, 8, dimensions))  # 8 is the code of unsigned bytes
    if header[:4] != magic[: len(header)]:
        raise DataError(
            f"expected the magic number 0x{magic.hex()} at the start of {path}; "
            f"got 0x{header[:4].hex()}"
        )
    length = 4 + 4 * dimensions
    if len(header) < length:
        raise DataError(
            f"expected a header of {length} bytes in {path}; got {len(header)}: it is truncated"
        )
    size = length + math.prod(_shape(header, dimensions))
    if size > _LARGEST:
        raise DataError(
            f"expected at most {_LARGEST:,} bytes in {path}, as MNIST has; got a header that "
            f"announces {size:,}"
        )
    return size


def _shape(header: bytes, dimensions: int) -> tuple[int, ...]:
    return tuple(int(length) for length in np.frombuffer(header, ">u4", dimensions, offset=4))


def _parse_idx(content: bytes, dimensions: int) -> np.ndarray:
    """The array of bytes in an IDX file, whose values follow the header."""
    values = np.frombuffer(content, np.uint8, offset=4 + 4 * dimensions)
    return values.reshape(_shape(content, dimensions))


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
            f"expected the content of MNIST in {path}, with md5 {expected}; got md5 {found}"
        )
