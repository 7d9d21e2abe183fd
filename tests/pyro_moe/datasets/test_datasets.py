"""Data are what their formulas, files and seeds say, and what is wrong with a file is named."""

import gc
import gzip
import hashlib
import os
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import date
from decimal import Decimal
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.datasets import load_digits

from pyro_moe import DataError, datasets
from pyro_moe.datasets import download, images
from pyro_moe.rows import Rows


def message_of(function: Callable[[], Any]) -> str:
    """What a DataError says, on one line."""
    with pytest.raises(DataError) as caught:
        function()
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith("expected ")
    return message


def equal(one: Rows, other: Rows) -> bool:
    parts = [(one.x, other.x), (one.y, other.y), (one.labels, other.labels)]
    return one.image_shape == other.image_shape and all(
        (a is None and b is None) or torch.equal(a, b) for a, b in parts
    )


# Spirals


def test_spiral_has_the_rows_of_the_paper_by_default() -> None:
    train, test = datasets.spiral()
    for rows, per_arm in [(train, 5000), (test, 1000)]:
        assert rows.x.shape == (5 * per_arm, 2)
        assert (rows.x.dtype, rows.labels.dtype) == (torch.float32, torch.int64)
        assert rows.labels.bincount().tolist() == [per_arm] * 5
        assert rows.y is None


def test_spiral_is_its_formula_with_noise_from_the_seed() -> None:
    parts = datasets.spiral(num_components=3, train_rows=7, test_rows=4, seed=11)
    streams = np.random.default_rng(11).spawn(2)
    for rows, count, stream in zip(parts, (7, 4), streams, strict=True):
        noise = stream.standard_normal((3, count))
        for arm in range(3):
            radius = np.linspace(2.5, 10, count)
            angle = np.linspace(1.25 * arm, 1.25 * (arm + 1), count) + 0.05 * noise[arm]
            expected = np.stack([radius * np.sin(angle), radius * np.cos(angle)], axis=1)
            np.testing.assert_allclose(rows.x[rows.labels == arm], expected, rtol=1e-5, atol=1e-5)


def test_spiral_noise_turns_but_does_not_move_away() -> None:
    train, _ = datasets.spiral()
    x = train.x.double().reshape(5, 5000, 2)
    radius = torch.linspace(2.5, 10, 5000, dtype=torch.float64).expand(5, -1)
    torch.testing.assert_close(x.norm(dim=-1), radius, rtol=1e-6, atol=1e-6)
    start = 1.25 * torch.arange(5, dtype=torch.float64).unsqueeze(-1)
    angle = start + torch.linspace(0, 1.25, 5000, dtype=torch.float64)
    turn = torch.atan2(x[..., 0], x[..., 1]) - angle
    noise = torch.atan2(turn.sin(), turn.cos()) / 0.05
    # Of 25,000 draws: five standard errors of a mean and of a standard deviation.
    assert noise.mean().abs() < 5 / 25_000**0.5
    assert (noise.std() - 1).abs() < 5 / 50_000**0.5


def test_spiral_depends_on_the_seed_alone() -> None:
    draw = partial(datasets.spiral, train_rows=5, test_rows=5)
    train, test = draw(seed=3)
    torch.manual_seed(99)
    again = draw(seed=3)
    assert equal(train, again[0])
    assert equal(test, again[1])
    assert not equal(train, test)
    assert not equal(train, draw(seed=4)[0])


@pytest.mark.parametrize("name", ["num_components", "train_rows", "test_rows"])
def test_spiral_wants_one_of_each(name: str) -> None:
    with pytest.raises(ValueError, match=f"^expected {name} of at least 1; got 0$"):
        datasets.spiral(**{name: 0})


# Digits


def test_digits_split_is_a_partition_of_all_rows() -> None:
    train, test = datasets.digits(seed=5)
    assert (len(train), len(test)) == (1438, 359)
    pixels, labels = load_digits(return_X_y=True)
    found = torch.cat([torch.cat([part.x * 16, part.labels[:, None]], 1) for part in (train, test)])
    expected = np.column_stack([pixels, labels])
    assert sorted(map(tuple, found.tolist())) == sorted(map(tuple, expected.tolist()))


def test_digits_are_gray_images() -> None:
    for part in datasets.digits():
        assert part.image_shape == (1, 8, 8)
        assert (part.x.dtype, part.labels.dtype) == (torch.float32, torch.int64)
        assert (part.x.min(), part.x.max()) == (0, 1)
        assert part.labels.unique().tolist() == list(range(10))


