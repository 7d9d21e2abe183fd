"""ArviZ gets draws of the discrete story, log-likelihoods by hand, and names for all of it."""

import math
import re
import subprocess
import sys

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch.distributions import MultivariateNormal, Normal

import pyro_moe
from pyro_moe import DataError, Rows, SiteError, evaluation, models
from pyro_moe.criticism import to_arviz
from pyro_moe.criticism.inference_data import RESOLUTION, import_arviz

pytestmark = [
    pytest.mark.usefixtures("double"),
    pytest.mark.filterwarnings("ignore:The inplace keyword in DataFrame"),  # all ArviZ's
    pytest.mark.filterwarnings("ignore:Passing a dict or None as alias_mapping"),
    pytest.mark.filterwarnings("ignore:invalid value encountered in scalar divide"),
    pytest.mark.filterwarnings("ignore:Variables y in"),
    pytest.mark.filterwarnings("ignore:Estimated shape parameter of Pareto"),
]
N = 80
DRAWS = 160


@pytest.fixture(scope="module")
def az():
    """ArviZ, which draws into a backend without windows."""
    import matplotlib

    matplotlib.use("agg")
    return import_arviz()


def is_new(az):
    """Whether ArviZ is of version 1 or later, where functions have other names."""
    return not az.__version__.startswith("0.")


def groups(idata):
    """Names of the groups."""
    return idata.groups() if callable(idata.groups) else list(idata.children)


def elpd(az, idata):
    """The leave-one-out estimate, and the effective number of parameters."""
    loo = az.loo(idata)
    return (loo.elpd, loo.p) if is_new(az) else (loo.elpd_loo, loo.p_loo)


def plot_predictive(az, idata, group):
    """Data beside ten data sets of a group, ``"prior"`` or ``"posterior"``."""
    if is_new(az):
        az.plot_ppc_dist(idata, group=f"{group}_predictive", num_samples=10)
    else:
        az.plot_ppc(idata, group=group, num_pp_samples=10)


def values(idata, group, name):
    """Draws of a variable, the chains joined."""
    array = idata[group][name].to_numpy()
    return array.reshape(-1, *array.shape[2:])


def moments_agree(draws, mean, variance):
    """Whether draws (S, ...) have each mean, and all in all the variances, to five errors."""
    error = np.sqrt(variance / len(draws))
    squared = ((draws - mean) ** 2).reshape(len(draws), -1).sum(1)
    expected = np.broadcast_to(variance, draws.shape[1:]).sum()
    return bool(
        (abs(draws.mean(0) - mean) <= 5 * error + 1e-9).all()
        and abs(squared.mean() - expected) <= 5 * squared.std() / len(draws) ** 0.5 + 1e-9
    )


# Groups, dimensions, coordinates


def test_a_story_of_x_has_its_groups_and_dimensions(fits):
    idata = to_arviz(fits("vade"), num_draws=16)
    row, chains = ("row",), ("chain", "draw")
    dims = {
        group: {name: array.dims for name, array in idata[group].data_vars.items()}
        for group in groups(idata)
    }
    assert dims == {
        "posterior": {"c": (*chains, *row), "z": (*chains, "row", "latent")},
        "posterior_predictive": {"x": (*chains, "row", "feature")},
        "prior_predictive": {"x": (*chains, "row", "feature")},
        "log_likelihood": {"x": (*chains, *row)},
        "observed_data": {"x": ("row", "feature")},
    }
    assert dict(idata.posterior.sizes) == {"chain": 4, "draw": 4, "row": N, "latent": 2}
    np.testing.assert_array_equal(idata.observed_data["x"], fits("vade").data[0])


