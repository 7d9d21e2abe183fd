"""``pyro-moe select`` is the call of `select`, and of `select_mixture` for a formula."""

import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

import pyro_moe
from pyro_moe.cli import main

FORMULA = "count ~ size + kind"


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """Two lines of counts, with an exposure, a factor, weights and a gap."""
    rng = np.random.default_rng(0)
    component, size, time = rng.integers(0, 2, 90), rng.uniform(0, 2, 90), rng.uniform(1, 5, 90)
    rows = pd.DataFrame({"size": size, "time": time, "kind": rng.choice(["a", "b"], 90)})
    rows["count"] = rng.poisson(time * np.exp(np.where(component, 2.5 - size, 0.1 + 0.4 * size)))
    rows["repeats"] = rng.integers(1, 3, 90)
    rows.loc[4, "size"] = None
    path = tmp_path_factory.mktemp("select") / "t.csv"
    rows.to_csv(path, index=False)
    return path


def ran(table, *options):
    return main(["select", *options, "--data", str(table), "--quiet"])


BRIEF = ("--num-components", "1", "2", "--restarts", "2", "--drop-missing")


def test_by_formula_it_is_the_call(table, capsys):
    options = ("--offset", "log(time)", "--weights", "repeats", "--folds", "3")
    status = ran(table, "me", "--formula", FORMULA, "--family", "poisson", *options, *BRIEF)
    printed = capsys.readouterr().out
    found = pyro_moe.select_mixture(
        FORMULA,
        pd.read_csv(table),
        family="poisson",
        offset="log(time)",
        weights="repeats",
        folds=3,
        num_components=[1, 2],
        restarts=2,
        missing="drop",
        progress=False,
    )
    assert status == 0
    assert "log density of 89 held-out rows" in printed
    assert "recommended: me with 2 components" in printed
    for k in (1, 2):
        assert f"{found.table['log_density'][k]:.4f}" in printed
        assert f"{found.table['bic'][k]:.2f}" in printed
    assert str(found.fit.summary()) in printed


def test_whoever_reads_the_output_may_have_enough(table):
    command = [sys.executable, "-m", "pyro_moe", "select", "me", "--formula", "count ~ size"]
    command += ["--data", str(table), "--quiet", *BRIEF]
    with subprocess.Popen(  # noqa: S603
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as running:
        running.stdout.close()
        error = running.stderr.read()
    assert running.returncode == 0
    assert b"Broken pipe" not in error


def test_families_are_candidates(table, capsys, tmp_path):
    picture = tmp_path / "curves.svg"
    families = ("--family", "normal", "student-t", "--out", str(picture))
    assert ran(table, "me", "--formula", "count ~ size", *families, *BRIEF) == 0
    printed = capsys.readouterr().out
    assert {"me normal", "me student-t"} <= {
        " ".join(line.split()[:2]) for line in printed.split("\n")
    }
    assert picture.read_text().startswith("<?xml")


def test_by_columns_it_takes_weights_as_well(table, capsys):
    columns = ("--target", "count", "--columns", "size", "--experts", "poisson")
    assert ran(table, "me", *columns, "--weights", "repeats", *BRIEF) == 0
    weighted = capsys.readouterr().out
    assert ran(table, "me", *columns, *BRIEF) == 0
    assert capsys.readouterr().out != weighted


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ("--target", "count", "--family", "poisson"),
            "expected --formula with --family; got none",
        ),
        (("--target", "count", "--formula", FORMULA), "expected no --target with --formula"),
        (("--formula", FORMULA, "--weight-type", "sampling"), "expected --weights"),
        (("--formula", "kind ~ time", "--family", "normal"), "expected numbers in the target"),
        (("--formula", FORMULA), "expected values in all rows of 'size'; got 1 of 90 missing"),
    ],
)
def test_what_is_refused(table, options, message, capsys):
    assert ran(table, "me", *options) == 2
    assert message in capsys.readouterr().err
