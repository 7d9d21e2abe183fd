"""What is imported when, and that names which are imported late are names like others."""

import ast
import inspect
import os
import pickle
import subprocess
import sys
import types
from importlib import import_module
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import scipy.sparse

import pyro_moe
from pyro_moe import Fit, lazy

HEAVY = {"arviz", "matplotlib", "pandas", "pooch", "scipy", "sklearn", "torch._dynamo"}
PACKAGES = ("pyro_moe", "pyro_moe.datasets")


def imported_by(code, *options):
    """The modules that a new process has after some code, and what it printed."""
    code += "\nimport sys; print(*sys.modules)"
    done = subprocess.run(  # noqa: S603
        [sys.executable, *options, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd=os.sep,
    )
    return set(done.stdout.split())


def test_the_package_imports_neither_torch_nor_anything_that_is_heavy():
    found = imported_by("import pyro_moe")
    assert not found & {"torch", "pyro", "numpy", *HEAVY}
    assert {name for name in found if name.startswith("pyro_moe")} == {"pyro_moe", "pyro_moe.lazy"}


def test_what_a_fit_needs_imports_little_beyond_pyro():
    code = """
    import numpy as np
    from pyro_moe import Rows, datasets, evaluation, fit, models
    from pyro_moe.rows import as_tensors
    as_tensors(np.ones((3, 2)))
    """
    found = imported_by(inspect.cleandoc(code), "-W", "error")
    beyond = {name.partition(".")[0] for name in found - imported_by("import pyro.infer")}
    assert beyond - sys.stdlib_module_names <= {"pyro_moe", "safetensors", "numpy"}
    assert not found & HEAVY


@pytest.mark.parametrize("package", PACKAGES)
def test_names_are_listed_once_for_readers_and_once_for_imports(package):
    module = import_module(package)
    tree = ast.parse(inspect.getsource(module))
    (checked,) = (n for n in tree.body if isinstance(n, ast.If))
    imports = {alias.name: node.module for node in checked.body for alias in node.names}
    assert sorted(imports) == sorted(module.__all__)
    for name, home in imports.items():
        at_home = import_module(f"{package}.{home or name}")
        assert getattr(module, name) is (getattr(at_home, name) if home else at_home)


@pytest.mark.parametrize("package", PACKAGES)
def test_all_names_are_found_before_they_are_used(package):
    listed = imported_by(f"import {package} as p; print(*dir(p))")
    assert listed >= {*import_module(package).__all__, "__doc__", "__name__"}
    assert "torch" not in listed


def test_names_and_modules_are_there_as_if_they_had_been_imported():
    code = """
    from pyro_moe import *
    print(*dir())
    import pyro_moe
    print(pyro_moe.fitting.geometric.__name__, pyro_moe.inference.svi.SVI.__name__)
    """
    assert imported_by(inspect.cleandoc(code)) >= {*pyro_moe.__all__, "geometric", "SVI"}


@pytest.mark.parametrize("package", PACKAGES)
@pytest.mark.parametrize("name", ["no_such_name", "_nothing", "__wrapped__"])
def test_a_name_that_is_not_there_is_an_attribute_error(package, name):
    module = import_module(package)
    with pytest.raises(AttributeError, match=f"^module '{package}' has no attribute '{name}'$"):
        getattr(module, name)
    assert not hasattr(module, name)
    with pytest.raises(ImportError, match=f"cannot import name '{name}' from '{package}'"):
        exec(f"from {package} import {name}")  # noqa: S102


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package with a module that counts its imports, and one whose imports fail."""
    folder = tmp_path / "late_package"
    folder.mkdir()
    Path(folder, "__init__.py").write_text(
        "from pyro_moe import lazy\n__all__ = ['value']\n"
        "__getattr__, __dir__ = lazy.names(__name__, {'home': ['value', 'gone']})\n"
    )
    Path(folder, "home.py").write_text("value = object()\n")
    Path(folder, "broken.py").write_text("import no_such_library\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield import_module("late_package")
    for name in [name for name in sys.modules if name.startswith("late_package")]:
        del sys.modules[name]


def test_a_name_is_looked_up_once(package):
    assert "late_package.home" not in sys.modules
    value = package.value
    assert vars(package)["value"] is value
    sys.modules["late_package.home"].value = None
    assert package.value is value


def test_an_import_that_fails_says_which(package):
    with pytest.raises(ModuleNotFoundError, match="no_such_library"):
        _ = package.broken
    with pytest.raises(AttributeError, match=r"'late_package\.home' has no attribute 'gone'"):
        _ = package.gone


@pytest.mark.parametrize("name", [name for name in pyro_moe.__all__ if name[0].isupper()])
def test_classes_are_pickled_by_their_names(name):
    value = getattr(pyro_moe, name)
    assert pickle.loads(pickle.dumps(value)) is value  # noqa: S301


@pytest.mark.parametrize(
    ("method", "function"),
    [("report", "pyro_moe.criticism.report"), ("resume", "pyro_moe.fitting.resume")],
)
def test_late_methods_are_functions_of_the_fit(method, function):
    home, _, name = function.rpartition(".")
    expected = getattr(import_module(home), name)
    assert getattr(Fit, method) is expected
    bound = getattr(object.__new__(Fit), method)
    assert isinstance(bound, types.MethodType)
    assert bound.__func__ is expected
    assert inspect.getdoc(bound) == inspect.getdoc(expected)


def test_the_first_use_of_a_late_method_is_as_the_later_ones():
    class Text(str):
        capwords = lazy.method("string", "capwords")

    text = Text("a b")
    assert not isinstance(vars(Text)["capwords"], types.FunctionType)
    assert [text.capwords(), text.capwords(), Text.capwords("c d")] == [
        "A B",
        "A B",
        "C D",
    ]
    assert isinstance(vars(Text)["capwords"], types.FunctionType)


@pytest.mark.parametrize(
    ("value", "module", "classes", "expected"),
    [
        (pd.DataFrame(), "pandas", ["DataFrame"], True),
        (pd.Series(dtype=float), "pandas", ["DataFrame", "Series"], True),
        (pd.Series(dtype=float), "pandas", ["DataFrame"], False),
        (scipy.sparse.csr_array((2, 2)), "scipy.sparse", ["spmatrix", "sparray"], True),
        (scipy.sparse.csr_matrix((2, 2)), "scipy.sparse", ["spmatrix", "sparray"], True),
        (np.ones(2), "scipy.sparse", ["spmatrix", "sparray"], False),
        (np.ones(2), "no_such_module", ["anything"], False),
        (np.ones(2), "numpy", ["no_such_class"], False),
    ],
)
def test_a_class_is_known_without_its_module(value, module, classes, expected):
    assert lazy.is_instance(value, module, *classes) is expected
    assert ("no_such_module" in sys.modules) is False