@pytest.mark.parametrize(
    ("name", "of_row"),
    [("me", ()), ("me, two targets", ("target",)), ("me, classes", ()), ("me, counts", ())],
)
def test_a_story_of_y_has_its_groups_and_dimensions(fits, name, of_row):
    fit = fits(name)
    idata = to_arviz(fit, num_draws=8)
    assert idata.posterior_predictive["y"].dims == ("chain", "draw", "row", *of_row)
    assert idata.prior_predictive["y"].dims == ("chain", "draw", "row", *of_row)
    assert idata.log_likelihood["y"].dims == ("chain", "draw", "row")
    x, y = fit.data
    np.testing.assert_array_equal(idata.constant_data["x"], x)
    observed = idata.observed_data["y"]
    assert observed.dims == ("row", *of_row)
    np.testing.assert_array_equal(observed, y.squeeze(-1) if y.dim() == 2 and not of_row else y)


def test_columns_have_their_names():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(20, 2, generator=generator)
    frame = pd.DataFrame(x.numpy(), columns=["age", "weight"])
    y = torch.cat([x, x.sum(-1, keepdim=True)], -1)[:, 1:]
    story = models.ME(2, 2, 1)
    fit = pyro_moe.fit(
        story.model, story.guide, (frame, y), loss="em", epochs=2, prior="none", progress=False
    )
    rows = Rows(x, y, columns=("age", "weight"), targets=("price", "cost"))
    idata = to_arviz(fit, rows, num_draws=8)
    assert idata.constant_data["feature"].to_numpy().tolist() == ["age", "weight"]
    for group in ("posterior_predictive", "observed_data"):
        assert idata[group]["target"].to_numpy().tolist() == ["price", "cost"]
    assert to_arviz(fit, num_draws=8).observed_data["target"].to_numpy().tolist() == [0, 1]


def test_sites_of_ones_own_have_dimensions_of_their_own(as_it_is):
    fit = as_it_is(shared_mean, posterior_of_mean, torch.zeros(7, 2))
    posterior = to_arviz(fit, num_draws=8).posterior
    assert posterior["m"].dims == ("chain", "draw", "m_dim_0")
    assert posterior["m"].sizes["m_dim_0"] == 2


def test_rows_without_a_target_are_left_out(fits, data):
    fit, (x, y) = fits("me, missing targets"), data["missing"]
    known = ~y.isnan().flatten()
    idata = to_arviz(fit, num_draws=8)
    np.testing.assert_array_equal(idata.observed_data["y"], y[known].squeeze(-1))
    np.testing.assert_array_equal(idata.constant_data["x"], x[known])
    assert all(idata[group].sizes["row"] == known.sum() for group in groups(idata))


def test_the_seed_decides(fits):
    first, again, other = (to_arviz(fits("me"), num_draws=8, seed=seed) for seed in (0, 0, 1))
    for group in groups(first):
        assert first[group].equals(again[group])
    for group in ("posterior_predictive", "prior_predictive"):
        assert not first[group].equals(other[group])


# Log-likelihoods


def normals_by_hand(fit, x, y):
    experts = fit.story.experts(x)
    normal = Normal(experts.mean.squeeze(-1), experts.variance.sqrt().squeeze(-1))
    return (normal.log_prob(y) + fit.story.gate(x).probs.log()).logsumexp(-1).detach()


def test_of_targets_the_assignment_is_summed_out(fits):
    fit = fits("me")
    found = values(to_arviz(fit, num_draws=40), "log_likelihood", "y")
    expected = normals_by_hand(fit, *fit.data).numpy()
    np.testing.assert_allclose(found.mean(0), expected, rtol=0, atol=1e-10)
    assert abs(found - expected).max() <= RESOLUTION + 1e-12
    assert (np.unique(found, axis=0).shape[0], found.std(0).min() > 0) == (40, True)


def test_of_features_the_assignment_is_summed_out(fits):
    fit = fits("gmm")
    found = values(to_arviz(fit, num_draws=40), "log_likelihood", "x")
    mixture, x = fit.story.mixture, fit.data[0]
    p = mixture.normals
    each = p.log_prob(x.unsqueeze(1)) + mixture.logits.log_softmax(-1)
    np.testing.assert_allclose(found.mean(0), each.logsumexp(-1).detach(), rtol=0, atol=1e-10)


