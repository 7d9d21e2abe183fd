"""A restored fit gives what the fit in memory gave, whatever rows it is restored with."""

import re

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from torch.testing import assert_close

import pyro_moe
from pyro_moe import DataError, Rows, criticism, evaluation, models, runs

EXACT = {"rtol": 0, "atol": 0}
N = 300
GENERATOR = torch.Generator().manual_seed(0)
X = torch.randn(N, 2, generator=GENERATOR) + 4.0 * (torch.arange(N) % 2).unsqueeze(-1)
Y = torch.where(torch.arange(N) % 2 == 0, X[:, 0], 3.0 - X[:, 1])
Y = (Y + 0.1 * torch.randn(N, generator=GENERATOR)).unsqueeze(-1)
NEW = (torch.randn(60, 2, generator=GENERATOR) + 2.0, torch.randn(60, 1, generator=GENERATOR))
EM = {"loss": "em", "epochs": 20}
SVI = {"epochs": 2, "initialize": "random"}
SIZES = {"x_dim": 2, "num_components": 2}
KINDS = {
    "gmm": (SIZES, EM, False),
    "gmmmoe": (SIZES | {"y_dim": 1}, EM, True),
    "dvmoe": (SIZES | {"y_dim": 1, "z_dim": 2, "hidden": (8,)}, SVI, True),
}


def pair(name, folder, restore=lambda folder, new: runs.fit_of(folder, new)):
    arguments, options, has_target = KINDS[name]
    story = runs.STORIES[name](**arguments)
    data, new = ((X, Y), NEW) if has_target else (X, NEW[0])
    fit = pyro_moe.fit(story.model, story.guide, data, prior="none", progress=False, **options)
    runs.save(fit, folder, story_name=name, story_arguments=arguments, data_name="mine")
    return fit, restore(folder, new), new


