"""The coefficients of any fit are those of its story, with errors from its information."""

import numpy as np
import pandas as pd
import pytest
import torch

import pyro_moe
from pyro_moe import SiteError, models
from pyro_moe.fitting import with_fewer
from pyro_moe.inference.prior import Prior
from pyro_moe.mixtures.table import estimated

ML = {"prior": "none", "progress": False, "tolerance": 1e-9}


@pytest.fixture(scope="module")
def table():
    generator = np.random.default_rng(0)
    x = generator.normal(size=(150, 2)) * [1.0, 30.0] + [5.0, -200.0]
    c = generator.random(150) < 1 / (1 + np.exp(-0.08 * (x[:, 1] + 200.0)))
    y = np.where(c, 3.0 + x[:, 0], -1.0 - 2.0 * x[:, 0]) + generator.normal(size=150)
    return pd.DataFrame({"dose": x[:, 0], "age": x[:, 1], "y": y})


def me(table, number, **options):
    story = models.ME(2, 1, number).double()
    data = table[["dose", "age"]], table["y"]
    return pyro_moe.fit(story.model, story.guide, data, **options)


def test_one_component_has_the_errors_of_least_squares(table):
    found = me(table, 1, **ML).coefficients()
    x = np.column_stack([np.ones(150), table["dose"], table["age"]])
    y = table["y"].to_numpy()
    b = np.linalg.lstsq(x, y, rcond=None)[0]
    sigma = np.sqrt(np.square(y - x @ b).mean())
    errors = sigma * np.sqrt(np.diag(np.linalg.inv(x.T @ x)))
    np.testing.assert_allclose(found["estimate"], [*b, sigma], rtol=1e-5)
    np.testing.assert_allclose(found["standard_error"], [*errors, sigma / 300**0.5], rtol=1e-4)
    np.testing.assert_allclose(found["z"].iloc[:3], b / errors, rtol=1e-4)
    low, high = found["lower"], found["upper"]
    np.testing.assert_allclose((high - low).iloc[:3], 2 * 1.959964 * errors, rtol=1e-4)
    assert (low * high).iloc[3] == pytest.approx(sigma**2, rel=1e-5)  # on the scale of logarithms


def test_a_fit_by_maximum_likelihood_has_the_numbers_of_mixture(table):
    mixture = pyro_moe.mixture("y ~ dose + age | dose + age", table, num_components=2, order="dose")
    known = mixture.coefficients()
    np.testing.assert_array_equal(known["estimate"], mixture.params)
    np.testing.assert_array_equal(known["standard_error"], mixture.bse)
    found = me(table, 2, **ML).coefficients()
    if found["estimate"][0, "y", "dose"] > found["estimate"][1, "y", "dose"]:
        known = mixture.relabel([1, 0]).coefficients()
    for key in known.index:
        row = found.loc[key]
        assert row["estimate"] == pytest.approx(known.loc[key, "estimate"], rel=0.02, abs=0.02)
        assert row["standard_error"] == pytest.approx(known.loc[key, "standard_error"], rel=0.05)


def test_what_the_rows_do_not_determine_has_no_error():
    x = torch.linspace(-1, 1, 30).double().unsqueeze(-1)
    story = models.ME(1, 1, 1).double()
    fit = pyro_moe.fit(story.model, story.guide, (x, 3.0 * x), **ML)
    with np.errstate(all="ignore"):
        found = fit.coefficients()
    assert np.isnan(found.loc[(0, "y", "sigma"), "standard_error"])
    x = torch.cat([x, 2.0 * x], -1)
    y = x[:, :1] + torch.sin(40 * x[:, :1])
    story = models.ME(2, 1, 1).double()
    fit = pyro_moe.fit(story.model, story.guide, (x, y), **ML)
    found = fit.coefficients()["standard_error"]
    assert found.loc[(0, "y", ["x0", "x1"])].isna().all()
    assert np.isfinite(found.loc[(0, "y", "Intercept")])


