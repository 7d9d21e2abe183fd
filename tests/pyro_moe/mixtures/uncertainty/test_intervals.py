"""Intervals of parameters that have ends: scales, degrees of freedom, correlations."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from scipy.optimize import minimize

import pyro_moe
from pyro_moe import mixture, models
from pyro_moe.mixtures.uncertainty.information import informed, polish


def heavy(df, number=100, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=number)
    return pd.DataFrame({"x": x, "y": x + stats.t(df).rvs(number, random_state=rng)})


@pytest.fixture(scope="module")
def cauchy():
    rows = heavy(1.0)
    return rows, mixture("y ~ x", rows, num_components=1, family="student-t")


@pytest.fixture(scope="module")
def correlated():
    rng = np.random.default_rng(0)
    rows = pd.DataFrame(rng.normal(size=(12, 2)) @ [[1.0, 0.97], [0.0, 0.24]], columns=["a", "b"])
    return rows, mixture("a + b ~ 1", rows, num_components=1, family="normal-full")


@pytest.mark.parametrize("df", [1.0, 1.6, 4.0])
def test_degrees_of_freedom_of_any_tails_are_those_of_scipy(df):
    rows = heavy(df)
    fit = mixture("y ~ x", rows, num_components=1, family="student-t")

    def loss(p):
        line = p[0] + p[1] * rows["x"]
        return -stats.t(np.exp(p[3]), line, np.exp(p[2])).logpdf(rows["y"]).sum()

    options = {"maxiter": 4000, "maxfev": 4000, "xatol": 1e-8, "fatol": 1e-11}
    found = minimize(loss, [0.0, 1.0, 0.0, np.log(df)], method="Nelder-Mead", options=options)
    assert fit.llf == pytest.approx(-found.fun, abs=1e-5)
    np.testing.assert_allclose(fit.params.iloc[2:], np.exp(found.x[2:]), rtol=1e-3)


def test_without_a_mean_predictions_have_the_center(cauchy):
    rows, fit = cauchy
    prediction = fit.predict(rows)
    line = fit.params[0, "y", "Intercept"] + fit.params[0, "y", "x"] * rows["x"]
    np.testing.assert_allclose(prediction.mean[:, 0].numpy(), line, rtol=1e-5, atol=1e-6)
    assert prediction.variance.isinf().all()
    t = stats.t(fit.params[0, "y", "df"], line, fit.params[0, "y", "sigma"])
    np.testing.assert_allclose(prediction.quantile(0.9)[:, 0].numpy(), t.ppf(0.9), rtol=1e-5)


@pytest.mark.parametrize("low", [True, False])
def test_degrees_of_freedom_at_an_end_are_said_to_be_there(low):
    rows = heavy(0.35)
    if not low:
        rows = rows.assign(y=rows["x"] + np.sin(np.arange(100.0) ** 2))
    fit = mixture("y ~ x", rows, num_components=1, family="student-t", restarts=1)
    df = fit.params[0, "y", "df"]
    assert df < 0.501 if low else df > 1e3
    assert "df of y 0 at the limit" in str(fit.summary())
    assert np.isnan(fit.bse[0, "y", "df"])


def test_newtons_method_goes_on_when_degrees_of_freedom_leave_their_limits():
    fit = mixture("y ~ x", heavy(3.0), num_components=1, family="student-t", restarts=1)
    run, experts = fit._em(), fit.story.experts
    experts.log_excess_df.data.fill_(12.0)  # where the density no longer changes with it
    assert informed(run, fit._values).fixed.tolist() == [False, False, False, True]
    assert polish(run, fit._values) < 1e-6
    line = np.polyfit(*(column.numpy()[:, 0] for column in fit.data), 1)  # the tails are normal
    np.testing.assert_allclose(fit._values()[:2].detach(), line[::-1], rtol=1e-3)


@pytest.mark.parametrize("log_df", [-20.0, 1.0, 12.0])
def test_the_parameters_are_those_of_the_density(log_df):
    fit = mixture("y ~ x", heavy(3.0), num_components=1, family="student-t", restarts=1)
    fit.story.experts.log_excess_df.data.fill_(log_df)
    df = fit.story.experts(fit.data[0]).base_dist.df.detach().unique()
    vars(fit).pop("params", None)
    assert float(df) == pytest.approx(fit.params[0, "y", "df"])


def test_intervals_of_positive_parameters_are_symmetric_in_logarithms(cauchy):
    _, fit = cauchy
    interval = fit.conf_int(1e-6)
    for term in ("sigma", "df"):
        low, high = interval.loc[(0, "y", term)]
        assert low > 0
        assert low * high == pytest.approx(fit.params[0, "y", term] ** 2)
    table = fit.coefficients(1e-6)
    np.testing.assert_array_equal(table[["lower", "upper"]], interval)


def test_those_of_a_fit_without_a_formula_are_the_same():
    rows = heavy(3.0)
    story = models.ME(1, 1, 1, experts="student-t").double()
    options = {"prior": "none", "progress": False, "tolerance": 1e-10}
    fit = pyro_moe.fit(story.model, story.guide, (rows[["x"]], rows["y"]), **options)
    like = mixture("y ~ x", rows, num_components=1, family="student-t").coefficients()
    np.testing.assert_allclose(fit.coefficients(), like, rtol=1e-3, atol=1e-5)


def test_the_interval_of_a_correlation_is_fishers(correlated):
    rows, fit = correlated
    name = (0, "b", "corr(a)")
    r, alpha = rows.corr().iloc[0, 1], 0.001
    assert fit.params[name] == pytest.approx(r, abs=1e-6)
    reach = stats.norm.isf(alpha / 2) / np.sqrt(len(rows))  # se of artanh r is n^(-1/2)
    expected = np.tanh([np.arctanh(r) - reach, np.arctanh(r) + reach])
    np.testing.assert_allclose(fit.conf_int(alpha).loc[name], expected, rtol=1e-5)


def test_the_profile_of_a_correlation_ends_before_one(correlated):
    """With means and deviations profiled out, the fall is n log((1 - r ρ)² / (1 - r²)(1 - ρ²))."""
    rows, fit = correlated
    r, n, alpha = rows.corr().iloc[0, 1], len(rows), 0.05
    low, high = fit.profile_interval((0, "b", "corr(a)"), 0.001)
    assert -1 < low < high < 1
    for end in fit.profile_interval((0, "b", "corr(a)"), alpha):
        assert -1 < end < 1
        fall = n * np.log((1 - r * end) ** 2 / ((1 - r**2) * (1 - end**2)))
        assert fall == pytest.approx(stats.chi2.isf(alpha, 1), rel=0.02)


def test_the_profile_of_degrees_of_freedom_is_positive(cauchy):
    _, fit = cauchy
    low, high = fit.profile_interval((0, "y", "df"))
    wald = fit.conf_int().loc[(0, "y", "df")]
    assert 0.5 < low < fit.params[0, "y", "df"] < high
    np.testing.assert_allclose([low, high], wald, rtol=0.2)


def test_degrees_of_freedom_among_several_families_are_parameters():
    rows = heavy(3.0)
    options = {"num_components": 1, "family": ["student-t", "normal"]}
    fit = mixture(["y ~ x", "x ~ 1"], rows, **options)
    alone = mixture("y ~ x", rows, num_components=1, family="student-t")
    assert fit.df_model == 6
    assert fit.params[0, "y", "df"] == pytest.approx(alone.params[0, "y", "df"], rel=1e-4)
    assert fit.bse[0, "y", "df"] == pytest.approx(alone.bse[0, "y", "df"], rel=1e-3)
