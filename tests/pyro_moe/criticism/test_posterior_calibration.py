"""Guides that are the posterior pass, and each way to be wrong is found."""

import re
from dataclasses import replace
from functools import partial

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy import stats

import pyro_moe
from pyro_moe import DataError, SiteError
from pyro_moe.criticism import SimulationBasedCalibration
from pyro_moe.criticism.posterior_calibration import calibrating, quantities, uniformity
from pyro_moe.criticism.posterior_calibration.calibrating import _ranks
from pyro_moe.models import ME, BayesianExperts

pytestmark = pytest.mark.usefixtures("double")
N = 4
X = torch.zeros(N, 1, dtype=torch.float64)
AS_IT_IS = {"epochs": 0, "prior": "none", "progress": False}
LOC = {"quantities": {"loc": lambda values, data: values["loc"]}}
calibrate = calibrating.simulation_based_calibration


def model(x):
    loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(loc, 1.0).expand([1]).to_event(1), obs=x)


def posterior(x, *, prior_scale=1.0, widened=1.0, moved=0.0):
    """The posterior under another prior, too wide, or too large by some standard deviations."""
    precision = prior_scale**-2 + len(x)
    scale = precision**-0.5
    pyro.sample("loc", dist.Normal(x.sum() / precision + moved * scale, widened * scale))


def calibrated(guide, num_simulations=100, num_draws=19, **options):
    options |= {"num_simulations": num_simulations, "num_draws": num_draws, **AS_IT_IS}
    return calibrate(model, guide, X, **options)


# Ranks


def test_ranks_count_the_draws_below():
    for loc, rank in ((-50.0, 9), (50.0, 0)):
        far = calibrated(lambda x, loc=loc: pyro.sample("loc", dist.Normal(loc, 1.0)), 3, 9)
        assert (far.ranks["loc"] == rank).all()
    assert far.ranks.shape == (3, 2)


def test_ranks_by_hand_with_ties_at_random():
    draws = np.array([[2.0, 7.0], [1.0, 7.0], [3.0, 7.0], [2.5, 7.0], [0.0, 7.0]])
    values = np.vstack([[2.2, 7.0], draws])
    ranks = np.array([_ranks(values, seed) for seed in range(600)])
    assert (ranks[:, 0] == 3).all()
    assert uniformity.p_value(ranks[:, 1], 5) > 0.01


def test_quantities_see_the_simulated_values_and_data():
    """Of 50 rows the mean is within 6 / √50 of the true value, and draws here are further off."""
    x = torch.zeros(50, 1)
    seen = []

    def distance(values, data):
        seen.append((data[0].mean() - values["loc"]).item())
        return abs(seen[-1])

    calibration = calibrate(
        model,
        partial(posterior, moved=40.0),
        x,
        quantities={"distance": distance},
        num_simulations=2,
        num_draws=4,
        **AS_IT_IS,
    )
    assert list(calibration.ranks.columns) == ["distance"]
    assert (calibration.ranks["distance"] == 0).all()
    distances = np.abs(seen).reshape(2, 5)
    assert (distances[:, 0] < 6 / 50**0.5).all()
    assert (distances[:, 1:] > 30 / 50**0.5).all()


