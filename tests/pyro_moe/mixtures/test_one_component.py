"""With one component a mixture is a generalized linear model, as statsmodels computes it."""

import numpy as np
import pytest
import statsmodels.api as sm
import statsmodels.formula.api as smf

from pyro_moe import mixture


def same(fit, other, *, scales=0):
    """The estimates, errors, intervals, log-likelihood and AIC of statsmodels."""
    coefficients = len(fit.params) - scales
    np.testing.assert_allclose(fit.params[:coefficients], other.params, rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(fit.llf, other.llf, rtol=1e-9)
    np.testing.assert_allclose(fit.aic, -2 * other.llf + 2 * len(fit.params), rtol=1e-9)


def test_a_normal_expert_is_least_squares(table):
    fit = mixture("y ~ x + level", table, num_components=1)
    other = smf.ols("y ~ x + level", table).fit()
    names = ["Intercept", "x", "level[T.b]", "level[T.c]"]
    order = ["Intercept", "x", "level[T.b]", "level[T.c]"]
    assert list(fit.params[0, "y"].index) == [*names, "sigma"]
    np.testing.assert_allclose(fit.params[0, "y"][names], other.params[order], rtol=1e-6)
    np.testing.assert_allclose(fit.llf, other.llf, rtol=1e-10)
    residual = np.sqrt(other.ssr / len(table))  # of maximum likelihood
    np.testing.assert_allclose(fit.params[0, "y", "sigma"], residual, rtol=1e-6)
    ratio = residual / np.sqrt(other.scale)
    np.testing.assert_allclose(fit.bse[0, "y"][names], ratio * other.bse[order], rtol=1e-6)
    error = residual / np.sqrt(2 * len(table))
    np.testing.assert_allclose(fit.bse[0, "y", "sigma"], error, rtol=1e-6)


def test_the_sandwich_is_that_of_statsmodels(table):
    fit = mixture("y ~ x + level", table, num_components=1)
    robust = smf.ols("y ~ x + level", table).fit(cov_type="HC0")
    found = np.sqrt(np.diag(fit.cov_params("sandwich")))[:4]
    np.testing.assert_allclose(
        found, robust.bse[["Intercept", "x", "level[T.b]", "level[T.c]"]], rtol=1e-6
    )


def test_a_poisson_expert_with_an_exposure_is_a_glm(table):
    fit = mixture("count ~ x", table, num_components=1, family="poisson", offset="np.log(time)")
    family = sm.families.Poisson()
    other = smf.glm("count ~ x", table, family=family, offset=np.log(table["time"])).fit()
    same(fit, other)
    np.testing.assert_allclose(fit.bse, other.bse, rtol=1e-6)
    np.testing.assert_allclose(fit.zvalues, other.tvalues, rtol=1e-6)
    np.testing.assert_allclose(fit.pvalues, other.pvalues, rtol=1e-4, atol=1e-300)
    np.testing.assert_allclose(fit.conf_int(0.1), other.conf_int(0.1), rtol=1e-6)


def test_a_normal_expert_with_an_offset_fits_the_difference(table):
    fit = mixture("y ~ x", table, num_components=1, offset="time")
    other = smf.ols("I(y - time) ~ x", table).fit()
    same(fit, other, scales=1)


def test_a_bernoulli_expert_is_a_logistic_regression(table):
    rows = table.assign(large=table["y"] > 4.0)
    fit = mixture(
        "large ~ time", rows.astype({"large": float}), num_components=1, family="bernoulli"
    )
    other = smf.glm("I(large * 1) ~ time", rows, family=sm.families.Binomial()).fit()
    same(fit, other)
    np.testing.assert_allclose(fit.bse, other.bse, rtol=1e-6)


def test_a_binomial_expert_is_a_glm(table):
    rows = table.assign(n=table["count"] + 3)
    fit = mixture("count ~ x", rows, num_components=1, family="binomial", trials="n")
    pairs = np.c_[rows["count"], rows["n"] - rows["count"]]
    other = sm.GLM(pairs, sm.add_constant(rows["x"]), family=sm.families.Binomial()).fit()
    same(fit, other)
    np.testing.assert_allclose(fit.bse, other.bse, rtol=1e-6)


def test_the_prediction_of_a_binomial_expert_is_a_binomial(table):
    from scipy.stats import binom

    rows = table.assign(n=table["count"] + 3)
    fit = mixture("count ~ x", rows, num_components=1, family="binomial", trials="n")
    b = fit.params[0, "count"]
    share = 1 / (1 + np.exp(-b["Intercept"] - b["x"] * rows["x"]))
    prediction = fit.predict(rows)
    np.testing.assert_allclose(prediction.mean[:, 0], rows["n"] * share, rtol=1e-9)
    for level in (0.1, 0.5, 0.95):
        found = prediction.quantile(level)[:, 0]
        np.testing.assert_array_equal(found, binom.ppf(level, rows["n"], share))
    below = prediction.cdf(rows["count"].to_numpy())[:, 0]
    np.testing.assert_allclose(below, binom.cdf(rows["count"], rows["n"], share), rtol=1e-9)


def test_a_categorical_expert_is_a_multinomial_logit(table):
    fit = mixture("level ~ x", table, num_components=1, family="categorical")
    codes = table["level"].map({"a": 0, "b": 1, "c": 2})
    other = sm.MNLogit(codes, sm.add_constant(table["x"])).fit(disp=0, tol=1e-12)
    np.testing.assert_allclose(fit.params, other.params.to_numpy().T.ravel(), rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(fit.bse, other.bse.to_numpy().T.ravel(), rtol=1e-5)
    assert fit.params.index.get_level_values("equation").unique().tolist() == ["b", "c"]


def test_without_an_intercept_the_line_goes_through_the_origin(table):
    fit = mixture("y ~ 0 + x", table, num_components=1)
    same(fit, smf.ols("y ~ 0 + x", table).fit(), scales=1)


def test_a_formula_of_an_intercept_alone_is_a_normal_distribution(table):
    fit = mixture("y ~ 1", table, num_components=1)
    expected = [table["y"].mean(), table["y"].std(ddof=0)]
    np.testing.assert_allclose(fit.params, expected, rtol=1e-6)


@pytest.mark.parametrize("formula", ["y + time ~ x", ["y ~ x", "time ~ x"]])
def test_several_targets_are_several_regressions(table, formula):
    fit = mixture(formula, table, num_components=1)
    each = [smf.ols(f"{name} ~ x", table).fit() for name in ("y", "time")]
    np.testing.assert_allclose(fit.llf, sum(other.llf for other in each), rtol=1e-9)
    np.testing.assert_allclose(fit.params[0, "time"][:2], each[1].params, rtol=1e-6)
