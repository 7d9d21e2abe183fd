"""A fit says what it is in a few lines, and its methods are the functions of the package."""

from dataclasses import replace

import pandas as pd
import pytest
import torch
from torch.testing import assert_close

import pyro_moe
from pyro_moe import DataError, criticism, evaluation, models, plots, runs

EXACT = {"rtol": 0, "atol": 0}


@pytest.fixture(scope="module")
def rows():
    generator = torch.Generator().manual_seed(0)
    x = pd.DataFrame(torch.randn(60, 2, generator=generator).numpy(), columns=["dose", "age"])
    noise = 0.1 * torch.randn(60, generator=generator).numpy()
    return x, pd.Series(x["dose"].abs() + noise, name="cured")


@pytest.fixture(scope="module")
def fit(rows):
    story = models.ME(2, 1, 2)
    return pyro_moe.fit(story.model, story.guide, rows, prior="weak", epochs=9, progress=False)


def test_a_fit_is_shown_in_a_few_lines(fit):
    first, second = repr(fit).splitlines()
    assert first == "Fit of ME with num_components=2 to 60 rows: x ('dose', 'age'), y ('cured')"
    assert second.startswith("  em, 9 iterations in ")
    assert second.endswith(f"ELBO {fit.history[-1]['elbo']:.5g} nats per row")


def test_many_columns_are_counted():
    x = pd.DataFrame(torch.randn(40, 9).numpy(), columns=list("abcdefghi"))
    story = models.VAE(9, 2, hidden=(4,))
    fit = pyro_moe.fit(story.model, story.guide, x, epochs=1, progress=False)
    assert "VAE to 40 rows: x ('a', 'b', 'c', 'd', 'e', 'f', 3 more)" in repr(fit)
    untrained = pyro_moe.fit(
        story.model, story.guide, x, epochs=0, initialize="keep", progress=False
    )
    assert repr(untrained).endswith("not trained")


def test_a_fit_of_functions_and_a_stopped_one(rows):
    def stop(fit):
        raise KeyboardInterrupt

    story = models.GMM(2, 2)
    fit = pyro_moe.fit(
        story.model,
        story.guide,
        rows[0],
        epochs=5,
        loss="marginal",
        prior="weak",
        progress=False,
        callback=stop,
    )
    assert repr(fit).splitlines()[-1] == "  stopped: interrupted after 1 of 5 epochs"
    assert len(repr(fit)) < 400
    with pytest.raises(KeyboardInterrupt):
        fit.uninterrupted()
    whole = replace(fit, stopped=None)
    assert whole.uninterrupted() is whole


def test_a_restored_fit_is_shown_and_needs_rows(fit, rows, tmp_path):
    arguments = {"x_dim": 2, "y_dim": 1, "num_components": 2}
    runs.save(fit, tmp_path, story_name="me", story_arguments=arguments, data_name="my")
    restored = runs.fit_of(tmp_path, tuple(part[:5] for part in rows))
    assert repr(restored).splitlines()[-1] == "  restored without its training rows"
    with pytest.raises(DataError, match="expected data=…"):
        restored.summary()
    assert restored.score(rows) == pytest.approx(fit.score(rows))


def test_methods_are_the_functions(fit, rows):
    assert_close(fit.predict(rows[0]).mean, evaluation.predict(fit, rows[0]).mean, **EXACT)
    each = evaluation.predict(fit, rows[0]).log_prob(rows[1])
    assert fit.score(rows) == evaluation.score(fit, rows) == each.mean().item()
    assert fit.score() == pytest.approx(fit.score(rows))
    assert fit.summary() == criticism.summary(fit)
    assert set(fit.plot()) == set(plots.pictures(fit, rows)) >= {"history", "predictions"}


def test_the_score_of_a_story_of_x_is_its_density(rows):
    story = models.GMM(2, 2)
    fit = pyro_moe.fit(story.model, story.guide, rows[0], prior="weak", epochs=5, progress=False)
    density = fit.story.mixture.log_joint(fit.data[0]).logsumexp(-1).mean().item()
    assert fit.score() == pytest.approx(density)


def test_targets_that_are_missing_do_not_count(rows):
    x, y = rows
    story = models.GMMMoE(2, 1, 2)
    some = y.where(y.index % 3 > 0)
    fit = pyro_moe.fit(
        story.model,
        story.guide,
        (x, some),
        missing_targets=True,
        prior="weak",
        epochs=5,
        progress=False,
    )
    known = some.notna()
    assert fit.score() == pytest.approx(fit.score((x[known], y[known])))


def test_a_summary_has_scores_and_shares(fit, rows):
    text = fit.summary(rows)
    assert text.startswith(repr(fit))
    assert "on the 60 given rows:" in text
    line = evaluation.linear_baseline(fit, rows).mean().item()
    assert f"{'the same of one linear model':<42}{line:>12.5g}" in text
    shares = evaluation.gate(fit, rows[0]).mean(0)
    assert [row.split()[-1] for row in text.splitlines() if row.endswith("%")] == [
        f"{share:.2%}" for share in shares.tolist()
    ]


def test_a_summary_of_classes_and_one_without_components(rows):
    x, y = rows
    classes = (y > y.median()).astype(int)
    story = models.ME(2, 2, 2, experts="categorical")
    data, quick = (x, classes), {"prior": "weak", "epochs": 3, "progress": False}
    fit = pyro_moe.fit(story.model, story.guide, data, **quick)
    right = (fit.predict(x).mean.argmax(1).numpy() == classes).mean()
    assert f"{'share of classes that are right':<42}{right:>12.5g}" in fit.summary()
    story = models.VAE(2, 1, hidden=(4,))
    fit = pyro_moe.fit(story.model, story.guide, x, epochs=1, progress=False)
    assert "component" not in fit.summary()