def test_the_log_likelihood_sums_over_components():
    def mixture(x):
        loc = pyro.sample("loc", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        with pyro.plate("data", len(x)):
            c = pyro.sample("c", dist.OneHotCategorical(torch.tensor([0.3, 0.7])))
            pyro.sample("x", dist.Normal((c @ loc).unsqueeze(-1), 0.5).to_event(1), obs=x)

    def prior(x):
        pyro.sample("loc", dist.Normal(torch.zeros(2), 1.0).to_event(1))

    given = pyro_moe.fit(mixture, prior, X, initialize="keep", **AS_IT_IS)
    found = quantities.default_quantities(given)
    assert list(found) == ["loc[0]", "loc[1]", "log_likelihood"]
    loc, x = torch.tensor([0.2, -1.0]), torch.randn(5, 1)
    each = stats.norm.pdf(x.numpy(), loc.numpy(), 0.5) @ [0.3, 0.7]
    value = found["log_likelihood"]({"loc": loc}, (x,))
    assert value.item() == pytest.approx(np.log(each).sum(), rel=1e-12)
    assert found["loc[1]"]({"loc": loc}, (x,)) == -1.0


def test_same_seed_same_ranks():
    first, again, other = (calibrated(posterior, 5, 9, seed=seed).ranks for seed in (3, 3, 4))
    pd.testing.assert_frame_equal(first, again)
    assert not first.equals(other)


# What is right passes, what is wrong does not


def test_the_posterior_is_calibrated():
    calibration = calibrated(posterior)
    assert (calibration.p_values > 0.01).all()
    table = calibration.coverage()
    assert (
        (table["coverage"] - table.index.get_level_values("level")).abs()
        < 3.5 * table["standard_error"]
    ).all()


@pytest.mark.parametrize("wrong", [{"moved": 0.8}, {"prior_scale": 0.4}], ids=str)
def test_a_wrong_posterior_is_found(wrong):
    assert calibrated(partial(posterior, **wrong), **LOC).p_value < 1e-3


@pytest.mark.parametrize("widened", [0.5, 2.0])
def test_a_posterior_of_wrong_width_is_found_and_covers_what_theory_says(widened):
    """In standard deviations the true value is z ~ N(0, 1), and below it is Φ(z / w) of q."""
    calibration = calibrated(partial(posterior, widened=widened), **LOC)
    assert calibration.p_value < 1e-3
    z = np.linspace(-8, 8, 4001)
    for (_, level), row in calibration.coverage().iterrows():
        outside = round((1 - level) / 2 * 20)
        ranks = stats.binom(19, stats.norm.cdf(z / widened))
        within = ranks.cdf(19 - outside) - ranks.cdf(outside - 1)
        expected = np.trapezoid(within * stats.norm.pdf(z), z)
        assert abs(expected - level) > 0.04
        assert abs(row["coverage"] - expected) < 3.5 * (expected * (1 - expected) / 100) ** 0.5


def test_only_a_quantity_of_the_data_finds_a_guide_that_ignores_them():
    """Modrák et al. 2023: ranks of what is drawn from the prior are uniform."""
    p_values = calibrated(lambda x: pyro.sample("loc", dist.Normal(0.0, 1.0))).p_values
    assert p_values["loc"] > 0.01
    assert p_values["log_likelihood"] < 1e-6


@pytest.mark.parametrize(("shift", "passes"), [(0.0, True), (2.0, False)])
def test_a_mean_field_posterior_is_right_on_an_orthogonal_design_only(shift, passes):
    """Of a linear regression: the product of normals that is nearest to the posterior."""
    x = torch.linspace(-1.5, 1.5, 10).unsqueeze(-1) + shift

    def regression(x, y=None):
        w = pyro.sample("w", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(x * w[0] + w[1], 0.5).to_event(1), obs=y)

    def mean_field(x, y=None):
        u = torch.cat([x, torch.ones_like(x)], 1)
        precision = u.T @ u / 0.25 + torch.eye(2)
        mean = torch.linalg.solve(precision, u.T @ y.squeeze(-1) / 0.25)
        pyro.sample("w", dist.Normal(mean, precision.diagonal() ** -0.5).to_event(1))

    options = {"num_simulations": 100, "num_draws": 19, **AS_IT_IS}
    calibration = calibrate(regression, mean_field, (x, torch.zeros(10, 1)), **options)
    assert list(calibration.ranks) == ["w[0]", "w[1]", "log_likelihood"]
    assert calibration.p_value > 0.01 if passes else calibration.p_value < 1e-4


# What is learned


def learning(x):
    """A guide that starts at a wrong place."""
    loc, log_scale = pyro.param("loc.mean", X.new_tensor(1.0)), pyro.param("s", X.new_tensor(-0.8))
    pyro.sample("loc", dist.Normal(loc, log_scale.exp()))


def test_the_guide_is_fitted_to_each_simulation():
    options = {"num_simulations": 12, "num_draws": 19, "prior": "none", "progress": False, **LOC}
    assert calibrate(model, learning, X, epochs=0, **options).p_value < 1e-4
    assert calibrate(model, learning, X, epochs=60, learning_rate=0.1, **options).p_value > 0.01


@pytest.fixture
def fits(monkeypatch):
    """The fits that are made."""
    made = []

    def spy(*arguments, **options):
        made.append(pyro_moe.fit(*arguments, **options))
        return made[-1]

    monkeypatch.setattr(calibrating, "fit", spy)
    return made


@pytest.mark.filterwarnings("ignore:expected at least:pyro_moe.EmptyComponentWarning")
def test_parameters_of_the_model_are_held(fits, scatter):
    story = scatter(BayesianExperts(ME(1, 1, 2)))
    before = {name: p.clone() for name, p in story.named_parameters()}
    data = (torch.randn(12, 1), torch.zeros(12, 1))
    options = {
        "num_simulations": 2,
        "num_draws": 1,
        "epochs": 2,
        "prior": "none",
        "progress": False,
    }
    calibrate(story.model, story.guide, data, **options)
    assert len(fits) == 3
    for fit in fits[1:]:
        assert torch.equal(fit.data[0], data[0])
        assert fit.data[1].std() > 0  # simulated
        for name, p in fit.story.named_parameters():
            assert torch.equal(p, before[name]) == ("gate" in name), name
    for name, p in story.named_parameters():
        assert torch.equal(p, before[name])
        assert p.requires_grad


def test_a_parameter_that_cannot_be_held_is_an_error():
    def learned(x):
        scale = pyro.param("noise", torch.tensor(1.0), dist.constraints.positive)
        loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(loc, scale).expand([1]).to_event(1), obs=x)

    message = (
        "expected a model whose parameters have a prior or belong to a module, where they can be "
        "held fixed; got pyro.param 'noise'"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        calibrate(learned, posterior, X, **AS_IT_IS)


# What it tells


def result(ranks, num_draws=9):
    return SimulationBasedCalibration(pd.DataFrame({"a": ranks}), num_draws)


def test_coverage_counts_ranks_between():
    """Nine draws: the interval without one at either end has 80 %, without two 60 %."""
    table = result([0, 1, 2, 5, 9]).coverage([0.6, 0.8, 0.82, 0.99])
    assert list(table.index.get_level_values("level")) == pytest.approx([0.6, 0.8])
    assert list(table["coverage"]) == [0.4, 0.6]
    assert list(table["standard_error"]) == pytest.approx([(0.24 / 5) ** 0.5, (0.16 / 5) ** 0.5])
    with pytest.raises(ValueError, match="expected levels between 0 and 1; got 95"):
        result([0]).coverage([95])


def test_the_picture_shows_ranks_in_their_band():
    ranks = [0, 0, 1, 7]
    figure = result(ranks).plot(level=0.9)
    (axes,) = figure.axes
    line = axes.lines[-1].get_xydata()
    points = np.arange(1, 10) / 10
    shares = np.array([2, 3, 3, 3, 3, 3, 3, 4, 4]) / 4
    np.testing.assert_allclose(line, np.stack([points, shares - points], 1))
    low, high = uniformity.band(4, 9, 0.9)
    (band,) = axes.collections
    corners = band.get_paths()[0].vertices
    for bound in (low / 4 - points, high / 4 - points):
        for corner in np.stack([points, bound], 1):
            assert np.isclose(corners, corner).all(1).any()
    assert axes.get_title() == f"a (p = {uniformity.p_value(ranks, 9):.2g})"


def without_latent(x):
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(0.0, 1.0).expand([1]).to_event(1), obs=x)