def test_digits_split_depends_on_the_seed_and_the_share() -> None:
    train, test = datasets.digits(seed=5)
    again = datasets.digits(seed=5)
    assert equal(train, again[0])
    assert equal(test, again[1])
    assert not equal(test, datasets.digits(seed=6)[1])
    assert len(datasets.digits(test_share=0.5)[1]) == 898
    for share in (0, 1, -0.1):
        with pytest.raises(ValueError, match=f"^expected test_share between 0 and 1; got {share}$"):
            datasets.digits(test_share=share)


# MNIST, by tiny files of its format


def idx(values: np.ndarray) -> bytes:
    header = bytes((0, 0, 8, values.ndim)) + np.array(values.shape, dtype=">u4").tobytes()
    return header + values.astype(np.uint8).tobytes()


def tiny_contents() -> dict[str, bytes]:
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, size=(10, 2, 3))
    images[0] = [[0, 51, 127], [128, 204, 255]]
    labels = np.array([9, 0, 1, 2, 3, 4, 5, 6, 7, 8])
    return {
        "train-images-idx3-ubyte": idx(images[:6]),
        "train-labels-idx1-ubyte": idx(labels[:6]),
        "t10k-images-idx3-ubyte": idx(images[6:]),
        "t10k-labels-idx1-ubyte": idx(labels[6:]),
    }


def accept(monkeypatch: pytest.MonkeyPatch, contents: dict[str, bytes]) -> None:
    """Take these contents for MNIST's."""
    for part in ("_MNIST_TRAIN", "_MNIST_TEST"):
        files = tuple(
            replace(
                file,
                packed=md5(gzip.compress(contents[file.name], mtime=0)),
                unpacked=md5(contents[file.name]),
            )
            for file in getattr(images, part)
        )
        monkeypatch.setattr(images, part, files)


def md5(content: bytes) -> str:
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


