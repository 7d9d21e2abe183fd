"""The house: who may import whom, without a circle, in folders that can be overlooked."""

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
# Each room, and the rooms that its files may import; only the front door sees both models and
# inference.
BELOW = {
    "distributions": set(),
    "processes": set(),
    "inference": {"distributions", "processes"},
    "models": {"distributions", "processes"},
    "progress": set(),
    "lazy": set(),
    "files": {"inference"},
    "text": set(),
    "rows": {"inference", "lazy"},
    "datasets": {"files", "rows", "lazy", "text", "inference"},
    "fitted": {"rows", "inference", "lazy"},
    "streams": {"rows", "inference"},
    "evaluation": {"fitted", "rows", "inference", "distributions"},
    "validation": {"evaluation", "fitted", "rows", "inference", "distributions"},
    "fitting": {
        "validation",
        "fitted",
        "streams",
        "rows",
        "progress",
        "inference",
        "files",
        "processes",
    },
    "plots": {"evaluation", "fitted", "rows", "text", "inference"},
    "selection": {"plots", "evaluation", "fitting", "fitted", "rows", "inference"},
    "criticism": {
        "files",
        "selection",
        "plots",
        "evaluation",
        "validation",
        "fitting",
        "fitted",
        "rows",
        "text",
        "inference",
    },
    "images": {"evaluation", "fitting", "rows", "inference", "models"},
    "stories": {"models"},
    "mixtures": {
        "selection",
        "stories",
        "evaluation",
        "fitting",
        "fitted",
        "rows",
        "inference",
        "models",
    },
    "runs": {
        "mixtures",
        "stories",
        "evaluation",
        "fitting",
        "fitted",
        "datasets",
        "files",
        "rows",
        "inference",
        "models",
    },
    "estimators": {"stories", "evaluation", "fitting", "fitted", "rows", "inference"},
    "paper": {
        "criticism",
        "plots",
        "files",
        "fitted",
        "images",
        "evaluation",
        "fitting",
        "datasets",
        "rows",
        "inference",
        "models",
    },
}
HOW = {f"pyro_moe.inference.{name}" for name in ("svi", "em", "initialize", "prior", "starts")}
LARGEST_FOLDER = 12


def module_of(path):
    parts = [*path.relative_to(ROOT).with_suffix("").parts]
    parts[0] = FOLDERS[parts[0]]
    return ".".join(parts).removesuffix(".__init__")


FILES = {
    module_of(path): path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))
}


def package_of(module):
    return module if FILES[module].name == "__init__.py" else module.rpartition(".")[0]


def imported(source, package):
    """What is imported from pyro_moe, as (module, name) pairs, also where it is so late."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {(alias.name, "") for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")
            base = parents[: len(parents) + 1 - node.level] if node.level else []
            base += node.module.split(".") if node.module else []
            found |= {(".".join(base), alias.name) for alias in node.names}
    return {(base, name) for base, name in found if base.split(".")[0] == "pyro_moe"}


def modules_imported(source, package):
    """The modules of pyro_moe that a file imports, or of which it imports a name."""
    return {
        f"{base}.{name}" if f"{base}.{name}" in FILES else base
        for base, name in imported(source, package)
    }


GRAPH = {
    module: modules_imported(path.read_text(encoding="utf-8"), package_of(module)) - {module}
    for module, path in FILES.items()
}


def room_of(module):
    return module.split(".")[1] if "." in module else ""


@pytest.mark.parametrize(
    "module", [module for module in FILES if room_of(module) not in ("", "cli", "__main__")]
)
def test_a_file_imports_only_rooms_below_its_own(module):
    rooms = {room_of(other) for other in GRAPH[module]} - {room_of(module)}
    assert rooms <= BELOW[room_of(module)]


def test_what_reads_a_fit_knows_nothing_of_how_it_came_about():
    readers = [m for m in FILES if room_of(m) in ("fitted", "evaluation", "plots", "criticism")]
    assert {module: GRAPH[module] & HOW for module in readers} == {m: set() for m in readers}


def test_there_is_no_circle():
    done, path = set(), []

    def descend(module):
        assert module not in path, " > ".join([*path[path.index(module) :], module])
        if module in done:
            return
        path.append(module)
        for other in sorted(GRAPH[module] & GRAPH.keys()):
            descend(other)
        done.add(path.pop())

    for module in GRAPH:
        descend(module)
    assert done == GRAPH.keys()


def test_every_import_is_of_a_file_that_is_there():
    assert {other for found in GRAPH.values() for other in found} <= FILES.keys()


def test_no_private_name_crosses_a_package():
    crossing = {
        (module, base, name)
        for module, path in FILES.items()
        for base, name in imported(path.read_text(encoding="utf-8"), package_of(module))
        if name.startswith("_") and not f"{base}.".startswith(f"{package_of(module)}.")
    }
    assert crossing == set()


@pytest.mark.parametrize(
    "folder", sorted({path.parent for path in FILES.values()}), ids=lambda f: f.name
)
def test_no_folder_has_more_files_than_can_be_overlooked(folder):
    assert len([each for each in folder.iterdir() if each.is_file()]) <= LARGEST_FOLDER


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import pyro_moe", {"pyro_moe"}),
        ("import pyro_moe.fitting as f", {"pyro_moe.fitting"}),
        ("from pyro_moe import fitting", {"pyro_moe.fitting"}),
        ("from pyro_moe.inference.svi import SVI", {"pyro_moe.inference.svi"}),
        ("from ..fitting import fit", {"pyro_moe.fitting"}),
        ("from .. import inference", {"pyro_moe.inference"}),
        ("def late():\n    from pyro_moe import fitting", {"pyro_moe.fitting"}),
        ("from .gmm import GMM", {"pyro_moe.models.gmm"}),
        ("import pyro, torch.nn", set()),
    ],
)
def test_an_import_is_found(source, expected):
    assert modules_imported(source, "pyro_moe.models") == expected


@pytest.mark.parametrize("package", FOLDERS.values())
def test_the_names_that_a_package_offers_exist(package):
    module = importlib.import_module(package)
    assert [name for name in module.__all__ if not hasattr(module, name)] == []
    assert len(set(module.__all__)) == len(module.__all__)


@pytest.mark.parametrize(("folder", "package"), FOLDERS.items())
def test_each_folder_is_installed_under_its_name(folder, package):
    module = importlib.import_module(package)
    assert Path(module.__file__).resolve() == ROOT / folder / "__init__.py"
