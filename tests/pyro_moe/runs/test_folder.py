"""What is saved is what is loaded, and what cannot be says so."""

import json
import math
from importlib.metadata import version
from pathlib import Path

import pandas as pd
import pytest
import torch
from torch.testing import assert_close

import pyro_moe
from pyro_moe import ConvergenceWarning, DataError, Rows, evaluation, runs
from pyro_moe.datasets.source import Source
from pyro_moe.runs import story_file

X = torch.randn(50, 3, generator=torch.Generator().manual_seed(0))
Y = torch.stack([X[:, 0].abs(), X[:, 1] - X[:, 2]], 1)
EXPERTS = {"x_dim": 3, "y_dim": 2, "num_components": 2}
ARGUMENTS = {
    "gmm": {"x_dim": 3, "num_components": 2, "covariance": "tied"},
    "vae": {"x_dim": 3, "z_dim": 2, "hidden": (8,)},
    "vade": {"x_dim": 3, "z_dim": 2, "num_components": 2, "hidden": (8, 4)},
    "dmvae": {"x_dim": 3, "z_dim": 2, "num_components": 2, "hidden": (8,), "weights": "learned"},
    "me": EXPERTS,
    "deepmoe": EXPERTS | {"hidden": (8,), "experts": "student-t"},
    "hierarchicalme": EXPERTS | {"num_components": (2, 3)},
    "gmmmoe": EXPERTS | {"covariance": "diagonal", "shrinkage": 0.1},
    "vademoe": EXPERTS | {"z_dim": 2, "hidden": (8,), "context": "z"},
    "dvmoe": EXPERTS | {"z_dim": 2, "hidden": (8,)},
}
WITH_TARGETS = [name for name, arguments in ARGUMENTS.items() if "y_dim" in arguments]
each_story = pytest.mark.parametrize("name", ARGUMENTS)


def fitted(name, x=X, **choices):
    story = runs.STORIES[name](**ARGUMENTS[name]).to(x.dtype)
    settings = {"epochs": 2, "loss": "marginal", "initialize": "random", "prior": "weak"}
    settings |= {"progress": False} | choices
    data = (x, Y.to(x.dtype)) if name in WITH_TARGETS else x
    return pyro_moe.fit(story.model, story.guide, data, **settings)


def saved(name, folder, fit=None, **more):
    fit = fit or fitted(name)
    arguments = {"story_name": name, "story_arguments": ARGUMENTS[name], "data_name": "mine"}
    return fit, runs.save(fit, folder, **arguments | more)


@each_story
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.filterwarnings("ignore:expected at least:pyro_moe.EmptyComponentWarning")
def test_a_loaded_story_is_the_saved_one(name, dtype, tmp_path):
    fit, folder = saved(name, tmp_path / "new" / "run", fitted(name, X.to(dtype)))
    story, settings = runs.load(folder)
    expected = fit.story.state_dict()
    assert type(story) is type(fit.story)
    assert not story.training
    assert story.state_dict().keys() == expected.keys()
    for key, value in story.state_dict().items():
        assert value.dtype == expected[key].dtype
        assert torch.equal(value, expected[key])
    assert settings["data"] == "mine"


@pytest.mark.parametrize("name", ["gmm", "vade", "dmvae"])
def test_a_loaded_story_has_the_same_gate(name, tmp_path):
    fit, folder = saved(name, tmp_path)
    story, _ = runs.load(folder)
    again = pyro_moe.fit(
        story.model,
        story.guide,
        X,
        initialize="keep",
        epochs=1,
        learning_rate=0.0,
        prior="none",
        progress=False,
    )
    assert torch.equal(evaluation.gate(again, X), evaluation.gate(fit, X))
    assert torch.equal(evaluation.elbo(again, X), evaluation.elbo(fit, X))


@pytest.mark.parametrize("name", WITH_TARGETS)
@pytest.mark.filterwarnings("ignore:expected at least:pyro_moe.EmptyComponentWarning")
def test_a_loaded_story_predicts_the_same_from_x_alone(name, tmp_path):
    fit, folder = saved(name, tmp_path)
    story, _ = runs.load(folder)
    again = pyro_moe.fit(
        story.model, story.guide, X[:1], initialize="keep", epochs=0, progress=False
    )
    first, second = (evaluation.predict(each, X) for each in (fit, again))
    assert torch.equal(first.gate, second.gate)
    assert torch.equal(first.mean, second.mean)
    assert torch.equal(first.log_prob(Y), second.log_prob(Y))


