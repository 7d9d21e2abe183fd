"""The command line does what the library does, and says in one line what it cannot."""

import functools
import json
import os
import re
import signal
import sys
import warnings
from importlib.metadata import version
from pathlib import Path

import pandas as pd
import pytest
import torch
from pyro import poutine
from torch.testing import assert_close

import pyro_moe
from pyro_moe import DataError, cli, datasets, evaluation, plots, runs
from pyro_moe.paper import page, table1


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
def undrawn(monkeypatch):
    monkeypatch.setattr(plots, "pictures", lambda fit, rows: {})


@pytest.fixture
def homes(undrawn):
    """A table of homes of two kinds, with targets of every kind, as CSV."""
    generator = torch.Generator().manual_seed(0)
    kind = torch.arange(90) % 3
    x = torch.randn(90, 3, generator=generator) + 4.0 * torch.eye(3)[kind]
    price = 100.0 + x @ torch.tensor([10.0, -5.0, 2.0]) * (kind + 1.0)
    frame = pd.DataFrame(x.numpy(), columns=["size", "age", "floor"])
    frame.insert(1, "price", price.numpy())
    frame["rent"] = frame["price"] / 20.0 + torch.randn(90, generator=generator).numpy()
    frame["kind"] = kind.numpy()
    rate = x[:, 0].exp().clamp(0.5, 30.0)
    frame["visits"] = torch.poisson(rate, generator=generator).int().numpy()
    frame["sold"] = frame["visits"] > 3
    frame.to_csv("homes.csv", index=False)
    features = frame[["size", "age", "floor"]]
    features.to_csv("features.csv", index=False)
    return frame


@pytest.fixture
def small_spiral(monkeypatch):
    rows = datasets.spiral(train_rows=20, test_rows=10)
    monkeypatch.setattr(datasets, "load", lambda name, target=None: rows)
    return rows


def run(line, code=0):
    """Run a command. Fits have the weak prior, because its choice takes seconds."""
    prior = ["--prior", "weak"] if line.startswith("fit ") else []
    assert cli.main([*line.split(), *prior, "--quiet"]) == code


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
    options = "--num-components 2 --epochs 2 --seed 5 --initialize random"
    run(f"fit vade --data my.{suffix} {options} --out run")
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
    fit = pyro_moe.fit(story.model, story.guide, train, epochs=2, prior="weak", progress=False)
    loaded = runs.load("run")[0].state_dict()
    assert all(torch.equal(loaded[key], value) for key, value in fit.story.state_dict().items())
    scores = read("run/scores.json")
    assert scores["test_elbo"] == evaluation.elbo(fit, test).mean().item()


def test_digits_are_scored_and_drawn(tmp_path, capsys):
    run("fit dmvae --data digits --epochs 1 --initialize random")
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

    command = "fit dmvae --data my.csv --epochs 4 --initialize random --prior weak --quiet"
    with monkeypatch.context() as patch:
        patch.setattr("pyro_moe.cli.fit.fit", functools.partial(pyro_moe.fit, callback=interrupt))
        message = fails(f"{command} --out run", capsys, 130)
    ended = "interrupted after 2 of 4 epochs"
    assert message == f"{ended}; the same command with --resume run goes on"
    assert len(pd.read_csv("run/history.csv")) == 2
    assert read("run/scores.json")["stopped"] == ended
    assert runs.load("run")[0].num_components == 3
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        assert cli.main(["compare", "run"]) == 0
    assert f"got that of run, {ended}" in capsys.readouterr().err
    run(f"{command} --resume run")
    assert len(pd.read_csv("run/history.csv")) == 4
    assert not Path("run/checkpoint").exists()
    run(f"{command} --out whole")
    resumed, whole = (Path(each, "parameters.safetensors") for each in ("run", "whole"))
    assert resumed.read_bytes() == whole.read_bytes()


