"""The demo: what it prints comes from run folders that the other commands take."""

import functools
import json
from pathlib import Path

import pytest

import pyro_moe
from pyro_moe import cli, datasets, runs
from pyro_moe.cli import choices, demo

EXPERTS = {
    "DVMoE": "fit dvmoe --data spiral --epochs 1",
    "another": "fit me --data spiral --epochs 1 --initialize random",
}
CLUSTERS = {"a mixture": "fit gmm --data digits --epochs 1"}


@pytest.fixture
def small(monkeypatch, tmp_path):
    """Few rows, short fits, and the folder where they go."""
    digits = tuple(rows.subsample(150, 0) for rows in datasets.digits())
    data = {"spiral": datasets.spiral(train_rows=60, test_rows=40), "digits": digits}
    monkeypatch.setattr(datasets, "load", lambda name: data[name])
    monkeypatch.setattr(demo, "EXPERTS", EXPERTS)
    monkeypatch.setattr(demo, "CLUSTERS", CLUSTERS)
    monkeypatch.chdir(tmp_path)


def scores(folder):
    return json.loads(Path("my demo", folder, "scores.json").read_text())


def test_the_tables_hold_the_scores_of_run_folders(small, capsys):
    assert cli.main(["demo", "--out", "my demo", "--quiet"]) == 0
    shown = capsys.readouterr().out
    lines = {line[:24].strip(): line[24:].split() for line in shown.splitlines()}
    for name, folder in (("DVMoE", "dvmoe-spiral"), ("another", "me-spiral")):
        found = scores(folder)
        error, log_likelihood, accuracy, _ = lines[name]
        assert error == f"{found['error']:.2g}"
        assert log_likelihood == f"{found['log_likelihood']:.2f}"
        assert accuracy == f"{found['accuracy']:.3f}"
    assert len(lines["gradient boosting"]) == 2  # neither a likelihood nor a gate
    found = scores("gmm-digits")
    assert lines["a mixture"][:3] == [f"{found[key]:.3f}" for key in ("accuracy", "nmi", "ari")]
    assert {"K-means", "Gaussian mixture"} < lines.keys()
    page = Path("my demo", "dvmoe-spiral", "report.html")
    assert page.exists()
    assert f"To open in a browser: {page}\n" in shown
    assert runs.load("my demo/dvmoe-spiral")[0].num_components == 5


@pytest.mark.filterwarnings("ignore::pyro_moe.EmptyComponentWarning")
def test_an_interruption_ends_it(small, capsys, monkeypatch):
    def interrupt(fit):
        raise KeyboardInterrupt

    monkeypatch.setattr("pyro_moe.cli.fit.fit", functools.partial(pyro_moe.fit, callback=interrupt))
    assert cli.main(["demo", "--quiet"]) == 130
    told = capsys.readouterr()
    assert told.err.startswith("pyro-moe: interrupted after 1 of ")
    assert told.out.count("$ pyro-moe") == 1


def test_every_line_is_a_command():
    lines = [*demo.EXPERTS.values(), *demo.CLUSTERS.values()]
    for line in lines:
        options = cli.parser().parse_args(line.split())
        assert options.story in runs.STORIES
        assert options.data in choices.STORY_DEFAULTS
    assert len({(line.split()[1], line.split()[3]) for line in lines}) == len(lines)  # own folders