WAYS = {
    "fit_of": lambda folder, new: runs.fit_of(folder, new),
    "x alone": lambda folder, new: runs.fit_of(folder, new[0] if isinstance(new, tuple) else new),
    "restore": lambda folder, new: runs.restore(
        folder, Rows(*new) if isinstance(new, tuple) else Rows(new)
    )[0],
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", KINDS)
def test_every_tool_gives_the_same_in_memory_and_restored(name, way, tmp_path):
    fit, restored, new = pair(name, tmp_path, WAYS[way])
    assert fit.restored is None
    assert restored.restored is not None
    for field in ("history", "settings", "columns", "targets", "stopped", "held_out_elbo"):
        assert getattr(restored, field) == getattr(fit, field)
    assert (restored.num_rows, restored.has_target) == (N, fit.has_target)
    tools = {
        "novelty": lambda f: evaluation.novelty(f, new).p_value,
        "reference": lambda f: evaluation.novelty(f, new, seed=3).reference,
        "gate": lambda f: evaluation.gate(f, new),
        "elbo": lambda f: evaluation.elbo(f, new),
        "sample": lambda f: evaluation.sample(f, 5),
        "impute": lambda f: (
            evaluation.impute(f, [[0.5, float("nan")]], num_samples=8, num_rounds=2).draws
        ),
        "health": lambda f: criticism.health(f, new).shares,
        "warnings": lambda f: criticism.health(f, new).warnings(),
        "check": lambda f: torch.tensor(
            criticism.check(f, new, num_replicates=19).table["adjusted_p_value"].to_numpy()
        ),
    }
    if fit.has_target:
        tools["predict"] = lambda f: evaluation.predict(f, new).mean
    for tool, use in tools.items():
        given, again = use(fit), use(restored)
        if torch.is_tensor(given):
            assert_close(again, given, **EXACT, msg=tool)
        else:
            assert again == given, tool


def test_the_numbers_of_the_report_are_the_same(tmp_path):
    fit, restored, new = pair("gmmmoe", tmp_path)
    pages = [
        f.report(tmp_path / "report.html", new, num_replicates=19).read_text()
        for f in (fit, restored)
    ]
    row = r'<tr><td class="text long">([^<]*)</td><td class="number">([^<]*)</td>'
    scores = [re.findall(row, page) for page in pages]
    assert len(scores[0]) >= 4
    assert scores[0] == scores[1]
    found = [re.findall("Data simulated from the model[^<]*", page) for page in pages]
    assert found[0] == found[1] != []
    assert "From the training rows." in pages[0]
    assert "From these rows." in pages[1]


@pytest.mark.parametrize(
    "tool",
    [
        lambda fit, path: criticism.health(fit),
        lambda fit, path: criticism.check(fit),
        lambda fit, path: criticism.to_arviz(fit),
        lambda fit, path: fit.report(path),
    ],
)
def test_what_needs_the_training_rows_asks_for_rows(tool, tmp_path):
    _, restored, _ = pair("gmm", tmp_path)
    with pytest.raises(DataError) as caught:
        tool(restored, tmp_path / "report.html")
    assert str(caught.value) == (
        "expected data=…, because the fit was restored without its training rows; got none"
    )


def test_the_training_rows_are_known_again(tmp_path):
    fit, _, _ = pair("gmmmoe", tmp_path)
    for again in (runs.fit_of(tmp_path, (X, Y)), runs.restore(tmp_path, Rows(X, Y))[0]):
        assert again.restored is None
        assert_close(criticism.health(again).shares, criticism.health(fit).shares, **EXACT)
        one, other = (evaluation.novelty(f, X, num_samples=8) for f in (fit, again))
        assert_close(one.p_value, other.p_value, **EXACT)
    changed = Y.clone()
    changed[7] += 1.0
    assert runs.fit_of(tmp_path, (X, changed)).restored is not None


def test_the_reference_is_saved_for_one_number_of_samples(tmp_path):
    _, restored, new = pair("dvmoe", tmp_path)
    with pytest.raises(DataError) as caught:
        evaluation.novelty(restored, new, num_samples=8)
    assert str(caught.value) == (
        "expected reference=…, because the fit was restored without its training rows; got none, "
        "and those with 64 samples in the run folder"
    )
    assert len(evaluation.novelty(restored, new, num_samples=8, reference=X).reference) == N


def test_a_restored_fit_is_saved_with_what_it_knew(tmp_path):
    fit, restored, new = pair("gmm", tmp_path / "first")
    runs.save(
        restored, tmp_path / "again", story_name="gmm", story_arguments=SIZES, data_name="mine"
    )
    again = runs.fit_of(tmp_path / "again", new)
    assert again.num_rows == N
    assert again.history == fit.history
    one, other = (evaluation.novelty(f, new) for f in (fit, again))
    assert_close(one.p_value, other.p_value, **EXACT)
    assert runs.fit_of(tmp_path / "again", X).restored is None


def test_log_densities_are_computed_once_for_the_same_fit(tmp_path, monkeypatch):
    fit, _, _ = pair("gmm", tmp_path)
    arguments = {"story_name": "gmm", "story_arguments": SIZES, "data_name": "mine"}
    before = (tmp_path / "training.safetensors").read_bytes()
    with monkeypatch.context() as patched:
        patched.setattr(runs.remembered, "training_log_densities", None)
        runs.save(fit, tmp_path, **arguments, scores={"accuracy": 0.5})
    assert (tmp_path / "training.safetensors").read_bytes() == before
    story = models.GMM(**SIZES)
    for data, options in ((X, SVI), (X + 1.0, EM)):
        other = pyro_moe.fit(
            story.model, story.guide, data, prior="none", progress=False, **options
        )
        runs.save(other, tmp_path, **arguments)
        assert (tmp_path / "training.safetensors").read_bytes() != before


def test_the_folder_has_no_rows(tmp_path):
    pair("gmm", tmp_path)
    numbers = load_file(tmp_path / "training.safetensors")
    assert {name: tuple(value.shape) for name, value in numbers.items()} == {
        "low.0": (2,),
        "high.0": (2,),
        "mean": (2,),
        "log_densities": (N,),
    }


def test_a_restored_fit_is_not_resumed_on_other_rows(tmp_path):
    _, restored, _ = pair("gmm", tmp_path)
    with pytest.raises(ValueError, match="expected a fit with its optimizer; got one of a run"):
        restored.resume(progress=False)


def test_new_rows_need_not_vary(tmp_path):
    """A warning of constant targets is one of training rows."""
    fit, _, _ = pair("gmmmoe", tmp_path)
    restored = runs.fit_of(tmp_path, (X[:1], Y[:1]))
    assert_close(evaluation.elbo(restored, (X, Y)), evaluation.elbo(fit, (X, Y)), **EXACT)


def test_a_schedule_that_the_folder_cannot_hold_does_not_hinder_health(tmp_path):
    arguments = KINDS["dvmoe"][0]
    story = runs.STORIES["dvmoe"](**arguments)
    options = {"loss": "relaxed", "temperature": lambda done: 0.5, **SVI}
    fit = pyro_moe.fit(story.model, story.guide, (X, Y), prior="none", progress=False, **options)
    runs.save(fit, tmp_path, story_name="dvmoe", story_arguments=arguments, data_name="mine")
    restored = runs.fit_of(tmp_path, NEW)
    gaps = [criticism.health(f, NEW).objective_gap for f in (fit, restored)]
    assert gaps[0] == gaps[1]


def test_settings_may_be_numbers_of_numpy(tmp_path):
    story = models.GMM(**SIZES)
    options = {"epochs": np.int64(3), "seed": np.int64(5), "learning_rate": np.float32(0.5)}
    fit = pyro_moe.fit(story.model, story.guide, X, prior="none", progress=False, **options)
    runs.save(fit, tmp_path, story_name="gmm", story_arguments=SIZES, data_name="mine")
    assert runs.fit_of(tmp_path, X).settings == fit.settings


# Names


FRAME = pd.DataFrame(X.numpy(), columns=["dose", "age"])
PRICE = pd.Series(Y[:, 0].numpy(), name="price")


def test_names_come_back_with_a_run(tmp_path):
    arguments = SIZES | {"y_dim": 1}
    story = models.ME(**arguments)
    fit = pyro_moe.fit(story.model, story.guide, (FRAME, PRICE), prior="none", progress=False, **EM)
    runs.save(fit, tmp_path, story_name="me", story_arguments=arguments, data_name="mine")
    turned = FRAME[["age", "dose"]]
    expected = evaluation.predict(fit, FRAME).mean
    for data in (turned, (turned, PRICE), FRAME.to_numpy(), FRAME):
        restored = runs.fit_of(tmp_path, data)
        assert (restored.columns, restored.targets) == (("dose", "age"), ("price",))
        assert_close(evaluation.predict(restored, turned).mean, expected, **EXACT)
    rows = Rows(X.flip(1), Y, columns=("age", "dose"), targets=("price",))
    restored, train, _ = runs.restore(tmp_path, rows)
    assert_close(evaluation.predict(restored, train).mean, expected, **EXACT)
    with pytest.raises(DataError) as caught:
        runs.fit_of(tmp_path, FRAME.rename(columns={"age": "years"}))
    assert str(caught.value) == (
        "expected 'age' among the columns of x, as fitted; got 'dose', 'years'"
    )


def test_the_shape_of_images_comes_back_with_a_run(tmp_path):
    story = models.GMM(x_dim=4, num_components=1)
    rows = Rows(torch.rand(30, 4, generator=GENERATOR), image_shape=(1, 2, 2))
    fit = pyro_moe.fit(story.model, story.guide, rows, prior="none", progress=False, **EM)
    arguments = {"x_dim": 4, "num_components": 1}
    runs.save(fit, tmp_path, story_name="gmm", story_arguments=arguments, data_name="mine")
    assert runs.fit_of(tmp_path, rows.x[:3]).image_shape == fit.image_shape == (1, 2, 2)