def test_an_interruption_before_the_first_epoch_leaves_nothing(table, capsys, monkeypatch):
    def interrupt(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr("pyro_moe.inference.svi.SVI.step", interrupt)
    command = "fit dmvae --data my.csv --epochs 4 --initialize random --quiet --out run"
    message = fails(command, capsys, 130)
    assert message == "interrupted before the end of the first epoch; nothing is saved"
    assert not Path("run").exists()


def test_sigterm_is_an_interruption(table, capsys, monkeypatch):
    def terminate(fit):
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr("pyro_moe.cli.fit.fit", functools.partial(pyro_moe.fit, callback=terminate))
    before = signal.getsignal(signal.SIGTERM)
    message = fails(
        "fit gmm --data my.csv --epochs 4 --loss marginal --quiet --out run", capsys, 130
    )
    assert message.startswith("interrupted after 1 of 4 epochs")
    assert signal.getsignal(signal.SIGTERM) is before


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
    monkeypatch.setattr("pyro_moe.cli.fit.fit", fit)
    run("fit vae --data my.csv --epochs 10 --out run")
    assert "non-finite" in read("run/scores.json")["stopped"]
    assert "the parameters are saved" in capsys.readouterr().out


# Targets


def fit_targets(story, targets, options="--epochs 2"):
    """Fit columns of homes.csv that are written to my.csv beside the features; into run."""
    names = targets.split()
    columns = ["size", "age", "floor", *names]
    pd.read_csv("homes.csv")[columns].to_csv("my.csv", index=False)
    run(f"fit {story} --data my.csv --target {targets} {options} --out run")


def predict(data="features.csv"):
    line = ["predict", "run", "--data", data, "--out", "predictions.csv", "--trust"]
    assert cli.main(line) == 0
    return pd.read_csv("predictions.csv")


def by_the_library(data="features.csv"):
    """What `evaluation.predict` says of the story of the run."""
    story, _ = runs.load("run", trust_code=True)
    rows = datasets.table(data, columns=["size", "age", "floor"])
    fit = pyro_moe.fit(story.model, story.guide, rows, initialize="keep", epochs=0, progress=False)
    return evaluation.predict(fit, rows)


def are(columns, values):
    """Up to what float32 holds."""
    assert torch.tensor(columns.to_numpy()).allclose(values.double(), rtol=1e-6, atol=1e-6)


def test_the_command_with_targets_is_the_library_call(homes):
    fit_targets("dvmoe", "price rent", "--epochs 2 --seed 3")
    train, test = datasets.load("my.csv", target=["price", "rent"])
    story = pyro_moe.models.DVMoE(x_dim=3, y_dim=2, num_components=3, z_dim=3)
    settings = {"epochs": 2, "seed": 3, "prior": "weak", "progress": False}
    fit = pyro_moe.fit(story.model, story.guide, train, **settings)
    loaded, settings = runs.load("run")
    learned = loaded.state_dict()
    assert all(torch.equal(learned[key], value) for key, value in fit.story.state_dict().items())
    assert settings["columns"] == ["size", "age", "floor"]
    assert settings["targets"] == ["price", "rent"]
    assert settings["story_arguments"]["y_dim"] == 2
    scores = read("run/scores.json")
    expected = evaluation.regression_scores(evaluation.predict(fit, test), test.y)
    coverage = expected.pop("coverage")
    assert scores["coverage of 90% intervals"] == coverage[0.9]
    assert {key: scores[key] for key in expected} == expected


def test_a_story_with_targets_is_drawn(table, tmp_path):
    table.assign(price=table["a"] + 1.0).to_csv("my.csv", index=False)
    run("fit dvmoe --data my.csv --target price --z-dim 2 --epochs 1 --out run")
    assert {path.stem for path in (tmp_path / "run").glob("*.png")} == {
        "history",
        "latent_map",
        "predictions",
    }


@pytest.mark.parametrize("story", ["me", "deepmoe", "gmmmoe", "vademoe", "dvmoe"])
@pytest.mark.parametrize("targets", ["price", "price rent"])
def test_predictions_are_those_of_the_library(homes, story, targets, capsys):
    fit_targets(story, targets)
    table, prediction = predict(), by_the_library()
    assert capsys.readouterr().out.endswith("90 rows predicted: predictions.csv\n")
    spread, ends = prediction.variance.sqrt(), [prediction.quantile(q) for q in (0.05, 0.95)]
    expected = {}
    for i, target in enumerate(targets.split()):
        expected[target] = prediction.mean[:, i]
        expected[f"{target}_sd"] = spread[:, i]
        expected[f"{target}_q05"], expected[f"{target}_q95"] = (end[:, i] for end in ends)
    expected |= {f"gate_{k}": prediction.gate[:, k] for k in range(3)}
    assert list(table) == list(expected)
    for name, values in expected.items():
        are(table[name], values)


def test_predictions_after_predicting_are_those_of_the_fit_itself(homes, monkeypatch):
    fits = []

    def remembered(*args, **choices):
        fits.append(pyro_moe.fit(*args, **choices))
        return fits[-1]

    monkeypatch.setattr("pyro_moe.cli.fit.fit", remembered)
    fit_targets("vademoe", "price", "--epochs 3 --context z")
    rows = datasets.table("features.csv")
    are(predict()["price"], evaluation.predict(fits[0], rows).mean[:, 0])


def test_columns_are_found_by_name(homes):
    """In any order, with others among them that are no numbers."""
    fit_targets("me", "price")
    expected = predict()
    homes["note"] = "for sale"
    homes[["note", "floor", "visits", "age", "size"]].to_csv("shuffled.csv", index=False)
    pd.testing.assert_frame_equal(predict("shuffled.csv"), expected)
    homes.to_parquet("shuffled.parquet")
    pd.testing.assert_frame_equal(predict("shuffled.parquet"), expected)


def test_the_target_may_be_left_in_the_table_that_is_predicted(homes):
    fit_targets("me", "price")
    assert len(predict("my.csv")) == 90
    pd.testing.assert_frame_equal(predict("my.csv"), predict())


def test_one_new_row_is_enough(homes):
    fit_targets("gmmmoe", "price")
    expected = predict().head(1)
    homes.head(1).to_csv("one.csv", index=False)
    pd.testing.assert_frame_equal(predict("one.csv"), expected, check_exact=False, rtol=1e-5)


@pytest.mark.filterwarnings("default::pyro_moe.EmptyComponentWarning")
def test_classes_are_predicted_with_their_probabilities(homes):
    fit_targets("dvmoe", "kind", "--epochs 20 --experts categorical")
    scores = read("run/scores.json")
    assert scores["accuracy of classes"] > 0.5
    assert "log_loss" in scores
    table, prediction = predict(), by_the_library()
    names = [f"kind_is_{i}" for i in range(3)]
    assert list(table) == ["kind", *names, "gate_0", "gate_1", "gate_2"]
    are(table[names], prediction.mean)
    assert table["kind"].tolist() == table[names].to_numpy().argmax(1).tolist()
    assert table[names].sum(axis=1).to_numpy() == pytest.approx(1.0, abs=1e-5)


@pytest.mark.filterwarnings("default:expected rows of each of 4 classes")
def test_a_class_may_be_among_the_test_rows_alone(homes, capsys):
    _, test = datasets.load("homes.csv")
    held_out = homes["age"].isin(test.x[:, 2].float().tolist())
    assert held_out.sum() == len(test)
    homes.assign(kind=homes["kind"].mask(held_out, 3)).to_csv("homes.csv", index=False)
    fit_targets("me", "kind", "--epochs 1 --experts categorical")
    assert "expected rows of each of 4 classes; got none of 3" in capsys.readouterr().err
    assert read("run/settings.json")["story_arguments"]["y_dim"] == 4
    assert read("run/scores.json")["accuracy of classes"] == 0.0


@pytest.mark.parametrize(("target", "family"), [("visits", "poisson"), ("sold", "bernoulli")])
def test_quantiles_of_counts_are_whole_numbers(homes, target, family):
    fit_targets("dvmoe", target, f"--epochs 2 --experts {family}")
    table = predict()
    are(table[target], by_the_library().mean[:, 0])
    for name in (f"{target}_q05", f"{target}_q95"):
        assert (table[name] % 1 == 0).all()
    assert (table[target] > 0).all()
    if family == "bernoulli":
        assert (table[target] < 1).all()


def test_made_data_have_made_targets(small_spiral, undrawn):
    run("fit deepmoe --data spiral --epochs 2 --out run")
    settings = read("run/settings.json")
    assert settings["story_arguments"] == {"x_dim": 2, "num_components": 5, "y_dim": 1}
    assert settings["targets"] is None
    assert "rmse" in read("run/scores.json")


def test_a_folder_for_predictions_is_made(homes):
    fit_targets("me", "price")
    line = "predict run --data features.csv --out new/folder/predictions.csv"
    assert cli.main(line.split()) == 0
    assert len(pd.read_csv("new/folder/predictions.csv")) == 90


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            "fit dvmoe --data my.csv",
            "expected --target, the column that dvmoe predicts; got none",
        ),
        (
            "fit dvmoe --data my.csv --target prise",
            "expected a column 'prise' in my.csv; got 'size', 'age', 'floor', 'price'",
        ),
        (
            "fit dvmoe --data my.csv --target price price",
            "expected each column of my.csv once; got 'price' twice",
        ),
        (
            "fit dmvae --data my.csv --target price",
            "expected no --target with story dmvae; got price",
        ),
        (
            "fit dvmoe --data digits --target price age",
            "expected no --target with data digits; got price age",
        ),
        ("fit gmm --data my.csv --experts normal", "expected options of gmm; got --experts"),
        (
            "fit me --data my.csv --target price --context z",
            "expected options of me; got --context",
        ),
        (
            "fit me --data my.csv --target price --experts poisson",
            "expected values of site 'y' in the support of its distribution, .*; got .* in row .*",
        ),
        (
            "fit me --data my.csv --target price age --experts categorical",
            "expected one --target of classes; got price age",
        ),
        (
            "fit hierarchicalme --data my.csv --target price",
            r"argument STORY: invalid choice: 'hierarchicalme' \(choose from .*",
        ),
        (
            "predict run --data features.csv",
            "the following arguments are required: --out; see pyro-moe predict --help",
        ),
        (
            "predict nowhere --data features.csv --out new.csv",
            r"expected a run folder; got nowhere \(No such file or directory\)",
        ),
        (
            "predict run --data no.csv --out new.csv",
            "expected an existing file; got no.csv",
        ),
        (
            "predict run --data few.csv --out new.csv",
            "expected a column 'age' in few.csv; got 'size', 'floor'",
        ),
        (
            "predict run --data holes.csv --out new.csv",
            "expected a value in every row of column 'age' of holes.csv; got none in row 0 .*",
        ),
        (
            "predict run --data features.csv --out my.csv/new.csv",
            r"expected a folder that can be written; got my.csv \(File exists\)",
        ),
        (
            "predict run --data features.csv --out run",
            "expected a file to write; got the folder run",
        ),
        (
            "predict run --data features.csv --out ./features.csv",
            "expected --out to be another file than --data; got features.csv for both",
        ),
        ("reproduce table2", r"argument what: invalid choice: 'table2' \(choose from .*"),
    ],
)
def test_bad_commands_with_targets_say_what_was_expected(line, message, homes, capsys):
    fit_targets("me", "price", "--epochs 1")
    homes[["size", "floor"]].to_csv("few.csv", index=False)
    holes = homes[["size", "age", "floor"]].copy()
    holes.loc[0, "age"] = None
    holes.to_csv("holes.csv", index=False)
    assert re.fullmatch(message, fails(line, capsys))


