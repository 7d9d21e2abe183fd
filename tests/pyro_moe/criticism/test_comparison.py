"""Fits are compared by log densities of held-out rows, pair by pair; LOO where it is valid."""

import math
import re
from dataclasses import replace

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch.distributions import MultivariateNormal, Normal

from pyro_moe import DataError, SiteError, models
from pyro_moe.criticism import compare
from pyro_moe.models import Mixture, observe_target

pytestmark = [
    pytest.mark.usefixtures("double"),
    pytest.mark.filterwarnings("ignore:Estimated shape parameter of Pareto:UserWarning"),
]
N, NOISE, WIDTH = 60, 0.5, 2.0


@pytest.fixture
def gmms(as_it_is, scatter):
    def make(number):
        story = scatter(models.GMM(2, number), scale=0.5)
        return as_it_is(story.model, story.guide, torch.randn(20, 2))

    return {f"K={k}": make(k) for k in (1, 3)}


@pytest.fixture
def mes(as_it_is, scatter):
    def make(number):
        story = scatter(models.ME(2, 1, number), scale=0.5)
        return as_it_is(story.model, story.guide, torch.randn(20, 2), torch.randn(20, 1))

    return {f"K={k}": make(k) for k in (1, 2)}


def density_of_mixture(fit, x):
    mixture = fit.story.mixture
    p = MultivariateNormal(mixture.loc, scale_tril=mixture.scale_tril)
    each = p.log_prob(x.unsqueeze(1)) + mixture.logits.log_softmax(-1)
    return each.logsumexp(-1).numpy(force=True)


def density_of_experts(fit, x, y):
    experts = fit.story.experts(x)
    normal = Normal(experts.mean.squeeze(-1), experts.variance.sqrt().squeeze(-1))
    each = normal.log_prob(y) + fit.story.gate(x).probs.log()
    return each.logsumexp(-1).numpy(force=True)


def compared_by_hand(densities):
    """Rows of the table, from each fit's log densities."""
    best = max(densities, key=lambda name: densities[name].mean())
    root = math.sqrt(len(densities[best]))
    rows = {
        name: [
            each.mean(),
            each.std(ddof=1) / root,
            (each - densities[best]).mean(),
            (each - densities[best]).std(ddof=1) / root,
        ]
        for name, each in densities.items()
    }
    order = sorted(rows, key=lambda name: -rows[name][0])
    return order, np.array([rows[name] for name in order])


COLUMNS = ["log_density", "standard_error", "difference", "difference_standard_error"]


def test_without_a_target_densities_are_those_of_x(gmms):
    x = torch.randn(50, 2)
    table = compare(gmms, x)
    order, expected = compared_by_hand({k: density_of_mixture(f, x) for k, f in gmms.items()})
    assert table.index.tolist() == order
    np.testing.assert_allclose(table[COLUMNS], expected, rtol=1e-9, atol=1e-12)


def test_with_a_target_densities_are_those_of_y_given_x(mes):
    x, y = torch.randn(50, 2), torch.randn(50, 1)
    table = compare(mes, (x, y))
    order, expected = compared_by_hand({k: density_of_experts(f, x, y) for k, f in mes.items()})
    assert table.index.tolist() == order
    np.testing.assert_allclose(table[COLUMNS], expected, rtol=1e-9, atol=1e-12)


def test_stories_of_x_and_y_are_compared_by_y_with_those_of_y_alone(mes, as_it_is, scatter):
    x, y = torch.randn(50, 2), torch.randn(50, 1)
    story = scatter(models.GMMMoE(2, 1, 2))
    both = as_it_is(story.model, story.guide, x, y)
    table = compare({"me": mes["K=2"], "both": both}, (x, y))
    expected = Mixture(story.mixture.responsibilities(x).logits, story.experts(x))
    assert table.loc["both", "log_density"] == pytest.approx(
        expected.log_prob(y).mean().item(), rel=1e-9
    )


def test_the_density_of_a_latent_code_is_the_importance_weighted_bound(as_it_is, scatter):
    """With as many draws as it takes; a linear-Gaussian story has a closed form."""
    weight = torch.tensor([[1.0, -0.5]])

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z @ weight, 0.5).to_event(1), obs=x)

    def guide(x):
        precision = 1 + weight.square().sum() / 0.25
        with pyro.plate("data", len(x)):
            loc = x @ weight.T / 0.25 / precision
            pyro.sample("z", dist.Normal(loc, 1.3 * precision**-0.5).to_event(1))

    x = torch.randn(30, 2)
    fit = as_it_is(model, guide, x)
    exact = MultivariateNormal(torch.zeros(2), weight.T @ weight + 0.25 * torch.eye(2))
    table = compare({"linear": fit}, x, num_samples=512)
    expected = exact.log_prob(x).mean().item()
    assert table["log_density"].item() == pytest.approx(expected, abs=5e-3)
    assert compare({"linear": fit}, x, num_samples=8)["log_density"].item() != pytest.approx(
        expected, abs=1e-6
    )


def test_rows_without_a_target_are_left_out(fits, data):
    fit, (x, y) = fits("me, missing targets"), data["missing"]
    known = ~y.isnan().flatten()
    pd.testing.assert_frame_equal(
        compare({"me": fit}, (x, y)), compare({"me": fit}, (x[known], y[known]))
    )


# Leave-one-out