def without_data(x):
    pyro.sample("loc", dist.Normal(0.0, 1.0))


@pytest.mark.parametrize(
    ("programs", "options", "error", "message"),
    [
        ((without_latent, posterior), {}, SiteError, "outside the plate 'data'; got sites ['x']"),
        ((without_data, posterior), {}, SiteError, "a site 'y' in the model; got sites ['loc']"),
        ((model, without_latent), {}, SiteError, "'loc' in the guide; got sites ['x']"),
        ((model, posterior), {"num_draws": 0}, ValueError, "num_draws of at least 1; got 0"),
        ((model, posterior), {"num_simulations": 0}, ValueError, "num_simulations of at least 1"),
        ((model, posterior), {"initialize": "random"}, ValueError, "initialize='keep', which"),
        ((model, posterior), {"initialize": X}, ValueError, "got responsibilities"),
        (
            (model, posterior),
            {"quantities": {"f": lambda values, data: float("nan")}},
            DataError,
            "expected finite 'f'; got nan in simulation 0",
        ),
    ],
)
def test_what_cannot_be_calibrated_is_an_error(programs, options, error, message):
    with pytest.raises(error, match=re.escape(message)):
        calibrate(*programs, X, **AS_IT_IS, **options)


def test_an_interruption_ends_it(monkeypatch):
    def interrupted(*arguments, **options):
        return replace(pyro_moe.fit(*arguments, **options), stopped="interrupted")

    monkeypatch.setattr(calibrating, "fit", interrupted)
    with pytest.raises(KeyboardInterrupt):
        calibrated(posterior)