def test_of_features_with_a_code_it_is_averaged_by_importance_weights(as_it_is):
    weight = torch.tensor([[1.0, -0.5]])

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z @ weight, 0.5).to_event(1), obs=x)

    def guide(x):
        precision = 1 + weight.square().sum() / 0.25
        with pyro.plate("data", len(x)):
            loc = x @ weight.T / 0.25 / precision
            pyro.sample("z", dist.Normal(loc, 1.2 * precision**-0.5).to_event(1))

    x = torch.randn(30, 2)
    found = values(to_arviz(as_it_is(model, guide, x), num_draws=8), "log_likelihood", "x")
    exact = MultivariateNormal(torch.zeros(2), weight.T @ weight + 0.25 * torch.eye(2))
    np.testing.assert_allclose(found.mean(0), exact.log_prob(x), rtol=0, atol=0.1)
    assert found.mean() == pytest.approx(exact.log_prob(x).mean().item(), abs=0.01)


def test_of_experts_with_a_posterior_it_is_that_of_each_draw(fits):
    """Averaged, it is the density that is predicted; draws differ by what they leave open."""
    fit = fits("bayesian")
    x, y = fit.data
    found = torch.as_tensor(values(to_arviz(fit, num_draws=16, seed=3), "log_likelihood", "y"))
    prediction = evaluation.predict(fit, x, num_samples=16, seed=3)
    averaged = found.logsumexp(0) - math.log(16)
    torch.testing.assert_close(averaged, prediction.log_prob(y), rtol=1e-9, atol=1e-9)
    assert (found.std(0) > 100 * RESOLUTION).all()


def shared_mean(x):
    m = pyro.sample("m", dist.Normal(torch.tensor([100.0, -100.0]), 1.0).to_event(1))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(m, 0.5).to_event(1), obs=x)


def posterior_of_mean(x):
    pyro.sample("m", dist.Normal(torch.tensor([5.0, 0.0]), 2.0).to_event(1))


def test_of_features_whose_parameters_have_a_posterior_it_is_that_of_each_draw(as_it_is):
    """log p(x|m) is quadratic in x: the m of a draw is read off three rows."""
    x = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [3.0, -2.0]])
    fit = as_it_is(shared_mean, posterior_of_mean, x)
    found = values(to_arviz(fit, num_draws=DRAWS), "log_likelihood", "x")
    m = (found[:, 1:3] - found[:, :1]) * 0.25 + 0.5
    expected = Normal(torch.as_tensor(m).unsqueeze(1), 0.5).log_prob(x).sum(-1)
    np.testing.assert_allclose(found, expected, rtol=1e-8)
    assert moments_agree(m, np.array([5.0, 0.0]), np.array([4.0, 4.0]))


# Draws


def test_assignments_are_discrete_and_as_probable_as_the_guide_says(fits):
    """Of x alone by the gate; beside a target by the posterior given both."""
    fit = fits("gmm")
    drawn = values(to_arviz(fit, num_draws=DRAWS), "posterior", "c")
    assert set(np.unique(drawn)) <= {0, 1}
    assert np.issubdtype(drawn.dtype, np.integer)
    g = evaluation.gate(fit, fit.data[0])[:, 1].numpy()
    assert moments_agree(drawn, g, g * (1 - g))

    fit = fits("me, student-t")
    x, y = fit.data
    story = fit.story
    with torch.no_grad():
        logits = story.gate(x).logits + story.target_log_likelihoods(x, y)
    posterior = logits.softmax(-1)[:, 1].numpy()
    assert abs(posterior - story.gate(x).probs[:, 1].numpy(force=True)).max() > 0.2
    drawn = values(to_arviz(fit, num_draws=DRAWS), "posterior", "c")
    assert moments_agree(drawn, posterior, posterior * (1 - posterior))