def write(folder: Path, contents: dict[str, bytes], *, packed: bool = True) -> Path:
    folder.mkdir(exist_ok=True)
    for name, content in contents.items():
        if packed:
            (folder / f"{name}.gz").write_bytes(gzip.compress(content, mtime=0))
        else:
            (folder / name).write_bytes(content)
    return folder


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Four small files in MNIST's format, which pass for MNIST's."""
    accept(monkeypatch, tiny_contents())
    return write(tmp_path / "mnist", tiny_contents())


def test_mnist_reads_what_was_written(folder: Path) -> None:
    train, test = datasets.mnist(folder)
    assert (train.x.shape, test.x.shape) == ((6, 6), (4, 6))
    assert (train.x.dtype, train.labels.dtype) == (torch.float32, torch.int64)
    assert train.image_shape == test.image_shape == (1, 2, 3)
    torch.testing.assert_close(train.x[0], torch.tensor([0, 51, 127, 128, 204, 255]) / 255)
    assert train.labels.tolist() == [9, 0, 1, 2, 3, 4]
    assert test.labels.tolist() == [5, 6, 7, 8]


def test_mnist_binary_is_split_at_one_half(folder: Path) -> None:
    (gray, _), (binary, _) = datasets.mnist(folder), datasets.mnist(folder, binary=True)
    assert binary.x[0].tolist() == [0, 0, 0, 1, 1, 1]
    assert binary.x.dtype == torch.float32
    assert torch.equal(binary.x == 1, gray.x > 0.5)


def test_mnist_reads_unpacked_files_and_packed_in_any_way(folder: Path, tmp_path: Path) -> None:
    unpacked = write(tmp_path / "unpacked", tiny_contents(), packed=False)
    name = "t10k-labels-idx1-ubyte"
    mixed = write(tmp_path / "mixed", tiny_contents(), packed=False)
    (mixed / name).unlink()
    (mixed / f"{name}.gz").write_bytes(gzip.compress(tiny_contents()[name], 1, mtime=7))
    for one, two, three in zip(*map(datasets.mnist, (folder, unpacked, mixed)), strict=True):
        assert equal(one, two)
        assert equal(one, three)
    assert equal(datasets.mnist(str(folder))[1], datasets.mnist(folder)[1])


def test_mnist_names_a_missing_folder_and_a_missing_file(folder: Path) -> None:
    nowhere = folder / "nowhere"
    assert message_of(lambda: datasets.mnist(nowhere)) == (
        f"expected a folder of the four MNIST files; got {nowhere}"
    )
    (folder / "t10k-labels-idx1-ubyte.gz").unlink()
    assert message_of(lambda: datasets.mnist(folder)) == (
        "expected a file t10k-labels-idx1-ubyte.gz or t10k-labels-idx1-ubyte "
        f"in {folder}; got neither"
    )


IMAGES, LABELS = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"
DAMAGE = {
    "wrong magic number": (
        IMAGES,
        lambda content: b"\0\0\x0d\x03" + content[4:],
        "expected the magic number 0x00000803 at the start of {path}; got 0x00000d03",
    ),
    "labels for images": (
        IMAGES,
        lambda _: idx(np.arange(6)),
        "expected the magic number 0x00000803 at the start of {path}; got 0x00000801",
    ),
    "no number": (
        LABELS,
        lambda _: b"ab",
        "expected the magic number 0x00000801 at the start of {path}; got 0x6162",
    ),
    "empty": (
        LABELS,
        lambda _: b"",
        "expected a header of 8 bytes in {path}; got 0: it is truncated",
    ),
    "short header": (
        IMAGES,
        lambda content: content[:15],
        "expected a header of 16 bytes in {path}; got 15: it is truncated",
    ),
    "short content": (
        IMAGES,
        lambda content: content[:-1],
        "expected 52 bytes in {path}, as its header says; got 51: it is truncated",
    ),
    "long content": (
        LABELS,
        lambda content: content + b"\0",
        "expected 14 bytes in {path}, as its header says; got more: it is damaged",
    ),
    "huge header": (
        LABELS,
        lambda content: content[:4] + b"\xff" * 4 + content[8:],
        "expected at most 47,040,016 bytes in {path}, as MNIST has; got a header that announces "
        "4,294,967,303",
    ),
    "fewer labels": (
        LABELS,
        lambda _: idx(np.arange(5)),
        "expected as many labels in {path} as there are images, 6; got 5",
    ),
    "no digit": (
        LABELS,
        lambda _: idx(np.array([0, 1, 10, 3, 11, 5])),
        "expected labels 0 to 9 in {path}; got 10 in row 2",
    ),
    "other labels": (
        LABELS,
        lambda _: idx(np.zeros(6)),
        "expected the content of MNIST in {path}, with md5 "
        + md5(tiny_contents()[LABELS])
        + "; got md5 "
        + md5(idx(np.zeros(6))),
    ),
}


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize(("name", "damage", "message"), DAMAGE.values(), ids=DAMAGE)
def test_mnist_names_a_damaged_file(
    folder: Path,
    tmp_path: Path,
    name: str,
    damage: Callable[[bytes], bytes],
    message: str,
    packed: bool,
) -> None:
    contents = tiny_contents()
    damaged = write(tmp_path / "damaged", {**contents, name: damage(contents[name])}, packed=packed)
    path = damaged / (f"{name}.gz" if packed else name)
    assert message_of(lambda: datasets.mnist(damaged)) == message.format(path=path)


def test_mnist_names_a_bad_gzip_file(folder: Path) -> None:
    path = folder / f"{LABELS}.gz"
    packed = path.read_bytes()
    path.write_bytes(tiny_contents()[LABELS])
    assert message_of(lambda: datasets.mnist(folder)).startswith(
        f"expected a gzip file; got {path}: BadGzipFile: Not a gzipped file"
    )
    path.write_bytes(packed[:-3])
    assert message_of(lambda: datasets.mnist(folder)) == (
        f"expected a whole gzip file; got {path}, which is truncated"
    )
    path.write_bytes(packed[:-8] + bytes(4) + packed[-4:])
    assert "CRC check failed" in message_of(lambda: datasets.mnist(folder))
    path.write_bytes(packed[:10] + b"\xff" * (len(packed) - 10))
    assert message_of(lambda: datasets.mnist(folder)).startswith(
        f"expected a gzip file; got {path}: error: "
    )


def test_mnist_reads_no_more_than_the_header_announces(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a file that would grow a thousandfold, one byte more than it should have is enough."""
    read = 0

    class Counted(gzip.GzipFile):
        def read(self, size: int | None = -1) -> bytes:
            nonlocal read
            content = super().read(size)
            read += len(content)
            return content

    monkeypatch.setattr(images.gzip, "open", Counted)
    bomb = bytes(10**7)
    for content, message in (
        (bomb, "expected the magic number"),
        (tiny_contents()[IMAGES] + bomb, "as its header says; got more: it is damaged"),
        (bytes((0, 0, 8, 3)) + b"\xff" * 12 + bomb, "expected at most 47,040,016 bytes"),
    ):
        read = 0
        (folder / f"{IMAGES}.gz").write_bytes(gzip.compress(content))
        assert message in message_of(lambda: datasets.mnist(folder))
        assert read <= len(tiny_contents()[IMAGES]) + 1


