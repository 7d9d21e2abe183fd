"""Replicates are whole data sets that the fitted story makes, each under its own shared draws."""

import sys

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch.testing import assert_close

from pyro_moe import evaluation, models
from pyro_moe.criticism.calibration import normal_scores
from pyro_moe.criticism.replicates import Features, Targets

pytestmark = pytest.mark.usefixtures("double")
N, S = 200, 200


@pytest.fixture
def gmm(as_it_is, scatter):
    """A function that makes a fit of a mixture as it is to so many rows."""

    def make(number=N):
        story = scatter(models.GMM(2, 3), scale=1.0)
        return as_it_is(story.model, story.guide, torch.randn(number, 2))

    return make


@pytest.fixture
def me(as_it_is, scatter):
    story = scatter(models.ME(2, 1, 3), scale=1.0)
    return as_it_is(story.model, story.guide, torch.randn(N, 2), torch.randn(N, 1))


def shared_mean(x):
    """A mean that all rows share, of a prior far from the guide's."""
    m = pyro.sample("m", dist.Normal(100.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(m, torch.tensor([0.1])).to_event(1), obs=x)


def posterior_of_mean(x):
    pyro.sample("m", dist.Normal(torch.tensor(5.0), 2.0))


def means_of(part, number=S):
    return torch.stack(
        [
            sample.y.mean() if part.site == "y" else sample.x.mean()
            for sample, _ in part.replicates(number)
        ]
    )


def test_features_are_drawn_by_the_story_in_data_sets_of_equal_size(gmm):
    fit = gmm()
    part = Features(fit, fit.data[0], names=("x0", "x1")[: fit.x_dim])
    made = torch.stack([sample.x for sample, _ in part.replicates(S)])
    assert made.shape == (S, N, 2)
    assert len(made.flatten(0, 1).unique(dim=0)) == S * N
    expected = evaluation.sample(fit, 100_000, seed=5)
    scale = expected.std(0)
    assert_close(made.mean((0, 1)) / scale, expected.mean(0) / scale, rtol=0, atol=5 * 0.006)
    assert_close(made.flatten(0, 1).std(0) / scale, torch.ones(2), rtol=0, atol=0.05)


@pytest.mark.parametrize("at_once", [1, 450, 10_000])
def test_what_is_said_of_features_is_what_is_said_of_each_row(gmm, monkeypatch, at_once):
    monkeypatch.setattr(sys.modules[Features.__module__], "ROWS_AT_ONCE", at_once)
    fit = gmm()
    part = Features(fit, fit.data[0], names=("x0", "x1")[: fit.x_dim])
    made = [part.observed(), *part.replicates(5)]
    assert len(made) == 6
    for sample, component in made:
        assert len(sample) == N
        assert torch.equal(component, evaluation.gate(fit, sample.x).argmax(-1))
        assert_close(sample.log_density, evaluation.elbo(fit, sample.x))


def test_each_data_set_of_features_has_its_own_draw_of_what_rows_share(as_it_is):
    fit = as_it_is(shared_mean, posterior_of_mean, torch.zeros(N, 1))
    means = means_of(Features(fit, fit.data[0], names=("x0", "x1")[: fit.x_dim]))
    assert abs(means.mean() - 5.0) < 4 * 2.0 / S**0.5
    assert means.std().item() == pytest.approx(2.0, rel=4 / (2 * S) ** 0.5)


def test_targets_are_drawn_at_the_rows_own_x(me):
    x, y = me.data
    prediction = evaluation.predict(me, x)
    part = Targets(me, (x, y), x_names=("x0", "x1"))
    made = torch.stack([sample.y for sample, _ in part.replicates(S)])
    error = (prediction.variance / S).sqrt()
    assert (((made.mean(0) - prediction.mean) / error).abs() < 5).all()
    for sample, component in (part.observed(), *part.replicates(2)):
        assert torch.equal(sample.x, x)
        assert torch.equal(component, prediction.gate.argmax(-1))
        assert_close(sample.log_density, prediction.log_prob(sample.y))
        assert_close(sample.scores, normal_scores(prediction.cdf(sample.y)))


def test_each_data_set_of_targets_has_its_own_draw_of_the_experts(fits):
    """Their mean varies by what the posterior leaves open, besides the noise of rows."""
    fit = fits("bayesian")
    with torch.no_grad():
        wide = fit.story.log_scale["network_bias"].fill_(0.0)
    try:
        x, y = fit.data
        prediction = evaluation.predict(fit, x)
        by_draw = torch.stack(
            [
                (w.unsqueeze(-1) * p.mean).sum(1).mean()
                for w, p in zip(prediction.weights, prediction.distributions, strict=True)
            ]
        )
        by_row = prediction.within.sum().sqrt() / len(x)
        assert by_draw.std() > 3 * by_row
        means = means_of(Targets(fit, (x, y), x_names=("x0", "x1")))
        assert means.std().item() == pytest.approx(by_draw.std().item(), rel=0.3)
    finally:
        with torch.no_grad():
            wide.fill_(-5.0)


def test_rows_without_a_target_are_left_out(fits, data):
    fit, (x, y) = fits("me, missing targets"), data["missing"]
    known = ~y.isnan().flatten()
    part = Targets(fit, (x, y), x_names=("x0", "x1"))
    sample, component = part.observed()
    assert torch.equal(sample.x, x[known])
    assert torch.equal(sample.y, y[known])
    assert len(component) == known.sum()


@pytest.mark.parametrize("dim", [1, 2, 3])
def test_entries_of_statistics_have_labels(as_it_is, dim):
    story = models.GMMMoE(dim, 2, 1)
    fit = as_it_is(story.model, story.guide, torch.randn(9, dim), torch.randn(9, 2))
    columns = [f"x{d}" for d in range(dim)]
    features = Features(fit, fit.data[0], names=tuple(columns))
    targets = Targets(fit, fit.data, x_names=tuple(columns))
    assert features.labels("mean", dim) == columns
    pairs = {1: [], 2: ["x0, x1"], 3: ["x0, x1", "x0, x2", "x1, x2"]}[dim]
    assert features.labels("correlation", len(pairs)) == pairs
    assert targets.labels("mean", 2) == ["y0", "y1"]
    assert targets.labels("correlation of scores with", 2 * dim) == [
        f"{y}, {x}" for y in ("y0", "y1") for x in columns
    ]
    assert targets.labels("mean log density", 1) == [""]
    assert targets.labels("my own", 5) == ["0", "1", "2", "3", "4"]


def test_a_story_without_components_has_one(fits):
    sample, component = Features(fits("vae"), fits("vae").data[0], names=("x0", "x1")).observed()
    assert component.tolist() == [0] * len(sample)


@pytest.mark.parametrize("dim", [100, 101])
def test_of_images_single_columns_are_not_compared_in_distribution(as_it_is, dim):
    story = models.VAE(dim, 1, hidden=(2,))
    fit = as_it_is(story.model, story.guide, torch.randn(9, dim))
    part = Features(fit, fit.data[0], names=("x",) * dim)
    for statistics in (part.statistics, part.statistics_of(0)):
        assert ("distance of distributions" in statistics) is (dim == 100)
        assert "mean" in statistics