def test_codes_are_draws_of_the_guide(fits):
    fit = fits("vade")
    drawn = values(to_arviz(fit, num_draws=DRAWS), "posterior", "z")
    posterior = fit.story.encoder(fit.data[0])
    assert moments_agree(
        drawn, posterior.mean.numpy(force=True), posterior.variance.numpy(force=True)
    )


def test_a_code_that_depends_on_the_assignment_is_that_of_the_one_drawn(as_it_is):
    def model(x):
        with pyro.plate("data", len(x)):
            c = pyro.sample("c", dist.OneHotCategorical(torch.tensor([0.5, 0.5])))
            loc = 10.0 * c[..., 1:]
            z = pyro.sample("z", dist.Normal(loc, 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            c = pyro.sample("c", dist.OneHotCategorical(torch.tensor([0.5, 0.5])))
            loc = (10.0 * c[..., 1:]).expand(*c.shape[:-2], len(x), 1)
            pyro.sample("z", dist.Normal(loc, 1.0).to_event(1))

    idata = to_arviz(as_it_is(model, guide, torch.zeros(6, 1)), num_draws=DRAWS)
    c, z = (values(idata, "posterior", name) for name in "cz")
    assert z.shape == (DRAWS, 6, 1)
    assert moments_agree((z[..., 0] - 10.0 * c).reshape(-1, 1), np.zeros(1), np.ones(1))


@pytest.mark.parametrize("name", ["me", "me, two targets", "me, counts", "gmmmoe", "bayesian"])
def test_replicated_targets_have_the_moments_of_the_prediction(fits, name):
    fit = fits(name)
    prediction = evaluation.predict(fit, fit.data[0], num_samples=DRAWS)
    drawn = values(to_arviz(fit, num_draws=DRAWS), "posterior_predictive", "y")
    drawn = drawn.reshape(DRAWS, N, -1)
    assert moments_agree(drawn, prediction.mean.numpy(), prediction.variance.numpy())


@pytest.mark.parametrize(("name", "top"), [("me, counts", None), ("me, classes", 2)])
def test_replicated_counts_and_classes_are_whole(fits, name, top):
    idata = to_arviz(fits(name), num_draws=40)
    for group in ("posterior_predictive", "prior_predictive"):
        drawn = values(idata, group, "y")
        assert (drawn == drawn.round()).all()
        assert drawn.min() == 0
        assert top is None or drawn.max() == top


def test_replicated_features_are_those_of_the_discrete_story(as_it_is):
    """Two clusters a hundred apart: a relaxed assignment would lie between them."""
    story = models.GMM(1, 2)
    with torch.no_grad():
        story.mixture.loc.copy_(torch.tensor([[-50.0], [50.0]]))
    fit = as_it_is(story.model, story.guide, torch.randn(50, 1))
    idata = to_arviz(fit, num_draws=DRAWS)
    for group in ("posterior_predictive", "prior_predictive"):
        drawn = values(idata, group, "x")
        assert (abs(abs(drawn) - 50) < 10).all()
        assert moments_agree((drawn > 0).reshape(-1, 1), np.array([0.5]), np.array([0.25]))


def test_what_rows_share_has_its_prior_and_its_posterior(as_it_is):
    fit = as_it_is(shared_mean, posterior_of_mean, torch.zeros(7, 2))
    idata = to_arviz(fit, num_draws=DRAWS)
    drawn = values(idata, "posterior", "m")
    assert moments_agree(drawn, np.array([5.0, 0.0]), np.array([4.0, 4.0]))
    replicated = values(idata, "posterior_predictive", "x")
    assert moments_agree(replicated, np.array([5.0, 0.0]), np.array([4.25, 4.25]))
    between = replicated.mean(1).var(0)
    np.testing.assert_allclose(between, 4.0 + 0.25 / 7, rtol=5 * (2 / DRAWS) ** 0.5)
    prior = values(idata, "prior_predictive", "x")
    assert moments_agree(prior, np.array([100.0, -100.0]), np.array([1.25, 1.25]))


# One column


def test_of_one_column_of_a_mixture_it_is_its_marginal(fits):
    fit = fits("gmm")
    (x,) = fit.data
    idata = to_arviz(fit, num_draws=8, column=1)
    mixture = fit.story.mixture
    components = mixture.normals
    marginal = dist.Normal(components.loc[:, 1], components.covariance_matrix[:, 1, 1].sqrt())
    each = marginal.log_prob(x[:, 1:]) + mixture.logits.log_softmax(-1)
    expected = each.logsumexp(-1).detach().numpy()
    found = values(idata, "log_likelihood", "x")
    np.testing.assert_allclose(found.mean(0), expected, atol=1e-9)
    assert idata.observed_data["x"].dims == ("row",)
    assert idata.posterior_predictive["x"].dims == ("chain", "draw", "row")
    np.testing.assert_array_equal(idata.observed_data["x"], x[:, 1])


def test_of_one_target_it_is_the_marginal_of_its_experts(fits):
    fit = fits("me, two targets")
    x, y = fit.data
    idata = to_arviz(fit, num_draws=8, column=0)
    story = fit.story
    experts = story.experts(x).base_dist
    each = dist.Normal(experts.loc[..., 0], experts.scale[..., 0]).log_prob(y[:, :1])
    expected = (each + story.gate(x).logits.log_softmax(-1)).logsumexp(-1).detach().numpy()
    found = values(idata, "log_likelihood", "y")
    np.testing.assert_allclose(found.mean(0), expected, atol=1e-9)
    np.testing.assert_array_equal(idata.observed_data["y"], y[:, 0])


def test_of_one_column_of_a_linear_story_it_is_a_normal(as_it_is):
    """x = W z + e, within five standard errors of the average over draws of z."""
    weight = torch.tensor([[1.0, 0.5], [-2.0, 1.0]])

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z @ weight.T, 0.7).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x @ weight / 5, 0.1).to_event(1))

    x = torch.tensor([[0.0, 0.0], [1.0, -1.0], [0.5, 2.0]])
    found = values(
        to_arviz(as_it_is(model, guide, x), num_draws=8, column=0), "log_likelihood", "x"
    )
    mean = x[:, 0]
    expected = dist.Normal(0.0, (1.25 + 0.49) ** 0.5).log_prob(mean).exp()
    # E p(x|z)^2 = N(x; 0, v + s^2 / 2) / (2 s sqrt(pi)), with v and s^2 the variances of W z and e
    second = dist.Normal(0.0, (1.25 + 0.245) ** 0.5).log_prob(mean).exp() / (1.4 * math.pi**0.5)
    error = ((second - expected**2) / 256).sqrt()
    assert ((torch.as_tensor(found.mean(0)).exp() - expected).abs() < 5 * error).all()


