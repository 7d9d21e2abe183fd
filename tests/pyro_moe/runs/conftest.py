"""Small runs, and changes of them that their SHA-256 do not show."""

import json
import shutil

import pytest
import torch

import pyro_moe
from pyro_moe import runs
from pyro_moe.runs import layout

X = torch.randn(40, 2, generator=torch.Generator().manual_seed(0))
ME = {"x_dim": 2, "y_dim": 1, "num_components": 2}


@pytest.fixture(scope="session")
def fits():
    """Two fits of one story, by their seeds."""
    story = runs.STORIES["me"](**ME)
    choices = {"loss": "em", "epochs": 3, "prior": "weak", "progress": False}
    y = X[:, :1].abs()
    return [
        pyro_moe.fit(story.model, story.guide, (X, y), restarts=1, seed=seed, **choices)
        for seed in (0, 1)
    ]


@pytest.fixture(scope="session")
def save():
    """Save a fit of this story."""
    return save_fit


def save_fit(fit, folder, scores=None, **more):
    scores = scores or {"accuracy": 0.5}
    return runs.save(
        fit, folder, story_name="me", story_arguments=ME, data_name="my", scores=scores, **more
    )


@pytest.fixture(scope="session")
def saved(fits, tmp_path_factory):
    """A run that no test may change."""
    return save_fit(fits[0], tmp_path_factory.mktemp("saved") / "run")


@pytest.fixture
def run(saved, tmp_path):
    """A copy of this run."""
    return shutil.copytree(saved, tmp_path / "run")


@pytest.fixture
def changed():
    """Change the settings of a run, and bind its files as they are, as a deceiver may."""
    return change


def change(folder, change=lambda settings: None):
    path = folder / "settings.json"
    settings = json.loads(path.read_text())
    del settings["sha256"]
    names = settings.pop("files")
    files = {name: (folder / name).read_bytes() for name in names if (folder / name).exists()}
    settings = change(settings) or settings
    path.write_bytes(layout.sealed(settings, files))
    return folder
