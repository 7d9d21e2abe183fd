"""What must be equal: weights and replicated rows, groups and sums by hand, derivatives."""

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.special import logsumexp
from scipy.stats import norm, poisson

from pyro_moe import evaluation, mixture


def labels(table):
    return table["component"].to_numpy()


def test_the_log_likelihood_is_the_sum_by_hand(table):
    fit = mixture("y ~ x | time", table, initialize=labels(table))
    terms = []
    for k in range(2):
        b = fit.params[k, "y"]
        mean = b["Intercept"] + b["x"] * table["x"]
        terms.append(norm.logpdf(table["y"], mean, b["sigma"]))
    gate = fit.params[1, "gate"]
    logits = np.stack([0 * table["time"], gate["Intercept"] + gate["time"] * table["time"]])
    joint = np.stack(terms) + logits - logsumexp(logits, axis=0)
    np.testing.assert_allclose(fit.llf, logsumexp(joint, axis=0).sum(), rtol=1e-10)
    posterior = np.exp(joint - logsumexp(joint, axis=0)).T
    np.testing.assert_allclose(fit.posterior(), posterior, atol=1e-9)
    np.testing.assert_allclose(evaluation.posterior(fit, table), posterior, atol=1e-9)
    x = fit.design.features(table)
    np.testing.assert_allclose(evaluation.posterior(fit, (x, table["y"])), posterior, atol=1e-9)
    np.testing.assert_allclose(
        evaluation.gate(fit, table), np.exp(logits - logsumexp(logits, axis=0)).T, atol=1e-9
    )


def test_the_likelihood_of_groups_is_the_sum_by_hand(table):
    fit = mixture(
        "count ~ x",
        table,
        family="poisson",
        groups="group",
        offset="np.log(time)",
        initialize=labels(table),
    )
    terms = []
    for k in range(2):
        b = fit.params[k, "count"]
        rate = table["time"] * np.exp(b["Intercept"] + b["x"] * table["x"])
        each = pd.Series(poisson.logpmf(table["count"], rate))
        terms.append(each.groupby(table["group"]).sum())
    logit = fit.params[1, "gate", "Intercept"]
    joint = np.stack(terms) + np.array([[0.0], [logit]]) - np.logaddexp(0.0, logit)
    np.testing.assert_allclose(fit.llf, logsumexp(joint, axis=0).sum(), rtol=1e-10)
    posterior = pd.DataFrame(np.exp(joint - logsumexp(joint, axis=0)).T, terms[0].index)
    np.testing.assert_allclose(fit.posterior(), posterior.loc[table["group"]], atol=1e-9)
    assert fit.icl >= fit.bic


def test_groups_of_one_row_are_no_groups(table):
    rows = table.assign(row=np.arange(len(table)))
    one = mixture("y ~ x", rows, groups="row", initialize=labels(table))
    other = mixture("y ~ x", rows, initialize=labels(table))
    np.testing.assert_allclose(one.params, other.params, rtol=1e-7, atol=1e-9)
    np.testing.assert_allclose(one.bse, other.bse, rtol=1e-6)
    np.testing.assert_allclose(
        one.cov_params("sandwich"), other.cov_params("sandwich"), rtol=1e-5, atol=1e-12
    )


@pytest.mark.parametrize("groups", [None, "group"])
@pytest.mark.parametrize("cov_type", ["observed", "sandwich"])
def test_weights_are_replicated_rows(table, groups, cov_type):
    weights = 1 + np.arange(len(table)) % 3
    rows = table.assign(w=np.where(np.arange(len(table)) % 10 == 0, 0, weights))
    one = mixture(
        "y ~ x | time" if groups is None else "y ~ x",
        rows,
        weights="w",
        groups=groups,
        initialize=labels(rows[rows["w"] > 0]),
    )
    many = rows.loc[rows.index.repeat(rows["w"])]
    other = mixture(
        "y ~ x | time" if groups is None else "y ~ x", many, groups=groups, initialize=labels(many)
    )
    np.testing.assert_allclose(one.params, other.params, rtol=1e-6, atol=1e-8)
    for name in ("llf", "aic", "bic", "icl", "nobs"):
        np.testing.assert_allclose(getattr(one, name), getattr(other, name), rtol=1e-9)
    np.testing.assert_allclose(
        one.cov_params(cov_type), other.cov_params(cov_type), rtol=1e-5, atol=1e-10
    )
    np.testing.assert_allclose(one.sizes, other.sizes, rtol=1e-6)