def test_mnist_known_content_is_the_standard_one() -> None:
    standard = {file.name: file.packed for file in images._MNIST_TRAIN + images._MNIST_TEST}
    assert standard == {
        "train-images-idx3-ubyte": "f68b3c2dcbeaaa9fbdd348bbdeb94873",
        "train-labels-idx1-ubyte": "d53e105ee54ea40749a09fcbcd1e9432",
        "t10k-images-idx3-ubyte": "9fb629c4189551a2d022fa330f9573f3",
        "t10k-labels-idx1-ubyte": "ec29112dd5afa0611ce80d1b7f02629c",
    }
    assert images._MNIST_TRAIN[0].unpacked == "6bbc9ace898e44ae57da46a324031adb"


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder that stands in for the download address, and an empty cache."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            pass

    served = tmp_path / "served"
    served.mkdir()
    handler = partial(Quiet, directory=str(served))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as http:
        thread = threading.Thread(target=http.serve_forever, args=(0.01,))
        thread.start()
        address = f"http://127.0.0.1:{http.server_port}/"
        monkeypatch.setattr(images, "_MNIST_URL", address)
        monkeypatch.setattr(download.pooch, "os_cache", lambda name: tmp_path / "cache" / name)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        yield served
        http.shutdown()
        thread.join()


def test_mnist_is_downloaded_once(folder: Path, server: Path, tmp_path: Path) -> None:
    write(server, tiny_contents())
    train, test = datasets.mnist()
    for file in server.iterdir():
        file.unlink()
    again = datasets.mnist()
    for one, two, three in zip((train, test), again, datasets.mnist(folder), strict=True):
        assert equal(one, two)
        assert equal(one, three)
    assert len(list((tmp_path / "cache" / "pyro-moe").iterdir())) == 4


def test_mnist_download_of_a_wrong_file(folder: Path, server: Path) -> None:
    write(server, {**tiny_contents(), IMAGES: b"something else"})
    message = message_of(datasets.mnist)
    assert f"{IMAGES}.gz; got ValueError: MD5 hash of downloaded file" in message
    assert message.endswith(
        "give the folder of the four files as root=… (on the command line, --data-dir DIR)"
    )


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_mnist_download_of_a_file_that_is_gone(folder: Path, server: Path) -> None:
    assert f"{IMAGES}.gz; got HTTPError: 404" in message_of(datasets.mnist)
    gc.collect()  # pooch leaves its connection open after an error: let it go while nobody minds


def test_mnist_without_a_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        try:
            raise ConnectionRefusedError(111, "Connection refused")
        except OSError as error:
            raise OSError("Max retries exceeded\nand so on") from error

    monkeypatch.setattr(download.pooch, "retrieve", refuse)
    assert message_of(datasets.mnist) == (
        "expected to download https://ossci-datasets.s3.amazonaws.com/mnist/"
        "train-images-idx3-ubyte.gz; got ConnectionRefusedError: [Errno 111] Connection refused: "
        "give the folder of the four files as root=… (on the command line, --data-dir DIR)"
    )


@pytest.mark.skipif("PYRO_MOE_MNIST" not in os.environ, reason="PYRO_MOE_MNIST names no folder")
def test_mnist_itself() -> None:
    train, test = datasets.mnist(os.environ["PYRO_MOE_MNIST"])
    assert (train.x.shape, test.x.shape) == ((60000, 784), (10000, 784))
    assert train.image_shape == test.image_shape == (1, 28, 28)
    assert (train.x.min(), train.x.max()) == (0, 1)
    assert train.labels[:5].tolist() == [5, 0, 4, 1, 9]
    assert train.x.double().mean().item() == pytest.approx(0.1307, abs=1e-4)


# Tables

