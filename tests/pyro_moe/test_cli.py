"""The command line does what the library does, and says in one line what it cannot."""

import functools
import json
import re
import sys
from importlib.metadata import version

import pandas as pd
import pytest
import torch

import pyro_moe
from pyro_moe import DataError, cli, datasets, evaluation, runs


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def table():
    """A table of two groups, as CSV and as Parquet."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(60, 3, generator=generator) + 6.0 * (torch.arange(60) % 2).unsqueeze(-1)
    frame = pd.DataFrame(x.numpy(), columns=["a", "b", "c"])
    frame.to_csv("my.csv", index=False)
    frame.to_parquet("my.parquet")
    return frame


@pytest.fixture
def small_spiral(monkeypatch):
    rows = datasets.spiral(train_rows=20, test_rows=10)
    monkeypatch.setattr(datasets, "load", lambda name, target=None: rows)
    return rows


def run(line, code=0):
    assert cli.main([*line.split(), "--quiet"]) == code


def fails(line, capsys, code=2):
    assert cli.main(line.split()) == code
    message = capsys.readouterr().err
    assert re.fullmatch(r"pyro-moe: .*\n", message)  # one line
    return message.removeprefix("pyro-moe: ").strip()


def read(path):
    with open(path) as file:
        return json.load(file)


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_a_table_is_fitted_and_saved(suffix, table, capsys):
    run(f"fit vade --data my.{suffix} --num-components 2 --epochs 2 --seed 5 --out run")
    story, settings = runs.load("run")
    assert isinstance(story, pyro_moe.models.VaDE)
    assert settings["story_arguments"] == {"x_dim": 3, "num_components": 2, "z_dim": 3}
    assert settings["data"] == f"my.{suffix}"
    assert settings["fit"]["seed"] == 5
    assert settings["fit"]["epochs"] == 2
    assert len(pd.read_csv("run/history.csv")) == 2
    scores = read("run/scores.json")
    assert set(scores) == {
        "stopped",
        "held_out_elbo",
        "test_elbo",
        "importance_weighted_bound",
        "effective_components",
        "seconds",
    }
    assert scores["importance_weighted_bound"] > scores["test_elbo"]
    output = capsys.readouterr().out
    assert "48 rows to fit, 12 to test" in output
    assert "run/latent_map.png" in output


def test_the_command_is_the_library_call(table):
    run("fit dmvae --data my.csv --epochs 2 --covariance tied --out run")
    train, test = datasets.load("my.csv")
    story = pyro_moe.models.DMVAE(3, 3, 3, covariance="tied")
    fit = pyro_moe.fit(story.model, story.guide, train, epochs=2, progress=False)
    loaded = runs.load("run")[0].state_dict()
    assert all(torch.equal(loaded[key], value) for key, value in fit.story.state_dict().items())
    scores = read("run/scores.json")
    assert scores["test_elbo"] == evaluation.elbo(fit, test).mean().item()


def test_digits_are_scored_and_drawn(tmp_path, capsys):
    run("fit dmvae --data digits --epochs 1")
    folder = tmp_path / "runs" / "dmvae-digits"
    scores = read(folder / "scores.json")
    assert 0 < scores["accuracy"] <= 1
    assert 1 <= scores["effective_components"] <= 10
    pictures = {path.stem for path in folder.glob("*.png")}
    assert pictures == {"history", "latent_map", "reconstructions", "generated"}
    assert runs.load(folder)[1]["story_arguments"] == {
        "x_dim": 64,
        "num_components": 10,
        "z_dim": 10,
        "common_scale": True,
    }
    output = capsys.readouterr().out
    assert re.search(rf"clustering accuracy +{scores['accuracy']:.4g}\n", output)
    assert "1,438 rows to fit, 359 to test" in output


def test_the_spiral_is_drawn_in_the_plane(small_spiral, tmp_path):
    run("fit gmm --data spiral --epochs 3 --out run")
    assert {path.stem for path in (tmp_path / "run").glob("*.png")} == {
        "history",
        "generated",
        "gate_map",
    }
    assert read("run/settings.json")["fit"]["loss"] == "em"
    assert read("run/settings.json")["story_arguments"]["num_components"] == 5


def test_a_story_without_clusters_has_no_clustering_scores(small_spiral):
    run("fit vae --data spiral --epochs 1 --out run")
    assert "accuracy" not in read("run/scores.json")
    assert read("run/settings.json")["story_arguments"] == {"x_dim": 2, "z_dim": 2}


@pytest.mark.parametrize(("option", "binary"), [("", True), (" --likelihood normal", False)])
def test_mnist_is_binary_for_a_bernoulli_likelihood(option, binary, monkeypatch):
    asked = []

    def mnist(root, *, binary):
        asked.append((root, binary))
        raise DataError("enough")

    monkeypatch.setattr(datasets, "mnist", mnist)
    run(f"fit dmvae --data mnist --data-dir here{option}", code=2)
    assert asked == [("here", binary)]


def test_a_new_run_gets_a_folder_of_its_own(small_spiral, tmp_path):
    for _ in range(3):
        run("fit gmm --data spiral --epochs 1")
    names = sorted(path.name for path in (tmp_path / "runs").iterdir())
    assert names == ["gmm-spiral", "gmm-spiral-2", "gmm-spiral-3"]


def test_an_interruption_keeps_what_was_learned(table, capsys, monkeypatch):
    def interrupt(fit):
        if len(fit.history) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(cli, "fit", functools.partial(pyro_moe.fit, callback=interrupt))
    run("fit dmvae --data my.csv --epochs 100 --out run")
    assert len(pd.read_csv("run/history.csv")) == 2
    assert read("run/scores.json")["stopped"] == "interrupted"
    assert runs.load("run")[0].num_components == 3
    output = capsys.readouterr().out
    assert "stopped after 2 epochs (interrupted); what was learned is kept" in output


def test_an_interruption_after_training_finds_the_run_saved(table, capsys, monkeypatch):
    def interrupt(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(evaluation, "elbo", interrupt)
    assert fails("fit gmm --data my.csv --epochs 1 --out run --quiet", capsys, 130) == "interrupted"
    assert runs.load("run")[0].num_components == 3


def test_training_that_goes_non_finite_is_kept_and_said(table, capsys, monkeypatch):
    def explode(done):
        return 1e-3 if done < 0.5 else 1e30

    fit = functools.partial(pyro_moe.fit, learning_rate=explode, batch_size=8)
    monkeypatch.setattr(cli, "fit", fit)
    run("fit vae --data my.csv --epochs 10 --out run")
    assert "non-finite" in read("run/scores.json")["stopped"]
    assert "what was learned is kept" in capsys.readouterr().out


def test_the_demo_prints_one_table(small_spiral, capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(cli, "COMMANDS", ("fit gmm --data spiral --epochs 2",))
    run("demo --out demo")
    assert (tmp_path / "demo" / "gmm-spiral" / "gate_map.png").exists()
    table = capsys.readouterr().out.splitlines()[-4:]
    assert table[0].split() == ["data", "method", "accuracy", "nmi", "ari", "seconds"]
    accuracy = read("demo/gmm-spiral/scores.json")["accuracy"]
    assert table[1].split()[:3] == ["spiral", "gmm", f"{accuracy:.3f}"]
    assert [line[:24].split(maxsplit=1)[1].strip() for line in table[2:]] == [
        "K-means",
        "Gaussian mixture",
    ]


def test_an_interruption_ends_the_demo(small_spiral, capsys, monkeypatch):
    def interrupt(fit):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "fit", functools.partial(pyro_moe.fit, callback=interrupt))
    assert fails("demo --quiet", capsys, 130) == "interrupted"


def test_every_line_of_the_demo_is_a_command():
    for line in cli.COMMANDS:
        options = cli._parser().parse_args(line.split())
        assert options.story in runs.STORIES
        assert options.data in cli.STORY_DEFAULTS


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("", "the following arguments are required: COMMAND; see pyro-moe --help"),
        ("fit tree --data digits", r"argument STORY: invalid choice: 'tree' \(choose from .*"),
        ("fit vae", "the following arguments are required: --data; see pyro-moe fit --help"),
        (
            "fit vae --data nothing",
            r"expected data 'digits', 'spiral', 'mnist' or a \.csv or \.parquet file; "
            "got 'nothing'",
        ),
        ("fit vae --data no.csv", r"expected a file; got no\.csv, where there is none"),
        (
            "fit vae --data mnist --data-dir nowhere",
            "expected a folder of the four MNIST files; got nowhere",
        ),
        (
            "fit vae --data digits --epochs 0",
            "argument --epochs: expected a whole number of at least 1; got '0'; .*",
        ),
        (
            "fit vae --data digits --z-dim two",
            "argument --z-dim: expected a whole number of at least 1; got 'two'; .*",
        ),
        (
            "fit vae --data digits --device nowhere",
            "argument --device: expected a device of this machine; got 'nowhere'; .*",
        ),
        (
            "fit vae --data digits --loss guess",
            r"argument --loss: invalid choice: 'guess' \(choose from .*",
        ),
        ("fit gmm --data digits --z-dim 3", "expected options of gmm; got --z-dim"),
        (
            "fit vae --data digits --num-components 3",
            "expected options of vae; got --num-components",
        ),
        (
            "fit vae --data digits --likelihood bernoulli",
            "expected values of site 'x' in the support of its distribution, .*; got 0.* in row .*",
        ),
        (
            "fit vae --data digits --initialise autoencoder --quiet",
            "expected a site 'c' in the model for initialise='autoencoder'; got none",
        ),
        (
            "fit gmm --data my.csv --num-components 49",
            "expected at least as many rows as components, 49; got 48",
        ),
    ],
)
def test_bad_commands_say_in_one_line_what_was_expected(line, message, table, capsys):
    assert re.fullmatch(message, fails(line, capsys))


def test_an_extra_that_is_missing_is_named(table, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "umap", None)
    message = fails("fit vade --data my.csv --epochs 1 --initialise umap --quiet", capsys)
    assert "pip install 'pyro-moe[umap]'" in message


def test_a_folder_that_cannot_be_written_is_found_before_training(table, capsys, monkeypatch):
    monkeypatch.setattr(cli, "fit", lambda *args, **kwargs: pytest.fail("it trained"))
    message = fails("fit gmm --data my.csv --out my.csv/run", capsys)
    assert message == "expected a folder that can be written; got my.csv/run (Not a directory)"


def test_an_interruption_outside_training(capsys, monkeypatch):
    def interrupt(name, target=None):
        raise KeyboardInterrupt

    monkeypatch.setattr(datasets, "load", interrupt)
    assert fails("fit gmm --data digits", capsys, 130) == "interrupted"


def test_help_has_examples_that_parse(capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main(["--help"])
    assert caught.value.code == 0
    output = capsys.readouterr().out
    commands = re.findall(r"^  pyro-moe (.*)$", output, flags=re.MULTILINE)
    assert len(commands) >= 3
    for command in commands:
        assert callable(cli._parser().parse_args(command.split()).command)


def test_the_version(capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main(["--version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out == f"{version('pyro-moe')}\n"
