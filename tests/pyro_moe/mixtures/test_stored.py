"""A fit by formula that was saved is the one that is restored, and runs no program."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from pyro_moe import DataError, MixtureFit, mixture, runs
from pyro_moe.mixtures.formulas import designed
from pyro_moe.mixtures.formulas.known import unknown_part
from pyro_moe.mixtures.formulas.stored import as_data, from_data
from pyro_moe.runs.layout import sealed

BRIEF = {"restarts": 1, "missing": "drop"}
OTHERS = " - component - known - flag - group - `lead time`"
CASES = {
    "factors": {"formula": "y ~ x * level | x"},
    "means": {"formula": "y ~ center(x) + poly(time, 2) | scale(time)"},
    "splines": {"formula": "y ~ bs(x, df=4) + np.log(`lead time`)"},
    "contrasts": {"formula": "y ~ x + C(level, contr.sum)", "unseen": "reference"},
    "groups": {
        "formula": "count ~ x",
        "family": "poisson",
        "offset": "np.log(time)",
        "groups": "group",
        "shared": ["x"],
    },
    "offsets": {
        "formula": [
            "count ~ x + offset(log(time))",
            "y ~ . - component - known - flag - group - `lead time`",
        ],
        "family": ["poisson", "normal"],
    },
    "weights": {"formula": "y ~ x", "weights": "w"},
    "survey": {"formula": "y ~ x", "weights": "w", "weight_type": "sampling"},
    "labels": {"formula": "y ~ x", "labels": "known"},
    "labels in another order": {"formula": "y ~ x", "labels": "known", "order": [1, 0]},
    "two targets": {"formula": ["y ~ x", "count ~ x"], "family": ["normal", "poisson"]},
    "classes": {"formula": "level ~ x", "family": "categorical"},
    "two classes": {"formula": "flag ~ x", "family": "bernoulli"},
    "deepmoe": {"formula": "y ~ x + level | x", "story": "deepmoe", "epochs": 1, "weights": "w"},
    "gmmmoe": {"formula": "y ~ x | x + time", "story": "gmmmoe", "epochs": 2},
}


@pytest.fixture(scope="module")
def rows(table):
    number = np.arange(len(table))
    rows = table.assign(w=np.where(number % 7 == 0, 0.0, 1.5), **{"lead time": table["time"]})
    rows["known"] = np.where(number % 3 == 0, rows["component"], -1)
    rows["flag"] = np.where(rows["component"] == 1, "yes", "no")
    rows["level"] = pd.array(rows["level"], dtype="string")
    rows.loc[[3, 9], "x"] = np.nan
    return rows


@pytest.mark.parametrize("case", CASES)
def test_a_restored_fit_is_the_saved_one_bit_for_bit(case, rows, tmp_path):
    fit = mixture(data=rows, **BRIEF, **CASES[case])
    runs.save(fit, tmp_path)
    restored = runs.fit_of(tmp_path, rows)
    assert type(restored) is type(fit)
    assert restored.restored is None  # the same rows
    new = rows.dropna().head(5)
    assert torch.equal(fit.predict(new).mean, restored.predict(new).mean)
    assert torch.equal(fit.predict(new).gate, restored.predict(new).gate)
    assert fit.params.equals(restored.params)
    assert as_data(restored.design) == as_data(fit.design)
    if isinstance(fit, MixtureFit):
        assert restored.converged == fit.converged
        assert restored.llf == fit.llf
        assert restored.posterior().equals(fit.posterior())
        assert str(restored.summary()) == str(fit.summary())


def test_a_fit_restored_with_other_rows_predicts_and_asks_for_its_rows(fitted, table, tmp_path):
    runs.save(fitted, tmp_path)
    new = table[["x", "level"]].head(4)
    restored = runs.fit_of(tmp_path, new)
    assert torch.equal(fitted.predict(new).mean, restored.predict(new).mean)
    assert fitted.params.equals(restored.params)
    assert "restored without its 160 training rows" in repr(restored)
    with pytest.raises(DataError, match=r"expected data=…"):
        restored.bse  # noqa: B018


def test_a_design_is_text_and_numbers(rows):
    design, _ = designed(["y ~ poly(x, 2) * level | scale(time)"], rows.dropna())
    stored = json.loads(json.dumps(as_data(design)))
    back = from_data(stored)
    assert back.features(rows.dropna()).equals(design.features(rows.dropna()))
    assert back.target(rows.dropna()).equals(design.target(rows.dropna()))


def test_levels_that_are_no_text_are_not_stored(table, tmp_path):
    fit = mixture("y ~ part", table.assign(part=pd.cut(table["x"], 2)), restarts=1)
    with pytest.raises(
        DataError, match=r"expected levels of 'part' that are texts or numbers.*got Interval"
    ):
        runs.save(fit, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("load", [runs.load, lambda *a, **k: runs.fit_of(*a, None, **k)])
def test_a_formula_with_a_program_needs_trust(table, tmp_path, load):
    runs.save(mixture("y ~ x.clip(0, 3)", table, restarts=1), tmp_path)
    with pytest.raises(DataError, match=r"expected trust_code=True.*got 'x.clip\(0, 3\)'"):
        load(tmp_path)
    assert runs.fit_of(tmp_path, table, trust_code=True).restored is None


def changed(folder, to, change):
    """A run whose settings were changed on purpose, with their SHA-256."""
    settings = json.loads((folder / "settings.json").read_text())
    del settings["sha256"]
    files = {name: (folder / name).read_bytes() for name in settings.pop("files")}
    change(settings)
    to.mkdir()
    for name, content in {**files, "settings.json": sealed(settings, files)}.items():
        (to / name).write_bytes(content)
    return to


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["factors"].__setitem__(1, ["open('f', 'w')", "python"]), "trust_code=True"),
        (lambda c: c["factors"].__setitem__(1, ["x", "program"]), "expected one of"),
        (lambda c: c["terms"][1]["factors"].__setitem__(0, 99), "IndexError"),
        (lambda c: c["terms"][1]["scoped"].__setitem__(0, [[99, False]]), "IndexError"),
        (lambda c: c["terms"][1]["columns"].__setitem__(0, "q"), "expected columns of the formula"),
        (lambda c: c["levels"].__setitem__("level", [["a"]]), "a text or a number"),
        (lambda c: c["constants"].__setitem__("x", {"pickle": "x"}), "got 'pickle'"),
        (lambda c: c.__setitem__("kinds", 3), "names with values"),
    ],
)
def test_a_hostile_formula_ends_in_one_line(fitted, tmp_path, change, message):
    runs.save(fitted, tmp_path / "run")
    experts = lambda settings: settings["formula"]["design"]["experts"][0]  # noqa: E731
    folder = changed(tmp_path / "run", tmp_path / "bad", lambda s: change(experts(s)))
    with pytest.raises(DataError, match=message):
        runs.load(folder)
    assert not Path("f").exists()


@pytest.mark.parametrize(
    "expression",
    [
        "np.log(x + 1)",
        "np.clip(x, 0, 3) ** 2",
        "C(x, contr.treatment('a'))",
        "C(x, levels=['a', 'b'])",
        "bs(`lead time`, df=4)",
        "(x > 2) & ~y",
    ],
)
def test_known_functions_of_columns_are_no_programs(expression):
    assert unknown_part(expression) is None


@pytest.mark.parametrize(
    "expression",
    [
        "x.to_pickle('f')",
        "__import__('os').system('x')",
        "().__class__",
        "np.load('f', allow_pickle=True)",
        "np.log(x, out=y)",
        "np.log(*x)",
        "np.log(**x)",
        "np.lib.format.open_memmap('f')",
        "9**9**9",
        "'a' * 10**9",
        "[1] * 10**9",
        "1 << 10**9",
        "(lambda: 1)()",
        "[i for i in x]",
        "x[0]",
        "f'{x}'",
        "`lambda`: 1",
        "`x y`.pop()",
        "__FORMULAIC_CONTEXT__",
        "``",
        "x +",
        "-" * 100_000 + "x",
    ],
)
def test_everything_else_is_a_program(expression):
    assert unknown_part(expression) is not None
