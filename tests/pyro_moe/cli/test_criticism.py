"""The commands that criticize a run say what the library says."""

import re

import numpy as np
import pandas as pd
import pytest
import torch
from torch.testing import assert_close

from pyro_moe import cli, criticism, evaluation, runs


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A table of two regimes, and runs of a right and a wrong story of it."""
    folder = tmp_path_factory.mktemp("runs")
    rng = np.random.default_rng(0)
    c = rng.integers(2, size=2000)
    a, b = rng.normal(size=2000) + 5 * c, rng.normal(size=2000)
    price = np.where(c == 0, 2 * a + b, 3 - a) + 0.2 * rng.normal(size=2000)
    pd.DataFrame({"a": a, "b": b, "price": price}).to_csv(folder / "my.csv", index=False)
    for name, number in (("right", 2), ("wrong", 1)):
        done = cli.main(
            f"fit gmmmoe --data {folder}/my.csv --target price --num-components {number} "
            f"--epochs 60 --quiet --out {folder}/{name}".split()
        )
        assert done == 0
    return folder


def out_of(line, capsys, code=0):
    capsys.readouterr()
    assert cli.main(line.split()) == code
    streams = capsys.readouterr()
    return streams.err if code else streams.out


def test_a_right_story_passes(folder, capsys):
    output = out_of(f"check {folder}/right", capsys)
    fit, _, test = runs.restore(folder / "right")
    assert str(criticism.check(fit, test)) in output
    assert "none of" in output
    assert f"{len(test)} rows that were not fitted" in output


def test_a_wrong_story_does_not(folder, capsys):
    output = out_of(f"check {folder}/wrong --replicates 100", capsys)
    fit, _, test = runs.restore(folder / "wrong")
    surprises = criticism.check(fit, test, num_replicates=100).surprises()
    assert len(surprises) > 0
    for statistic in set(surprises["statistic"]):
        assert statistic in output
    (header,) = [line.split() for line in output.splitlines() if "adjusted_p_value" in line]
    assert header == [
        "variable",
        "component",
        "statistic",
        "column",
        "observed",
        "simulated",
        "p_value",
        "adjusted_p_value",
    ]


def test_every_statistic_is_printed_if_asked_for(folder, capsys):
    output = out_of(f"check {folder}/right --replicates 40 --all", capsys)
    fit, _, test = runs.restore(folder / "right")
    table = criticism.check(fit, test, num_replicates=40).table
    assert len(re.findall(r"^ *[xy] ", output, re.M)) == len(table)


def test_runs_are_compared_on_the_rows_that_none_has_seen(folder, capsys):
    output = out_of(f"compare {folder}/wrong {folder}/right", capsys)
    fits = {name: runs.restore(folder / name)[0] for name in ("wrong", "right")}
    test = runs.restore(folder / "right")[2]
    table = criticism.compare(fits, test)
    lines = output.splitlines()[-2:]
    for line, name in zip(lines, ("right", "wrong"), strict=True):
        assert line.startswith(str(folder / name))
        assert f"{table.loc[name, 'log_density']:.4f}" in line
    assert "loo" not in output  # points, not posteriors


def test_runs_of_other_rows_are_not_compared(folder, capsys, tmp_path):
    pd.read_csv(folder / "my.csv").iloc[:1000].to_csv(tmp_path / "part.csv", index=False)
    line = f"fit gmmmoe --data {tmp_path}/part.csv --target price --num-components 2 --quiet"
    assert cli.main([*line.split(), "--epochs", "3", "--out", str(tmp_path / "part")]) == 0
    message = out_of(f"compare {folder}/right {tmp_path}/part", capsys, code=2)
    assert message == (
        "pyro-moe: expected runs of the same data; got other test rows in "
        f"{tmp_path}/part than in {folder}/right\n"
    )


def test_a_report_lies_in_the_run_folder_or_where_it_shall(folder, capsys, tmp_path):
    output = out_of(f"report {folder}/wrong --out {tmp_path}/page.html", capsys)
    assert output == f"report: {tmp_path}/page.html\n"
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "<title>wrong</title>" in page
    assert "Data simulated from the model differ from these rows" in page
    assert "price" in page
    out_of(f"report {folder}/right", capsys)
    assert (folder / "right" / "report.html").exists()


def test_rows_unlike_those_fitted_are_flagged(folder, capsys, tmp_path):
    table = pd.read_csv(folder / "my.csv").iloc[:9]
    table.loc[9] = [40.0, -40.0, 0.0]
    table.to_csv(tmp_path / "new.csv", index=False)
    line = f"predict {folder}/right --data {tmp_path}/new.csv --out {tmp_path}/p.csv --novelty"
    output = out_of(line, capsys)
    fit, _, test = runs.restore(folder / "right")
    x = torch.tensor(table[["a", "b"]].to_numpy(), dtype=torch.float64)
    expected = evaluation.novelty(fit, x, reference=test.x).p_value
    column = torch.tensor(pd.read_csv(tmp_path / "p.csv")["novelty_p_value"].to_numpy())
    assert_close(column.float(), expected, rtol=1e-4, atol=1e-6)
    assert column[-1] == pytest.approx(1 / (len(test) + 1))
    assert f"{int((column < 0.01).sum())} rows differ from the fitted rows (p < 0.01)" in output


@pytest.mark.filterwarnings("always")  # the program prints warnings
def test_novelty_without_the_fitted_table_has_training_rows_as_reference(folder, capsys, tmp_path):
    table = pd.read_csv(folder / "my.csv")
    table.iloc[:9].to_csv(tmp_path / "new.csv", index=False)
    (folder / "my.csv").rename(folder / "moved.csv")
    line = f"predict {folder}/right --data {tmp_path}/new.csv --out {tmp_path}/p.csv --novelty"
    try:
        assert cli.main(line.split()) == 0
    finally:
        (folder / "moved.csv").rename(folder / "my.csv")
    assert "rows are compared to training rows" in capsys.readouterr().err
    x = table[["a", "b"]].iloc[:9]
    expected = evaluation.novelty(runs.fit_of(folder / "right", x), x).p_value
    column = torch.tensor(pd.read_csv(tmp_path / "p.csv")["novelty_p_value"].to_numpy())
    assert_close(column.float(), expected, rtol=1e-6, atol=0.0)


@pytest.mark.parametrize("command", ["check", "compare", "report"])
def test_a_folder_without_a_run_is_refused(command, capsys, tmp_path):
    message = out_of(f"{command} {tmp_path}", capsys, code=2)
    assert message.startswith(f"pyro-moe: expected a run folder; got {tmp_path}")