@pytest.mark.parametrize("column", [2, -1, "height"])
def test_a_column_that_is_not_there_is_named(clusters_with_names, column):
    fit, rows = clusters_with_names
    message = rf"expected a column in \[0, 1, 'age', 'weight'\]; got {column!r}"
    with pytest.raises(ValueError, match=message):
        to_arviz(fit, rows, num_draws=8, column=column)


def test_a_column_may_be_given_by_its_name(clusters_with_names):
    fit, rows = clusters_with_names
    by_name, by_number = (to_arviz(fit, rows, num_draws=8, column=c) for c in ("weight", 1))
    np.testing.assert_array_equal(
        values(by_name, "log_likelihood", "x"), values(by_number, "log_likelihood", "x")
    )


@pytest.fixture
def clusters_with_names(fits):
    fit = fits("gmm")
    return fit, Rows(fit.data[0], columns=("age", "weight"))


# ArviZ at work


def test_arviz_works_on_every_story(fits, az, story):
    fit = fits(story)
    idata = to_arviz(fit, num_draws=40)
    name = "y" if len(fit.data) > 1 else "x"
    estimate, p = elpd(az, idata)
    draws = values(idata, "log_likelihood", name)
    pointwise = np.logaddexp.reduce(draws, axis=0) - math.log(len(draws))
    assert np.isfinite(estimate)
    assert estimate <= pointwise.sum() + 1e-3
    if not story.startswith("bayesian"):  # parameters are points, nothing is left out
        assert estimate == pytest.approx(pointwise.sum(), abs=1e-3)
        assert p == pytest.approx(0.0, abs=1e-3)
    summary = az.summary(idata, var_names=list(idata.posterior.data_vars)[:1])
    assert len(summary) == idata.posterior[next(iter(idata.posterior.data_vars))][0, 0].size
    assert az.compare({"one": idata, "other": idata})["elpd_diff"].tolist() == [0.0, 0.0]
    plt = sys.modules["matplotlib.pyplot"]
    for group in ("posterior", "prior"):
        plt.close("all")
        plot_predictive(az, idata, group)
        assert len(plt.get_fignums()) == 1
    plt.close("all")