@pytest.mark.parametrize("line", ["gmm --data my.csv", "me --data spiral"])
def test_a_run_without_a_target_of_a_table_cannot_predict(line, table, undrawn, request, capsys):
    if "spiral" in line:
        request.getfixturevalue("small_spiral")
    run(f"fit {line} --epochs 1 --out run")
    message = fails("predict run --data my.csv --out new.csv", capsys)
    assert message == "expected a run with a target of a table; got run"


@pytest.mark.parametrize(("what", "with_table"), [("paper", True), ("figures", False)])
def test_the_page_of_the_paper_is_written(what, with_table, monkeypatch, capsys):
    asked = []
    monkeypatch.setattr(page, "write", lambda path, **options: asked.append((path, options)))
    assert cli.main(["reproduce", what, "--quick", "--out", "here.html"]) == 0
    assert asked == [("here.html", {"with_table": with_table, "quick": True, "data_dir": None})]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("reproduce table1 --quick", {"quick": True, "data_dir": None}),
        ("reproduce table1 --data-dir here", {"quick": False, "data_dir": "here"}),
    ],
)
def test_the_table_is_reproduced(line, expected, monkeypatch):
    asked = []
    monkeypatch.setattr(table1, "run", lambda **options: asked.append(options))
    assert cli.main(line.split()) == 0
    assert asked == [expected]