def test_a_factor_is_its_dummies(table):
    dummies = table.assign(b=table["level"] == "b", c=table["level"] == "c")
    one = mixture("y ~ x + level", table, initialize=labels(table))
    other = mixture("y ~ x + b + c", dummies, initialize=labels(table))
    np.testing.assert_allclose(one.params, other.params, rtol=1e-7, atol=1e-9)


def test_columns_by_name_are_their_formula(table):
    one = mixture(data=table, target="y", experts=["x"], gate=["time"], initialize=labels(table))
    other = mixture("y ~ x | time", table, initialize=labels(table))
    pd.testing.assert_series_equal(one.params, other.params)


def test_the_errors_are_those_of_finite_differences(fitted):
    """The Hessian of a log-likelihood of the named parameters, which a softmax has redundant."""
    fit = fitted
    theta = torch.tensor(fit.params.to_numpy())
    lift, run = fit.information.lift, fit._em()
    learned = list(run.parameters().values())
    before = [value.detach().clone() for value in learned]

    def at(change):
        pieces = (lift @ change).split([value.numel() for value in learned])
        with torch.no_grad():
            for value, old, piece in zip(learned, before, pieces, strict=True):
                value.copy_(old + piece.reshape(old.shape))
            found = run.log_likelihoods().sum().item()
            for value, old in zip(learned, before, strict=True):
                value.copy_(old)
        return found

    steps = torch.tensor(fit.bse.to_numpy()) * 1e-2
    for i, j in [(0, 0), (1, 1), (4, 4), (0, 1), (2, 7), (len(theta) - 1, len(theta) - 1)]:
        one, other = torch.eye(len(theta)).double()[[i, j]] * steps[[i, j], None]
        corners = at(one + other) - at(one - other) - at(other - one) + at(-one - other)
        expected = -corners / (4 * steps[i] * steps[j])
        size = (fit.information.observed[i, i] * fit.information.observed[j, j]).sqrt()
        assert abs(fit.information.observed[i, j] - expected) < 1e-3 * size


def test_the_gradient_at_the_end_is_zero(fitted):
    error = torch.tensor(fitted.bse.to_numpy())
    assert (fitted.information.gradient * error).abs().max() < 1e-4
    assert fitted.converged


def test_shared_coefficients_are_those_of_one_regression_on_dummies(table):
    """With the components known, a shared slope is that of a regression with two intercepts."""
    import statsmodels.formula.api as smf

    rows = table.assign(
        y=np.where(table["component"], 50.0, 0.0) + 2.0 * table["x"] + np.sin(17 * table["time"])
    )
    fit = mixture("y ~ x", rows, shared=["x", "sigma"], initialize=labels(rows), order="Intercept")
    other = smf.ols("y ~ x + component", rows).fit()
    a, b, c = other.params[["Intercept", "x", "component"]]
    expected = [b, np.sqrt(other.ssr / len(rows)), a, a + c]
    np.testing.assert_allclose(fit.params[:4], expected, rtol=1e-6)
    assert [name for name in fit.params.index if name[0] == "all"] == [
        ("all", "y", "x"),
        ("all", "y", "sigma"),
    ]
    assert fit.df_model == 5


def test_a_shared_count_slope_beats_none_and_loses_to_two(table):
    options = {"family": "poisson", "initialize": labels(table)}
    free = mixture("count ~ x + time", table, **options)
    shared = mixture("count ~ x + time", table, shared=["time"], **options)
    none = mixture("count ~ x", table, **options)
    assert none.llf < shared.llf < free.llf
    assert (none.df_model, shared.df_model, free.df_model) == (5, 6, 7)


def test_the_prediction_of_several_families_is_that_of_each(table):
    both = mixture(
        ["y ~ x", "count ~ x"], table, family=("normal", "poisson"), initialize=labels(table)
    )
    prediction = both.predict(table[:4])
    gate = both.sizes["gate"].to_numpy()
    rate = [
        np.exp(b["Intercept"] + b["x"] * table["x"][:4])
        for b in (both.params[k, "count"] for k in range(2))
    ]
    np.testing.assert_allclose(prediction.mean[:, 1], gate @ np.stack(rate), rtol=1e-7)
    below = prediction.cdf(table[["y", "count"]][:4].to_numpy())[:, 1]
    expected = gate @ np.stack([poisson.cdf(table["count"][:4], each) for each in rate])
    np.testing.assert_allclose(below, expected, rtol=1e-7)
    assert prediction.sample(3).shape == (3, 4, 2)