def test_the_names_of_columns_and_targets_are_kept(tmp_path):
    rows = Rows(X, Y, columns=("a", "b", "c"), targets=("price", "rent"))
    _, folder = saved("me", tmp_path, rows=rows)
    settings = runs.load(folder)[1]
    assert settings["columns"] == ["a", "b", "c"]
    assert settings["targets"] == ["price", "rent"]
    _, folder = saved("me", tmp_path)
    assert runs.load(folder)[1]["targets"] is None


def test_the_files_of_a_run(tmp_path):
    fit, folder = saved("dmvae", tmp_path, scores={"accuracy": 0.5})
    assert sorted(path.name for path in folder.iterdir()) == [
        "history.csv",
        "parameters.safetensors",
        "scores.json",
        "settings.json",
        "training.safetensors",
    ]
    settings = json.loads((folder / "settings.json").read_text())
    assert settings["story"] == "dmvae"
    assert settings["story_arguments"] == ARGUMENTS["dmvae"] | {"hidden": [8]}
    assert settings["fit"]["epochs"] == 2
    assert settings["versions"]["torch"] == version("torch")
    scores = json.loads((folder / "scores.json").read_text())
    assert scores == {"stopped": None, "held_out_elbo": None, "accuracy": 0.5}
    history = pd.read_csv(folder / "history.csv").to_dict("records")
    assert [record["phase"] for record in history] == ["training", "training"]
    assert [record["elbo"] for record in history] == pytest.approx(
        [record["elbo"] for record in fit.history], rel=1e-12
    )


def test_schedules_that_json_cannot_hold_are_left_out(tmp_path):
    fit = fitted("dmvae", learning_rate=lambda done: 1e-3)
    _, folder = saved("dmvae", tmp_path, fit)
    settings = json.loads((folder / "settings.json").read_text())
    assert "learning_rate" not in settings["fit"]


def test_a_second_run_replaces_the_first(tmp_path):
    saved("gmm", tmp_path)
    saved("vae", tmp_path)
    assert isinstance(runs.load(tmp_path)[0], pyro_moe.models.VAE)


def test_a_folder_below_a_file_cannot_be_written(tmp_path):
    file = tmp_path / "file"
    file.write_text("")
    for folder, reason in ((file / "run", "Not a directory"), (file, "File exists")):
        with pytest.raises(DataError) as caught, runs.writer(folder):
            pass
        expected = f"expected a folder that can be written; got {folder} ({reason})"
        assert str(caught.value) == expected
    fit = fitted("gmm")
    with pytest.raises(DataError, match="expected a folder that can be written"):
        saved("gmm", file / "run", fit)


def test_a_folder_without_permission_cannot_be_written(tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(DataError) as caught, runs.writer("/etc/run"):
        pass
    expected = "expected a folder that can be written; got /etc/run (Permission denied)"
    assert str(caught.value) == expected


def test_a_folder_that_nothing_is_written_to_does_not_stay(tmp_path):
    with runs.writer(tmp_path / "runs" / "run") as folder:
        assert list(folder.iterdir()) == []
    assert list(tmp_path.iterdir()) == []


def test_the_name_must_be_that_of_the_story(tmp_path):
    fit = fitted("vade")
    with pytest.raises(ValueError, match="expected a fit of a dmvae; got VaDE"):
        saved("dmvae", tmp_path, fit)
    with pytest.raises(ValueError, match=r"expected a story in \('gmm', .*\); got 'mine'"):
        saved("vade", tmp_path, fit, story_name="mine")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_without_a_run(tmp_path):
    with pytest.raises(DataError) as caught:
        runs.load(tmp_path)
    assert str(caught.value) == f"expected a run folder; got {tmp_path} (No such file or directory)"


# Story files


STORY = """import pyro
import pyro.distributions as dist
import torch
from torch import nn


class Story(nn.Module):
    def __init__(self, x_dim, y_dim, scale=2.0):
        super().__init__()
        self.maps = nn.Linear(x_dim, y_dim)
        self.scale = scale

    def model(self, x, y=None):
        pyro.module("story", self)
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(self.maps(x), self.scale).to_event(1), obs=y)

    def guide(self, x, y=None):
        pass
"""


def saved_file(folder, text=STORY, **more):
    path = folder / "my_story.py"
    path.write_text(text)
    file = story_file.read(path)
    story = file.story(3, 2, scale=3.0)
    fit = pyro_moe.fit(story.model, story.guide, (X, Y), epochs=3, prior="none", progress=False)
    arguments = {"x_dim": 3, "y_dim": 2, "scale": 3.0}
    runs.save(
        fit,
        folder / "run",
        story_file=file,
        story_arguments=arguments,
        data_name="mine",
        **more,
    )
    return fit, path, folder / "run"


def test_a_story_of_a_file_is_loaded_from_the_copy_in_the_run(tmp_path):
    fit, path, folder = saved_file(tmp_path)
    path.unlink()
    assert (folder / "story.py").read_text() == STORY
    story, settings = runs.load(folder, trust_code=True)
    assert settings["story"] == "my_story.py"
    assert story.scale == 3.0
    for key, value in fit.story.state_dict().items():
        assert torch.equal(story.state_dict()[key], value)
    assert sorted(path.name for path in folder.iterdir()) == [
        "history.csv",
        "parameters.safetensors",
        "scores.json",
        "settings.json",
        "story.py",
        "training.safetensors",
    ]


def test_the_fit_must_be_of_the_story_of_the_file(tmp_path):
    _, path, _ = saved_file(tmp_path)
    with pytest.raises(ValueError, match=r"expected a fit of a my_story\.py; got GMM"):
        saved("gmm", tmp_path / "other", story_name=None, story_file=story_file.read(path))


def test_a_copy_takes_the_place_of_a_copy_and_of_nothing_else(tmp_path):
    saved_file(tmp_path)
    _, _, folder = saved_file(tmp_path, STORY + "# edited")
    assert (folder / "story.py").read_text().endswith("# edited")
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "story.py").write_text("precious")
    for shipped_before in (False, True):
        if shipped_before:
            saved("gmm", mine)
        with pytest.raises(DataError) as caught, runs.writer(mine, code=STORY.encode()):
            pass
        assert str(caught.value) == f"expected a folder without another story.py; got {mine}"
    assert (mine / "story.py").read_text() == "precious"