class LinearRegression:
    """Known noise, a normal prior, and for a guide the exact posterior."""

    def __init__(self, x, y, offset=0.0):
        known = ~y.isnan()
        self.x, self.y = x[known], y[known]
        self.precision = self.x.T @ self.x / NOISE**2 + torch.eye(x.shape[1]) / WIDTH**2
        self.covariance = self.precision.inverse()
        self.mean = self.covariance @ (self.x.T @ self.y) / NOISE**2 + offset

    def model(self, x, y=None):
        prior = dist.Normal(torch.zeros(x.shape[1]), WIDTH).to_event(1)
        w = pyro.sample("w", prior)
        with pyro.plate("data", len(x)):
            observe_target(dist.Normal(x @ w, NOISE), y)

    def guide(self, x, y=None):
        pyro.sample("w", dist.MultivariateNormal(self.mean, self.covariance))

    def leave_one_out(self):
        """Log p(y_n | the other rows) of each row, in closed form."""
        densities = []
        for x, y in zip(self.x, self.y, strict=True):
            precision = self.precision - torch.outer(x, x) / NOISE**2
            covariance = precision.inverse()
            mean = covariance @ (self.x.T @ self.y - x * y) / NOISE**2
            scale = (x @ covariance @ x + NOISE**2).sqrt()
            densities.append(Normal(x @ mean, scale).log_prob(y))
        return torch.stack(densities)

    def in_sample(self):
        scale = ((self.x @ self.covariance * self.x).sum(-1) + NOISE**2).sqrt()
        return Normal(self.x @ self.mean, scale).log_prob(self.y)


@pytest.fixture
def regression_data():
    x = torch.randn(N, 4)
    return x, x @ torch.tensor([1.0, -2.0, 0.5, 0.0]) + NOISE * torch.randn(N)


def compared_regression(as_it_is, x, y, **options):
    story = LinearRegression(x, y)
    fit = as_it_is(story.model, story.guide, x, y, **options)
    return story, compare({"linear": fit}, (x, y)).loc["linear"]


def test_loo_of_an_exact_posterior_is_that_in_closed_form(as_it_is, regression_data):
    """Four hundred draws tell it from the density of rows that were fitted, 4 / N higher."""
    story, scores = compared_regression(as_it_is, *regression_data)
    exact = story.leave_one_out()
    gap = (story.in_sample() - exact).mean().item()
    assert gap == pytest.approx(4 / N, rel=0.5)
    assert scores["loo"] == pytest.approx(exact.mean().item(), abs=gap / 5)
    error = exact.std().item() / N**0.5
    assert scores["loo_standard_error"] == pytest.approx(error, rel=0.1)


def test_loo_of_rows_with_a_target_is_per_row_that_has_one(as_it_is, regression_data):
    x, y = regression_data
    y = torch.where(torch.arange(N) < 20, torch.nan, y)
    story, scores = compared_regression(as_it_is, x, y, missing_targets=True)
    expected = story.leave_one_out()
    gap = (story.in_sample() - expected).mean().item()
    assert scores["loo"] == pytest.approx(expected.mean().item(), abs=gap / 5)


def test_held_out_density_of_an_exact_posterior_is_its_predictive_density(
    as_it_is, regression_data
):
    x, y = regression_data
    story = LinearRegression(x[:40], y[:40])
    fit = as_it_is(story.model, story.guide, x[:40], y[:40])
    held = LinearRegression(x[:40], y[:40])
    held.x, held.y = x[40:], y[40:]
    table = compare({"linear": fit}, (x[40:], y[40:]), num_samples=800)
    assert table["log_density"].item() == pytest.approx(held.in_sample().mean().item(), abs=0.01)


@pytest.mark.parametrize("name", ["me", "bayesian", "gmm", "dvmoe"])
def test_loo_is_not_given_where_parameters_are_points(fits, name):
    """As are the gate of a story with Bayesian experts and every parameter of the others."""
    fit = fits(name)
    data = fit.data
    scores = compare({"it": fit}, data if len(data) > 1 else data[0], num_samples=8).loc["it"]
    assert math.isnan(scores["loo"])
    assert math.isnan(scores["loo_standard_error"])
    assert math.isfinite(scores["log_density"])


def test_loo_needs_the_training_rows(as_it_is, regression_data):
    """A fit of a run folder may have been restored with other rows."""
    x, y = regression_data
    story = LinearRegression(x[:40], y[:40])
    fit = as_it_is(story.model, story.guide, x[:40], y[:40])
    restored = replace(fit, data=(x[40:], y[40:]), restored=fit.training)
    table = compare({"fit": fit, "restored": restored}, (x[40:], y[40:]), num_samples=8)
    assert table["loo"].isna().to_dict() == {"fit": False, "restored": True}


# What cannot be compared


def test_no_fits_are_an_error():
    with pytest.raises(ValueError, match=r"^expected fits to compare; got none$"):
        compare({}, torch.zeros(3, 1))


def test_a_row_is_too_few(gmms):
    with pytest.raises(DataError, match=r"^expected at least 2 rows to compare fits on; got 1$"):
        compare(gmms, torch.zeros(1, 2))


def test_fits_of_other_sites_are_an_error(gmms, mes):
    message = (
        "expected fits that all have a site 'y', or all a site 'x'; got {'gmm': ['x'], 'me': ['y']}"
    )
    with pytest.raises(SiteError, match=f"^{re.escape(message)}$"):
        compare({"gmm": gmms["K=1"], "me": mes["K=1"]}, torch.zeros(5, 2))