def test_classes_are_relative_to_the_first_and_stories_without_experts_have_none():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(90, 2, generator=generator)
    y = torch.multinomial((x @ torch.randn(2, 3, generator=generator)).softmax(-1), 1)[:, 0]
    story = models.ME(2, 3, 1, experts="categorical")
    fit = pyro_moe.fit(story.model, story.guide, (x, y), prior="weak", progress=False)
    found = fit.coefficients()["estimate"]
    at = torch.tensor([[0.3, -0.7]])
    log_p = fit.story.experts(at).logits[0, 0].detach()
    for m in (1, 2):
        own = found.loc[(0, str(m))]
        value = own["Intercept"] + own["x0"] * 0.3 - own["x1"] * 0.7
        assert value == pytest.approx(float(log_p[m] - log_p[0]), abs=1e-4)
    gmm = models.GMM(2, 1)
    fit = pyro_moe.fit(gmm.model, gmm.guide, x, progress=False)
    with pytest.raises(SiteError, match=r"^expected experts that are affine in x, of .*; got GMM$"):
        fit.coefficients()


def test_columns_that_are_functions_of_others_follow_them(table):
    fit = pyro_moe.mixture("y ~ dose * age + I(dose**2) | age", table, num_components=1)
    assert set(fit.design.variables.derived) == {"dose:age", "I(dose ** 2)"}
    x = pd.DataFrame(0.0, index=range(2), columns=list(fit.design.columns))
    x["dose"], x["age"] = [2.0, 3.0], [5.0, 7.0]
    found = fit.design.variables.recomputed(x)
    assert found["dose:age"].tolist() == [10.0, 21.0]
    assert found["I(dose ** 2)"].tolist() == [4.0, 9.0]
    assert found["dose"].tolist() == [2.0, 3.0]


def test_one_component_less_is_fitted_to_the_same_rows(table):
    fit = me(table, 2, **ML)
    smaller = with_fewer(fit)
    assert smaller.story.num_components == 1
    one = me(table, 1, **ML)
    assert smaller.history[-1]["elbo"] == pytest.approx(one.history[-1]["elbo"], abs=1e-6)
    assert with_fewer(smaller) is None


def test_one_component_less_has_the_weights_and_no_labels(table):
    weights = np.arange(len(table)) % 3
    fit = me(table, 2, **ML, weights=weights)
    one = me(table.loc[table.index.repeat(weights)], 1, **ML)
    assert with_fewer(fit).history[-1]["elbo"] == pytest.approx(one.history[-1]["elbo"], abs=1e-6)
    labels = np.where(np.arange(len(table)) < 20, 0, -1)
    assert with_fewer(me(table, 2, **ML, labels=labels)) is None


def test_standard_errors_count_a_row_as_its_weight_says(table):
    weights = np.arange(len(table)) % 3
    found = me(table, 2, **ML, weights=weights).coefficients()
    copies = me(table.loc[table.index.repeat(weights)], 2, **ML).coefficients()
    errors = [sorted(each["standard_error"]) for each in (found, copies)]
    np.testing.assert_allclose(*errors, rtol=1e-2)


@pytest.mark.parametrize("groups", [None, "level"])
def test_errors_at_a_posterior_mode_count_the_rows_of_the_prior(table, groups):
    rows = table.assign(level=np.repeat(np.arange(75), 2))
    plain, strong = (
        pyro_moe.mixture("y ~ dose", rows, num_components=1, prior=prior, groups=groups)
        for prior in ("none", Prior(rows=50.0, ridge=0.0))
    )  # of one component, the prior has the rows of the data once more, 50 of 150
    np.testing.assert_allclose(strong.params, plain.params, rtol=1e-6)
    np.testing.assert_allclose(strong.bse, plain.bse / (200 / 150) ** 0.5, rtol=1e-6)
    assert strong.llf == pytest.approx(plain.llf)
    name = (0, "y", "dose")
    interval = np.array([plain.profile_interval(name), strong.profile_interval(name)])
    width = np.diff(interval)[:, 0]
    assert width[1] / width[0] == pytest.approx((150 / 200) ** 0.5, rel=1e-2)
    assert "of the posterior mode" in str(strong.summary())


@pytest.mark.parametrize(
    "options",
    [
        {"prior": Prior(rows=10.0, null_rows=5.0)},
        {"weights": "w", "weight_type": "sampling"},
        {"weights": "w", "weight_type": "sampling", "groups": "pair", "prior": "weak"},
    ],
    ids=["prior", "survey", "survey of groups"],
)
def test_both_ways_to_standard_errors_agree(table, options):
    rows = table.assign(w=1.0 + np.arange(150) % 3, pair=np.repeat(np.arange(75), 2))
    fit = pyro_moe.mixture("y ~ dose", rows, restarts=3, **options)
    index, _, errors = estimated(fit)
    known = fit.bse.reset_index(drop=True)
    assert len(index) == len(known)
    np.testing.assert_allclose(errors, known, rtol=1e-5)