CSV = "a,b,kind,name,y\n1,2.5,0,u,0.5\n3,4.0,2,v,1.5\n5,6.5,1,w,2.5\n"


@pytest.fixture
def csv(tmp_path: Path) -> Callable[[str], Path]:
    """A function that writes text to a file."""

    def save(text: str, name: str = "my.csv") -> Path:
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return path

    return save


def save_parquet(path: Path, **columns: Any) -> Path:
    pytest.importorskip("pyarrow")
    pd.DataFrame(columns).to_parquet(path)
    return path


def test_table_takes_columns_by_name(csv: Callable[..., Path]) -> None:
    rows = datasets.table(csv(CSV), columns=["b", "a"], target="y")
    assert rows.x.tolist() == [[2.5, 1], [4, 3], [6.5, 5]]
    assert rows.y.tolist() == [0.5, 1.5, 2.5]
    assert (rows.x.dtype, rows.y.dtype) == (torch.float64, torch.float64)
    assert rows.labels is None
    assert rows.image_shape is None


def test_table_takes_all_other_columns(csv: Callable[..., Path]) -> None:
    path = csv("a,b,y\n1,2,3\n4,5,6\n", "MY.CSV")
    assert datasets.table(path).x.tolist() == [[1, 2, 3], [4, 5, 6]]
    assert datasets.table(path).y is None
    assert datasets.table(path, target="b").x.tolist() == [[1, 3], [4, 6]]
    assert datasets.table(path, target=["y", "a"]).x.tolist() == [[2], [5]]
    assert datasets.table(path, target=["y", "a"]).y.tolist() == [[3, 1], [6, 4]]
    assert datasets.table(str(path), columns="b").x.tolist() == [[2], [5]]


def test_table_keeps_whole_targets_whole(csv: Callable[..., Path]) -> None:
    path = csv("a,kind,yes,real\n1,0,True,1.0\n2,,False,2.0\n3,2,True,3.0\n")
    read = partial(datasets.table, path, columns=["a"], drop_missing=True)
    for target, values, dtype in [
        ("kind", [0, 2], torch.int64),
        ("yes", [1, 0, 1], torch.int64),
        ("real", [1, 2, 3], torch.float64),
        (["kind", "yes"], [[0, 1], [2, 1]], torch.int64),
        (["kind", "real"], [[0, 1], [2, 3]], torch.float64),
        (["kind"], [[0], [2]], torch.int64),
    ]:
        rows = read(target=target)
        assert rows.y.tolist() == values
        assert rows.y.dtype == dtype


def test_table_knows_missing_targets_as_nan(csv: Callable[..., Path]) -> None:
    path = csv("a,b,c\n1,2,5\n2,,6\n3,4,\n")
    rows = datasets.table(path, target="b", columns="a", missing_targets=True)
    assert torch.equal(rows.y.isnan(), torch.tensor([False, True, False]))
    assert rows.y[~rows.y.isnan()].tolist() == [2.0, 4.0]
    message = message_of(lambda: datasets.table(path, target="b", missing_targets=True))
    assert message.startswith(f"expected a value in every row of column 'c' of {path}; got none")
    whole = datasets.table(csv("a,b\n1,2\n2,3\n"), target="b", missing_targets=True)
    assert whole.y.dtype == torch.int64


def test_table_numbers_classes_in_the_order_given(csv: Callable[..., Path]) -> None:
    path = csv("a,kind\n1,dog\n2,cat\n3,\n4,dog\n")
    assert datasets.class_names(path, "kind") == ("cat", "dog")
    assert datasets.class_names(path, "a") is None
    choices = {"target": "kind", "classes": {"kind": ("dog", "cat"), "other": ("x",)}}
    rows = datasets.table(path, **choices, missing_targets=True)
    assert rows.y[[0, 1, 3]].tolist() == [0.0, 1.0, 0.0]
    assert rows.y[2].isnan()
    rows = datasets.table(path, **choices, drop_missing=True)
    assert rows.y.tolist() == [0, 1, 0]
    assert rows.y.dtype == torch.int64
    assert message_of(lambda: datasets.class_names(path, "b")).startswith("expected a column 'b'")