def test_arviz_has_a_loo_transform_of_every_story(fits, az, story):
    """Of one column, where there are several: for more, and of classes, ArviZ has none."""
    fit = fits(story)
    size = fit.data[-1][0].numel()
    idata = to_arviz(fit, num_draws=40, column=None if size == 1 else 1)
    plt = sys.modules["matplotlib.pyplot"]
    plt.close("all")
    name = "y" if len(fit.data) > 1 else "x"
    az.plot_loo_pit(idata, **({} if is_new(az) else {"y": name}))
    assert len(plt.get_fignums()) == 1
    plt.close("all")


def test_comparison_in_arviz_is_by_the_log_densities(fits, az):
    """Rows of a better and a worse story, whose parameters are points."""
    fit = fits("me")
    worse = fits("me, student-t")
    table = az.compare(
        {name: to_arviz(f, num_draws=40) for name, f in (("worse", worse), ("better", fit))},
        **({"round_to": "none"} if is_new(az) else {}),
    )
    x, y = fit.data
    expected = {
        name: evaluation.predict(f, x).log_prob(y).sum().item()
        for name, f in (("better", fit), ("worse", worse))
    }
    assert table.index.tolist() == sorted(expected, key=lambda name: -expected[name])
    for name, value in expected.items():
        column = "elpd" if is_new(az) else "elpd_loo"
        assert table.loc[name, column] == pytest.approx(value, abs=1e-3)


# What cannot be


@pytest.mark.parametrize("number", [0, 4, 12, -8])
def test_draws_come_in_eights(fits, number):
    message = f"^expected num_draws to be a multiple of 8; got {number}$"
    with pytest.raises(ValueError, match=message):
        to_arviz(fits("me"), num_draws=number)


def test_more_numbers_than_fit_are_an_error(fits):
    message = (
        "expected rows and draws of at most 250,000,000 numbers in all; "
        "got 480,000,000: use fewer rows or draws"
    )
    with pytest.raises(DataError, match=f"^{re.escape(message)}$"):
        to_arviz(fits("me"), num_draws=1_000_000)


def test_a_story_without_x_and_y_is_told_so(as_it_is):
    def model(rows):
        with pyro.plate("data", len(rows)):
            pyro.sample("rows", dist.Normal(0.0, 1.0).expand([2]).to_event(1), obs=rows)

    fit = as_it_is(model, lambda rows: None, torch.randn(5, 2))
    message = r"^expected an observed site 'y' or 'x' in the model; got \['rows'\]$"
    with pytest.raises(SiteError, match=message):
        to_arviz(fit, num_draws=8)


def test_arviz_is_imported_only_when_it_is_asked_for():
    code = """import sys, pyro_moe.cli.fit, pyro_moe.criticism
print(*sorted({'arviz', 'xarray'} & set(sys.modules)))"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)  # noqa: S603
    assert run.stdout == "\n"