def test_a_story_of_a_run_that_breaks_is_said_with_its_line(tmp_path, changed):
    _, _, folder = saved_file(tmp_path)
    (folder / "story.py").write_text(STORY.replace("nn.Linear", "nn.Linea"))
    with pytest.raises(DataError) as caught:
        runs.load(changed(folder), trust_code=True)
    assert "AttributeError: module" in str(caught.value)
    assert story_file.explain(caught.value).endswith(f", in line 10 of {folder / 'story.py'}")


# The whole fit again


@pytest.fixture
def table(tmp_path):
    path = tmp_path / "my.csv"
    frame = pd.DataFrame(X.numpy(), columns=["a", "b", "c"]).assign(price=Y[:, 0].numpy())
    frame.insert(0, "rent", Y[:, 1].numpy())
    frame.to_csv(path, index=False)
    return path


def from_table(name, path, folder, **choices):
    source = Source(str(path), target=("price", "rent") if name in WITH_TARGETS else ())
    arguments = ARGUMENTS[name] | {"x_dim": 3 if name in WITH_TARGETS else 5}
    story = runs.STORIES[name](**arguments)
    train, test = source.rows()
    settings = {"epochs": 3, "initial_epochs": 1, "prior": "none", "progress": False} | choices
    fit = pyro_moe.fit(story.model, story.guide, train, **settings)
    more = {"story_arguments": arguments, "source": source.recorded(), "rows": train}
    _, folder = saved(name, folder, fit, **more)
    return fit, train, test, folder


@pytest.mark.filterwarnings("ignore::pyro_moe.EmptyComponentWarning")
@pytest.mark.parametrize(
    ("name", "choices"),
    [
        ("dvmoe", {}),
        ("vademoe", {"restarts": 2}),
        ("gmmmoe", {"loss": "em"}),
        ("dmvae", {"loss": "categorical-kl", "seed": 3}),
        ("vae", {}),
    ],
)
def test_a_restored_fit_is_the_fit(name, choices, table, tmp_path, monkeypatch):
    fit, train, test, folder = from_table(name, table, tmp_path / "run", **choices)
    monkeypatch.chdir(folder)  # wherever one is
    restored, *rows = runs.restore(folder)
    for before, after in zip((train, test), rows, strict=True):
        assert torch.equal(before.x, after.x)
        assert (before.y is None and after.y is None) or torch.equal(before.y, after.y)
        assert (before.columns, before.targets) == (after.columns, after.targets)
    assert restored.history == fit.history
    assert restored.held_out_elbo == fit.held_out_elbo
    assert (restored.held_out_elbo is None) == ("restarts" not in choices)
    assert restored.stopped == fit.stopped
    assert restored.columns == fit.columns
    kept = {key: value for key, value in fit.settings.items() if not callable(value)}
    assert restored.settings == kept
    assert torch.equal(evaluation.elbo(restored, test), evaluation.elbo(fit, test))
    for key, value in fit.parameters().items():
        assert torch.equal(restored.parameters()[key], value)
    if name in WITH_TARGETS:
        first, second = (evaluation.predict(each, test) for each in (fit, restored))
        assert torch.equal(first.mean, second.mean)