# What cannot be


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("", "the following arguments are required: COMMAND; see pyro-moe --help"),
        ("fit tree --data digits", r"argument STORY: invalid choice: 'tree' \(choose from .*"),
        ("fit vae", "the following arguments are required: --data; see pyro-moe fit --help"),
        (
            "fit vae --data nothing",
            r"expected data 'digits', 'spiral', 'mnist' or a \.csv, \.tsv, \.txt or \.parquet "
            "file; got 'nothing'",
        ),
        ("fit vae --data no.csv", r"expected an existing file; got no\.csv"),
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
            "fit vae --data digits --initialize autoencoder --quiet",
            "expected a site 'c' in the model for initialize='autoencoder'; got none",
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
    message = fails("fit vade --data my.csv --epochs 1 --initialize umap --quiet", capsys)
    assert "pip install 'pyro-moe[umap]'" in message


def test_a_folder_that_cannot_be_written_is_found_before_training(table, capsys, monkeypatch):
    monkeypatch.setattr("pyro_moe.cli.fit.fit", lambda *args, **kwargs: pytest.fail("it trained"))
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
        assert callable(cli.parser().parse_args(command.split()).command)


def test_the_version(capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main(["--version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out == f"{version('pyro-moe')}\n"


@pytest.mark.parametrize("value", [-1, 0.5, 90, 10**9])
def test_classes_are_small_whole_numbers(value, homes, capsys):
    homes["kind"] = homes["kind"].astype(float)
    homes.loc[5, "kind"] = value
    homes[["size", "age", "kind"]].to_csv("my.csv", index=False)
    message = fails("fit me --data my.csv --target kind --experts categorical", capsys)
    assert message == (
        f"expected classes 0, 1, 2, … in column 'kind', fewer than its 90 rows; got {value:.10g}"
    )


@pytest.mark.parametrize("story", ["me", "dvmoe"])
def test_impossible_targets_fail_in_one_line_and_leave_no_folder(story, homes, capsys):
    homes.assign(visits=homes["visits"] - 5)[["size", "age", "visits"]].to_csv(
        "my.csv", index=False
    )
    line = f"fit {story} --data my.csv --target visits --experts poisson"
    assert re.fullmatch("expected values of site 'y' in the support .* row .*", fails(line, capsys))
    assert not Path("runs", f"{story}-my").exists()
    Path("mine").mkdir()
    fails(f"{line} --out mine", capsys)
    assert Path("mine").is_dir()


def test_predictions_do_not_overwrite_the_data(homes, capsys):
    fit_targets("me", "price", "--epochs 1")
    before = Path("features.csv").read_bytes()
    fails("predict run --data features.csv --out features.csv", capsys)
    assert Path("features.csv").read_bytes() == before


@pytest.mark.filterwarnings("ignore:expected at least:pyro_moe.EmptyComponentWarning")
def test_a_target_named_like_what_is_predicted_keeps_its_name(homes):
    homes = homes.rename(columns={"rent": "price_sd", "visits": "gate_0"})
    homes.to_csv("homes.csv", index=False)
    fit_targets("me", "price price_sd gate_0", "--epochs 1")
    table = predict()
    story, _ = runs.load("run")
    mean = story(torch.tensor(homes[["size", "age", "floor"]].to_numpy())).mean
    got = table[["price", "price_sd", "gate_0"]].to_numpy()
    assert_close(got, mean.detach().numpy(), rtol=1e-5, atol=1e-5)  # x is read as float32
    assert {"price_sd_", "price_sd_sd", "gate_0_", "gate_1"} < set(table)


# Stories of one's own


def new(story, old="", new="", name="mine.py"):
    """A file that `new` wrote, with one edit."""
    assert cli.main(["new", name, "--from", story]) == 0
    text = Path(name).read_text()
    assert old in text
    Path(name).write_text(text.replace(old, new))
    return name


@pytest.mark.parametrize("story", sorted(set(runs.STORIES) - {"hierarchicalme"}))
def test_a_new_file_says_how_it_is_fitted(story, homes, capsys):
    new(story)
    line = re.search("pyro-moe (fit .*)", capsys.readouterr().out)[1]
    homes[["size", "age", "floor", "price"]].to_csv("my.csv", index=False)
    run(line.replace("TABLE.csv", "my.csv").replace("COLUMN", "price") + " --epochs 1 --out run")
    assert read("run/settings.json")["story"] == "mine.py"
    assert Path("run/story.py").read_bytes() == Path("mine.py").read_bytes()


@pytest.mark.filterwarnings("default::pyro_moe.EmptyComponentWarning")
def test_a_written_file_is_fitted_like_the_shipped_story(homes, capsys):
    capsys.readouterr()
    scores = []
    for story in ("dvmoe", new("dvmoe")):
        fit_targets(story, "price rent", "--epochs 3 --seed 2 --num-components 2 --z-dim 1")
        scores.append(read("run/scores.json") | {"seconds": None})
        are(predict()["rent"], by_the_library().mean[:, 1])
    assert scores[0] == scores[1]
    assert read("run/settings.json")["story_arguments"] == {
        "x_dim": 3,
        "y_dim": 2,
        "num_components": 2,
        "z_dim": 1,
        "common_scale": False,
    }


P = "self.decoder(z)"
STUDENT_T = f"pyro.distributions.StudentT(3.0, {P}.mean, {P}.stddev).to_event(1), obs"


def test_an_edited_file_is_fitted_as_edited(homes):
    name = new("vae", "self.decoder(z), obs", STUDENT_T)
    homes[["size", "age"]].to_csv("my.csv", index=False)
    run(f"fit {name} --data my.csv --epochs 1")
    fit, _, test = runs.restore("runs/mine-my", trust_code=True)
    site = poutine.trace(fit.model).get_trace(test.x.float()).nodes["x"]
    assert isinstance(site["fn"].base_dist, torch.distributions.StudentT)


def test_what_stands_in_a_file_rules_and_options_rule_it(homes):
    name = new("gmm", "num_components: int,", "num_components: int = 4,")
    homes[["size", "age"]].to_csv("my.csv", index=False)
    for option, number in (("", 4), ("--num-components 2", 2)):
        run(f"fit {name} --data my.csv --epochs 1 {option} --out run")
        assert runs.load("run", trust_code=True)[0].mixture.num_components == number


def test_images_share_one_unit(undrawn):
    run(f"fit {new('dmvae')} --data digits --epochs 1 --initialize random --out run")
    assert read("run/settings.json")["story_arguments"]["common_scale"] is True
    assert len(runs.load("run", trust_code=True)[0].decoder.log_scale) == 1


@pytest.mark.parametrize(
    ("old", "new_text", "options", "message"),
    [
        (
            'experts: str | nn.Module | Sequence[nn.Module] | Sequence[str] = "normal",',
            "",
            "--experts normal",
            "expected options of mine.py; got --experts",
        ),
        ("**options: Any,", "", "--likelihood normal", "expected .* mine.py; got --likelihood"),
        (
            "y_dim: int,",
            "y_dim: int, depth: int,",
            "",
            "expected Story in mine.py to .*; got depth",
        ),
        ("class Story", "class Tale", "", "expected a class Story, .*, in mine.py; got none"),
        (
            "import torch\n",
            "import torches\n",
            "",
            "expected mine.py to run; got .* in line .*",
        ),
        ("self.encoder(x)", "self.encoder(w)", "", "expected mine.py to .* NameError in line .*"),
        ("self.gate(x)", "self.gate(x[:2])", "", "expected a story that .*, in line .* of mine.py"),
        ("        super()", "       super()", "", "expected Python in mine.py; got .* in line .*"),
    ],
)
def test_what_is_wrong_with_a_file_is_said_in_one_line(
    old, new_text, options, message, homes, capsys
):
    homes[["size", "age", "price"]].to_csv("my.csv", index=False)
    new("dvmoe", old, new_text)
    line = f"fit mine.py --data my.csv --target price --quiet {options}"
    capsys.readouterr()
    assert re.fullmatch(message, fails(line, capsys))
    assert not Path("runs", "mine-my").exists()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("new mine.py", "the following arguments are required: --from; see pyro-moe new --help"),
        ("new there.py --from gmm", "expected a file that does not exist; got there.py"),
        ("new mine --from gmm", "expected the name of a file that ends in .py; got mine"),
        ("new mine.py --from tree", "argument --from: invalid choice: 'tree' .*"),
        ("fit no.py --data my.csv", r"expected a story file; got no.py \(No such file.*\)"),
        ("fit there.py --data my.csv", "expected a class Story, .*, in there.py; got none"),
    ],
)
def test_bad_commands_with_files_say_what_was_expected(line, message, table, capsys):
    Path("there.py").write_text("")
    assert re.fullmatch(message, fails(line, capsys))


# Classes by name, and targets that are missing


def test_classes_by_name_are_those_by_number(homes):
    """In the order of the alphabet, and given back by name."""
    scores, tables = [], []
    for names in ([0, 1, 2], ["bird", "cat", "dog"]):
        homes["kind"] = pd.Series(names)[torch.arange(90).numpy() % 3].to_numpy()
        homes.to_csv("homes.csv", index=False)
        fit_targets("dvmoe", "kind", "--epochs 5 --experts categorical")
        scores.append(read("run/scores.json") | {"seconds": None})
        tables.append(predict())
    assert scores[0] == scores[1]
    assert read("run/settings.json")["source"]["classes"] == {"kind": ["bird", "cat", "dog"]}
    by_number, by_name = tables
    assert list(by_name)[:4] == ["kind", "kind_is_bird", "kind_is_cat", "kind_is_dog"]
    assert [names[k] for k in by_number["kind"]] == by_name["kind"].tolist()
    assert (by_number.iloc[:, 1:].to_numpy() == by_name.iloc[:, 1:].to_numpy()).all()
    fit, _, test = runs.restore("run")
    assert evaluation.classification_scores(evaluation.predict(fit, test), test.y) == {
        "accuracy": scores[0]["accuracy of classes"],
        "log_loss": scores[0]["log_loss"],
    }


def test_yes_and_no_are_one_and_zero(homes, capsys):
    homes["wet"] = [["dry", "wet"][n > 5] for n in homes["visits"]]
    homes.to_csv("homes.csv", index=False)
    fit_targets("me", "sold wet", "--epochs 5 --experts bernoulli")
    assert "  wet: dry = 0, wet = 1\n" in capsys.readouterr().out
    table, mean = predict(), by_the_library().mean
    assert list(table)[:5] == ["sold", "sold_sd", "sold_q05", "sold_q95", "wet"]
    are(table["sold"], mean[:, 0])
    are(table["wet_is_wet"], mean[:, 1])
    are(table["wet_is_dry"], 1 - mean[:, 1])
    assert table["wet"].tolist() == [["dry", "wet"][p > 0.5] for p in table["wet_is_wet"]]


def test_a_file_takes_the_number_of_classes_by_its_name(homes):
    name = new("gmmmoe", '= "normal"', '= "categorical"')
    Path(name).write_text(Path(name).read_text().replace("y_dim", "num_classes"))
    for names in ([0, 1, 2], ["bird", "cat", "dog"]):
        homes["kind"] = pd.Series(names)[torch.arange(90).numpy() % 3].to_numpy()
        homes.to_csv("homes.csv", index=False)
        fit_targets(name, "kind", "--epochs 2 --loss em")
        assert read("run/settings.json")["story_arguments"]["num_classes"] == 3
        assert set(predict()["kind"]) == set(names)


def test_columns_are_chosen_and_rows_that_lack_a_value_left_out(homes):
    homes["name"] = "a house"
    homes["size"] = homes["size"].mask(homes.index % 10 == 0)
    homes.to_csv("homes.csv", index=False)
    fit_targets("me", "price", "--columns size age --drop-missing --epochs 2")
    fit, train, test = runs.restore("run")
    assert fit.columns == ("size", "age")
    assert len(train) + len(test) == 81
    homes.dropna().to_csv("new.csv", index=False)
    assert len(predict("new.csv")) == 81


@pytest.mark.parametrize("option", ["--columns size", "--drop-missing"])
def test_options_of_tables_are_refused_with_data_that_are_made(option, capsys):
    message = fails(f"fit me --data spiral {option} --quiet", capsys)
    assert message == f"expected {option.split()[0]} with a table; got it with data spiral"


@pytest.mark.parametrize("family", ["normal", "categorical"])
def test_rows_may_lack_a_target(family, homes, monkeypatch):
    """They are fitted, and left out of the scores and pictures of targets."""
    shown = []
    monkeypatch.setattr(plots, "pictures", lambda fit, rows: shown.append(rows) or {})
    target = "price" if family == "normal" else "kind"
    homes["kind"] = pd.Series(["bird", "cat", "dog"])[homes["kind"]].to_numpy()
    homes.assign(**{target: homes[target].mask(homes.index % 4 == 0)}).to_csv("homes.csv")
    fit_targets("dvmoe", target, f"--epochs 3 --missing-targets --experts {family}")
    fit, train, test = runs.restore("run")
    assert fit.settings["missing_targets"] is True
    assert len(train) + len(test) == 90
    lacking = torch.cat([train.y, test.y]).isnan()
    assert lacking.sum() == 23
    known = test.take(~test.y.isnan())
    assert 0 < len(known) < len(test)
    assert torch.equal(shown[0].x, known.x)
    scores, prediction = read("run/scores.json"), evaluation.predict(fit, known)
    assert scores["test_elbo"] == evaluation.elbo(fit, test).mean().item()
    if family == "normal":
        expected = evaluation.regression_scores(prediction, known.y)
        assert scores["rmse"] == expected["rmse"]
    else:
        expected = evaluation.classification_scores(prediction, known.y)
        assert scores["log_loss"] == expected["log_loss"]
    assert len(predict()) == 90


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("dvmoe --data my.csv --target price", "expected a value in every row of column 'price'.*"),
        (
            "me --data my.csv --target price --missing-targets",
            "expected a story with a site 'x', .*, for --missing-targets; got sites c, y",
        ),
        (
            "dmvae --data my.csv --missing-targets",
            "expected --target with --missing-targets; got none",
        ),
        (
            "dvmoe --data my.csv --target sold --experts bernoulli",
            "expected two classes in column 'sold' of my.csv; got 3: maybe, no, yes",
        ),
        (
            "dvmoe --data my.csv --target sold",
            "expected numbers in column 'sold' of my.csv; got 'maybe' in row 0: text targets "
            "require .*--experts categorical.*",
        ),
        (
            "mine.py --data my.csv --target sold",
            "expected two classes in column 'sold' of my.csv; got 3: maybe, no, yes; for more "
            "classes, give Story num_classes instead of y_dim",
        ),
        (
            "me --data my.csv --target sold kind --experts categorical",
            "expected one --target of classes; got sold kind",
        ),
    ],
)
def test_bad_targets_say_what_was_expected(line, message, homes, capsys):
    new("me")
    homes["price"] = homes["price"].mask(homes.index == 3)
    homes["sold"] = ["maybe", *(["yes", "no"] * 45)[1:]]
    targets = [word for word in line.split() if word in homes]
    homes[["size", "age", *targets]].to_csv("my.csv", index=False)
    capsys.readouterr()
    assert re.fullmatch(message, fails(f"fit {line} --quiet", capsys))
