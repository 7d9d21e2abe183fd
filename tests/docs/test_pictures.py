"""The picture of the architecture shows the rules that the code is held to."""

import importlib.util
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
APART = {
    "paper",
    "progress",
    "files",
    "lazy",
    "stories",
    "text",
    "processes",
    "images",
}  # small rooms, which the page names in its text


def module(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


BELOW = module(ROOT / "tests" / "test_architecture.py").BELOW
LAYERS = module(ROOT / "docs" / "pictures" / "layers.py").LAYERS
ORDER = [name for layer in reversed(LAYERS) for name, _ in layer]


def test_every_room_is_drawn_once():
    assert sorted(ORDER) == sorted((BELOW.keys() - APART) | {"cli"})


@pytest.mark.parametrize("room", sorted(BELOW.keys() - APART))
def test_a_room_imports_from_below_or_from_its_left(room):
    assert BELOW[room] - APART <= set(ORDER[: ORDER.index(room)])