def test_table_drops_rows_that_lack_a_used_value(csv: Callable[..., Path]) -> None:
    path = csv("a,b,c\n1,2,\n,5,6\n7,8,NaN\n9,n/a,9\n")
    rows = datasets.table(path, columns=["a"], target="b", drop_missing=True)
    assert rows.x.tolist() == [[1], [7]]
    assert rows.y.tolist() == [2, 8]
    choices = {"columns": ["a"], "target": "b", "missing_targets": True}
    rows = datasets.table(path, **choices, drop_missing=True)
    assert rows.x.tolist() == [[1], [7], [9]]
    assert rows.y.tolist()[:2] == [2, 8]
    assert rows.y[2].isnan()


def test_table_reads_parquet(tmp_path: Path) -> None:
    path = save_parquet(
        tmp_path / "my.parquet", a=np.array([1, 2], np.int8), b=[0.5, 1.5], kind=[True, False]
    )
    rows = datasets.table(path, target="kind")
    assert rows.x.tolist() == [[1, 0.5], [2, 1.5]]
    assert rows.y.tolist() == [1, 0]


def test_table_parquet_of_other_types(tmp_path: Path) -> None:
    path = tmp_path / "my.parquet"
    save_parquet(path, a=[1.0, 2.0], day=[date(2020, 1, 2), date(2020, 1, 3)])
    assert message_of(lambda: datasets.table(path)) == (
        f"expected numbers in column 'day' of {path}; got '2020-01-02' in row 0" + OTHERS
    )
    save_parquet(path, a=["1", "2"])
    assert message_of(lambda: datasets.table(path)) == (
        f"expected numbers in column 'a' of {path}; got '1' in row 0" + OTHERS
    )
    save_parquet(path, a=[1.0, np.nan], b=[1, None])
    for name in "ab":
        assert message_of(lambda name=name: datasets.table(path, columns=name)) == (
            f"expected a value in every row of column {name!r} of {path}; got none in row 1 "
            f"(1 of 2 rows lack one): {DROP}"
        )


def test_table_parquet_of_decimals(tmp_path: Path) -> None:
    path = save_parquet(tmp_path / "my.parquet", a=[Decimal("1.5"), None, Decimal("2.25")])
    assert datasets.table(path, drop_missing=True).x.tolist() == [[1.5], [2.25]]


def test_table_parquet_without_pyarrow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "my.parquet"
    path.touch()
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    assert message_of(lambda: datasets.table(path)) == (
        f"expected pyarrow, to read {path}; got none: pip install 'pyro-moe[parquet]'"
    )


OTHERS = (
    ": choose other columns with columns=… (on the command line, --columns), or write a formula, "
    "in which text is a factor (pyro_moe.mixture; --formula)"
)
CLASSES = ": text targets require classes=… (on the command line, --experts categorical)"
ENCODING = (
    "expected {} text in {}; got other bytes: name its encoding, such as latin-1 or utf-16, with "
    "encoding=… (on the command line, --encoding)"
)
DROP = "leave them out with drop_missing=True (on the command line of fit, --drop-missing)"
BAD_TABLES = {
    "text": (
        CSV,
        {},
        "expected numbers in column 'name' of {path}; got 'u' in row 0" + OTHERS,
    ),
    "text among numbers": (
        "a,b\n1,2\n3,?\n",
        {},
        "expected numbers in column 'b' of {path}; got '?' in row 1" + OTHERS,
    ),
    "text target": (
        CSV,
        {"columns": ["a"], "target": "name"},
        "expected numbers in column 'name' of {path}; got 'u' in row 0" + CLASSES,
    ),
    "text after a dropped row": (
        "a,b\n1,\n2,x\n",
        {"drop_missing": True},
        "expected numbers in column 'b' of {path}; got 'x' in row 1" + OTHERS,
    ),
    "missing": (
        "a,b\n1,2\n3,\n4,\n",
        {},
        "expected a value in every row of column 'b' of {path}; got none in row 1 "
        f"(2 of 3 rows lack one): {DROP}",
    ),
    "missing target": (
        "a,b\n1,nan\n3,2\n",
        {"target": "b"},
        "expected a value in every row of column 'b' of {path}; got none in row 0 "
        f"(1 of 2 rows lack one): {DROP}; or keep them for a model of x with "
        "missing_targets=True (--missing-targets)",
    ),
    "not a class": (
        "a,b\n1,cat\n3,\n4,bird\n",
        {"target": "b", "classes": {"b": ("cat", "dog")}},
        "expected one of cat, dog in column 'b' of {path}; got 'bird' in row 2",
    ),
    "infinite": (
        "a,b\n1,2\n3,-inf\n",
        {},
        "expected finite numbers in column 'b' of {path}; got -inf in row 1",
    ),
    "too large": (
        "a\n1\n1e300\n",
        {},
        "expected numbers that float32 can hold in column 'a' of {path}; got 1e+300 in row 1",
    ),
    "unknown column": (
        "a,b\n1,2\n",
        {"columns": ["a", "c"]},
        "expected a column 'c' in {path}; got 'a', 'b'",
    ),
    "unknown target": (
        "a,b\n1,2\n",
        {"target": "c"},
        "expected a column 'c' in {path}; got 'a', 'b'",
    ),
    "target among the columns": (
        "a,b\n1,2\n",
        {"columns": ["a", "b"], "target": "b"},
        "expected each column of {path} once; got 'b' twice",
    ),
    "no columns": (
        "a\n1\n",
        {"target": "a"},
        "expected at least one column for x in {path}; got none",
    ),
    "no rows": ("a,b\n", {}, "expected rows of data in {path}; got none"),
    "no rows left": (
        "a,b\n1,\n",
        {"drop_missing": True},
        "expected rows of data in {path}; got none",
    ),
    "empty": (
        "",
        {},
        "expected a table in {path}; got EmptyDataError: No columns to parse from file",
    ),
    "longer row": (
        "a\n1\n2,3\n",
        {},
        "expected a table in {path}; got ParserError: Error tokenizing data. C error: "
        "Expected 1 fields in line 3, saw 2",
    ),
    "longer rows": (
        "a,b\n1,2,3\n4,5,6\n",
        {},
        "expected as many values in a row of {path} as there are column names, 2; got more",
    ),
}