def test_why_a_fit_stopped_is_restored(tmp_path):
    def interrupt(fit):
        raise KeyboardInterrupt

    _, folder = saved("gmm", tmp_path, fitted("gmm", epochs=9, callback=interrupt))
    with pytest.warns(ConvergenceWarning, match="interrupted after 1 of 9 epochs"):
        restored, train, test = runs.restore(folder, Rows(X))
    assert restored.interrupted
    assert len(restored.history) == 1
    assert torch.equal(train.x, X)
    assert torch.equal(test.x, X)


def test_a_fit_without_an_epoch_has_no_history(tmp_path):
    _, folder = saved("gmm", tmp_path, fitted("gmm", epochs=0, initialize="keep"))
    assert runs.restore(folder, Rows(X))[0].history == []


def test_a_restored_fit_is_not_resumed(tmp_path):
    _, folder = saved("gmm", tmp_path)
    restored, _, _ = runs.restore(folder, Rows(X))
    with pytest.raises(ValueError, match="expected a fit with its optimizer; got one of a run"):
        restored.resume(progress=False)


def test_a_restored_story_of_a_file(table, tmp_path):
    source = Source(str(table), target=("price", "rent"))
    train, _ = source.rows()
    fit, _, folder = saved_file(tmp_path, source=source.recorded(), rows=train)
    restored, _, test = runs.restore(folder, trust_code=True)
    assert torch.equal(evaluation.elbo(restored, test), evaluation.elbo(fit, test))


def test_statements_of_pyro_param_are_given_back_with_their_constraints(table, tmp_path):
    """They belong to no module of the story."""
    constrained = 'pyro.param("scale", torch.tensor(9.0), constraint=constraints.positive)'
    text = STORY.replace("self.scale)", f"{constrained})").replace(
        "from torch import nn", "from torch import nn\nfrom torch.distributions import constraints"
    )
    train, _ = Source(str(table), target=("price", "rent")).rows()
    fit, _, folder = saved_file(tmp_path, text, rows=train)
    restored = runs.restore(folder, train, trust_code=True)[0]
    alone = runs.fit_of(folder, train.x, trust_code=True)
    assert fit.parameters()["scale"] != math.log(9.0)
    for each in (restored, alone):
        assert_close(each.parameters(), fit.parameters(), rtol=0, atol=0)
        first, second = (evaluation.predict(which, X) for which in (each, fit))
        assert torch.equal(first.variance, second.variance)
    assert torch.equal(evaluation.elbo(restored, train), evaluation.elbo(fit, train))


def test_a_table_that_moved_is_named(table, tmp_path):
    _, train, test, folder = from_table("me", table, tmp_path / "run")
    moved = table.rename(tmp_path / "moved.csv")
    with pytest.raises(DataError) as caught:
        runs.restore(folder)
    assert str(caught.value).startswith(f"expected the fitted table at {table}; got no such file")
    for rows, again in zip((train, test), runs.restore(folder, moved)[1:], strict=True):
        assert torch.equal(rows.x, again.x)


def test_a_table_that_changed_is_not_taken_for_what_it_was(table, tmp_path):
    _, _, _, folder = from_table("me", table, tmp_path / "run")
    frame = pd.read_csv(table)
    pd.concat([frame.iloc[::-1], frame])[["c", "price", "a", "b", "rent"]].to_csv(table)
    with pytest.raises(DataError) as caught:
        runs.restore(folder)
    message = f"expected {table} with the fitted content; got other content"
    assert str(caught.value).startswith(message)
    _, train, test = runs.restore(folder, table)  # all of it, by the columns' names
    assert len(train) == len(test) == 2 * len(X)
    assert torch.equal(test.x[len(X) :].float(), X)
    assert torch.equal(test.y[len(X) :].float(), Y)


def test_a_run_that_does_not_say_where_its_rows_are(table, tmp_path):
    _, folder = saved("vae", tmp_path)
    with pytest.raises(DataError) as caught:
        runs.restore(folder)
    assert (
        str(caught.value)
        == f"expected data=…, because {folder} has no record of its data; got none"
    )
    _, folder = saved("vae", tmp_path, rows=Rows(X, columns=("a", "b", "c")))
    assert torch.equal(runs.restore(folder, table)[2].x.float(), X)


@pytest.mark.parametrize("name", ["history.csv", "scores.json"])
def test_a_run_without_its_results_cannot_be_restored(name, tmp_path):
    _, folder = saved("gmm", tmp_path)
    (folder / name).unlink()
    with pytest.raises(DataError, match=r"expected a run folder with valid files; got .*No such"):
        runs.restore(folder, Rows(X))
