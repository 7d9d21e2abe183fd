"""The house: stories, inference, and the front door that alone sees both."""

import ast
import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = {
    "pyro_moe": "pyro_moe",
    "models": "pyro_moe.models",
    "inference": "pyro_moe.inference",
}


def imported(source, package):
    """The modules of pyro_moe that a file in a package imports, also where it does so late."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")
            base = parents[: len(parents) + 1 - node.level] if node.level else []
            base += node.module.split(".") if node.module else []
            found |= {".".join([*base, alias.name]) for alias in node.names}
    return {name for name in found if name.split(".")[0] == "pyro_moe"}


def strangers(source, package):
    """What a file imports from pyro_moe outside its own package."""
    return {name for name in imported(source, package) if not f"{name}.".startswith(f"{package}.")}


FILES = [
    pytest.param(path, FOLDERS[folder], id=f"{folder}/{path.name}")
    for folder in ("models", "inference")
    for path in sorted((ROOT / folder).glob("**/*.py"))
]


@pytest.mark.parametrize(("path", "package"), FILES)
def test_stories_and_inference_import_only_their_own_folder(path, package):
    assert strangers(path.read_text(), package) == set()


def test_every_folder_has_files():
    folders = {parameter.values[1] for parameter in FILES}
    assert folders == {"pyro_moe.models", "pyro_moe.inference"}


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import pyro_moe", {"pyro_moe"}),
        ("import pyro_moe.fitting as f", {"pyro_moe.fitting"}),
        ("from pyro_moe import fit", {"pyro_moe.fit"}),
        ("from pyro_moe.inference.svi import SVI", {"pyro_moe.inference.svi.SVI"}),
        ("from ..fitting import fit", {"pyro_moe.fitting.fit"}),
        ("from .. import inference", {"pyro_moe.inference"}),
        ("def late():\n    from pyro_moe import fit", {"pyro_moe.fit"}),
        ("from .mixture import GaussianMixture", set()),
        ("from . import mixture", set()),
        ("import pyro, torch.nn", set()),
        ("from pyro_moe.models.mixture import GaussianMixture", set()),
    ],
)
def test_a_forbidden_import_would_be_found(source, expected):
    assert strangers(source, "pyro_moe.models") == expected


@pytest.mark.parametrize("package", FOLDERS.values())
def test_the_names_that_a_package_offers_exist(package):
    module = importlib.import_module(package)
    assert [name for name in module.__all__ if not hasattr(module, name)] == []
    assert len(set(module.__all__)) == len(module.__all__)


@pytest.mark.parametrize(("folder", "package"), FOLDERS.items())
def test_each_folder_is_installed_under_its_name(folder, package):
    module = importlib.import_module(package)
    assert Path(module.__file__).resolve() == ROOT / folder / "__init__.py"
