"""What is saved is what is loaded, and what cannot be says so."""

import json
from pathlib import Path

import pandas as pd
import pytest
import torch

import pyro_moe
from pyro_moe import DataError, Rows, evaluation, runs

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
    settings = {"epochs": 2, "progress": False} | choices
    data = (x, Y.to(x.dtype)) if name in WITH_TARGETS else x
    return pyro_moe.fit(story.model, story.guide, data, **settings)


def saved(name, folder, fit=None, **more):
    fit = fit or fitted(name)
    arguments = {"story_name": name, "story_arguments": ARGUMENTS[name], "data_name": "mine"}
    return fit, runs.save(fit, folder, **arguments | more)


@each_story
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_loaded_story_is_the_saved_one(name, dtype, tmp_path):
    fit, folder = saved(name, tmp_path / "new" / "run", fitted(name, X.to(dtype)))
    story, settings = runs.load(folder)
    expected = fit.story.state_dict()
    assert type(story) is type(fit.story)
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
        story.model, story.guide, X, initialise="keep", epochs=1, learning_rate=0.0, progress=False
    )
    assert torch.equal(evaluation.gate(again, X), evaluation.gate(fit, X))
    assert torch.equal(evaluation.elbo(again, X), evaluation.elbo(fit, X))


@pytest.mark.parametrize("name", WITH_TARGETS)
def test_a_loaded_story_predicts_the_same_from_x_alone(name, tmp_path):
    fit, folder = saved(name, tmp_path)
    story, _ = runs.load(folder)
    again = pyro_moe.fit(
        story.model, story.guide, X[:1], initialise="keep", epochs=0, progress=False
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
    ]
    settings = json.loads((folder / "settings.json").read_text())
    assert settings["story"] == "dmvae"
    assert settings["story_arguments"] == ARGUMENTS["dmvae"] | {"hidden": [8]}
    assert settings["fit"]["epochs"] == 2
    assert settings["versions"]["torch"] == torch.__version__
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
    assert {"learning_rate", "temperature"}.isdisjoint(settings["fit"])


def test_a_second_run_replaces_the_first(tmp_path):
    saved("gmm", tmp_path)
    saved("vae", tmp_path)
    assert isinstance(runs.load(tmp_path)[0], pyro_moe.models.VAE)


def test_a_folder_below_a_file_cannot_be_written(tmp_path):
    file = tmp_path / "file"
    file.write_text("")
    for folder, reason in ((file / "run", "Not a directory"), (file, "File exists")):
        with pytest.raises(DataError) as caught:
            runs.prepare(folder)
        expected = f"expected a folder that can be written; got {folder} ({reason})"
        assert str(caught.value) == expected
    fit = fitted("gmm")
    with pytest.raises(DataError, match="expected a folder that can be written"):
        saved("gmm", file / "run", fit)


def test_a_folder_without_permission_cannot_be_written(tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(DataError) as caught:
        runs.prepare("/etc/run")
    expected = "expected a folder that can be written; got /etc/run (Permission denied)"
    assert str(caught.value) == expected


def test_preparing_a_folder_leaves_nothing_in_it(tmp_path):
    assert list(runs.prepare(tmp_path / "run").iterdir()) == []


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


def broken_json(folder):
    (folder / "settings.json").write_text("{")


def unknown_story(folder):
    change(folder, story="tree")


def unknown_argument(folder):
    change(folder, story_arguments={"depth": 3})


def no_story(folder):
    (folder / "settings.json").write_text("{}")


def another_width(folder):
    change(folder, story_arguments=ARGUMENTS["dmvae"] | {"x_dim": 4})


def truncated_parameters(folder):
    path = folder / "parameters.safetensors"
    path.write_bytes(path.read_bytes()[:-10])


def change(folder, **entries):
    path = folder / "settings.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (broken_json, "JSONDecodeError"),
        (unknown_story, "expected a story in .* got 'tree'"),
        (unknown_argument, "unexpected keyword argument 'depth'"),
        (no_story, "KeyError: 'story'"),
        (another_width, "size mismatch"),
        (truncated_parameters, "SafetensorError"),
    ],
)
def test_a_damaged_run(damage, reason, tmp_path):
    saved("dmvae", tmp_path)
    damage(tmp_path)
    with pytest.raises(DataError, match=reason) as caught:
        runs.load(tmp_path)
    message = str(caught.value)
    assert message.startswith(f"expected a run folder with its files whole; got {tmp_path} (")
    assert "\n" not in message