@pytest.mark.parametrize(("text", "options", "message"), BAD_TABLES.values(), ids=BAD_TABLES)
def test_table_names_what_is_wrong(
    csv: Callable[..., Path], text: str, options: dict[str, Any], message: str
) -> None:
    path = csv(text)
    assert message_of(lambda: datasets.table(path, **options)) == message.format(path=path)


def test_table_names_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    path = tmp_path / "none.csv"
    assert message_of(lambda: datasets.table(path)) == (f"expected an existing file; got {path}")
    assert message_of(lambda: datasets.table(tmp_path)) == (
        f"expected a .csv, .tsv, .txt or .parquet file; got {tmp_path}"
    )
    path.write_bytes(b"a\n\xff\xfe\n")
    assert message_of(lambda: datasets.table(path)) == ENCODING.format("utf-8", path)
    pytest.importorskip("pyarrow")
    path = tmp_path / "bad.parquet"
    path.write_text("no parquet")
    assert message_of(lambda: datasets.table(path)).startswith(
        f"expected a table in {path}; got ArrowInvalid: "
    )


# By name


def test_load_by_name(folder: Path) -> None:
    for name, expected in [
        ("spiral", datasets.spiral(seed=3)),
        ("digits", datasets.digits(seed=3)),
        ("mnist", datasets.mnist(folder)),
    ]:
        train, test = datasets.load(name, data_dir=folder, seed=3)
        assert equal(train, expected[0])
        assert equal(test, expected[1])


def test_load_splits_a_table_from_the_seed(csv: Callable[..., Path]) -> None:
    path = csv("a\n" + "\n".join(map(str, range(50))))
    train, test = datasets.load(path, seed=1)
    assert (len(train), len(test)) == (40, 10)
    assert sorted(torch.cat([train.x, test.x]).flatten().tolist()) == list(range(50))
    again = datasets.load(str(path), seed=1)
    assert equal(test, again[1])
    assert not equal(test, datasets.load(path, seed=2)[1])


def test_load_leaves_rows_on_both_sides(csv: Callable[..., Path]) -> None:
    train, test = datasets.load(csv("a\n1\n2\n"))
    assert (len(train), len(test)) == (1, 1)
    assert message_of(lambda: datasets.load(csv("a\n1\n"))) == (
        "expected at least 2 rows, to train and to test on; got 1"
    )


@pytest.mark.parametrize("name", ["iris", "my.xlsx", "", "/some/folder"])
def test_load_names_what_there_is(name: str) -> None:
    assert message_of(lambda: datasets.load(name)) == (
        "expected data 'digits', 'spiral', 'mnist' or a .csv, .tsv, .txt or .parquet file; "
        f"got {name!r}"
    )
