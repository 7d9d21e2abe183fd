"""Weights of both kinds, and labels, in mixtures of regressions."""

import numpy as np
import pandas as pd
import pytest
from scipy.stats import norm

import pyro_moe as pm
from pyro_moe.mixtures.resampling import bootstrap_test, resampled, simulated


@pytest.fixture
def table():
    generator = np.random.default_rng(0)
    x, c = generator.normal(size=120), generator.integers(0, 2, 120)
    y = np.where(c == 1, 2.0 + 2.0 * x, -2.0 - x) + 0.5 * generator.normal(size=120)
    weights = generator.integers(1, 4, 120)
    known = np.where(np.arange(120) % 2, c, -1)
    return pd.DataFrame({"x": x, "y": y, "c": c, "w": weights, "known": known})


def regression(part, weights):
    """Weighted least squares: coefficients, scale and residuals."""
    design = np.column_stack([np.ones(len(part)), part.x])
    root = np.sqrt(np.asarray(weights, float))
    beta = np.linalg.lstsq(root[:, None] * design, root * part.y, rcond=None)[0]
    residuals = part.y - design @ beta
    return design, beta, np.sqrt(np.average(residuals**2, weights=weights)), residuals


def test_with_all_labels_coefficients_errors_and_likelihood_are_by_hand(table):
    fit = pm.mixture("y ~ x", table, labels="c")
    total = 0.0
    for k in range(2):
        part = table[table.c == k]
        design, beta, sigma, residuals = regression(part, np.ones(len(part)))
        np.testing.assert_allclose(fit.params[k, "y"], [*beta, sigma], rtol=1e-6)
        errors = sigma * np.sqrt(np.diag(np.linalg.inv(design.T @ design)))
        np.testing.assert_allclose(fit.bse[k, "y"].iloc[:2], errors, rtol=1e-5)
        total += norm.logpdf(residuals, scale=sigma).sum() + len(part) * np.log(len(part) / 120)
    assert fit.llf == pytest.approx(total, rel=1e-9)
    assert fit.icl == pytest.approx(fit.bic)
    assert (fit.classify() == table.c).all()


def test_a_known_component_is_relabeled_with_the_others(table):
    fit = pm.mixture("y ~ x", table, labels="known")
    turned = fit.relabel([1, 0])
    assert turned.llf == pytest.approx(fit.llf)
    np.testing.assert_allclose(turned.params[1, "y"], fit.params[0, "y"])
    np.testing.assert_allclose(turned.posterior()[0], fit.posterior()[1])
    assert (turned.bse.dropna() > 0).all()


def test_what_is_drawn_from_a_labeled_fit_keeps_its_labels(table):
    fit = pm.mixture("y ~ x", table, labels="c")
    (x, y), _ = simulated(fit, 0)
    lines = fit.params[:, "y", "Intercept"].to_numpy() + np.outer(x[:, 0], fit.params[:, "y", "x"])
    own = lines[np.arange(120), table.c]
    assert (np.abs(y.numpy().ravel() - own) < 4 * fit.params[:, "y", "sigma"].max()).all()
    assert resampled(fit, 0)[1].labels.shape == (120, 2)
    few = bootstrap_test(pm.mixture("y ~ x", table, labels="known"), number=1, restarts=2)
    assert few.larger.num_components == 3


def test_replication_weights_are_copies_and_sampling_weights_are_not(table):
    copies = table.loc[table.index.repeat(table.w)]
    options = {"labels": "c", "weights": "w"}
    weighted, many = pm.mixture("y ~ x", table, **options), pm.mixture("y ~ x", copies, labels="c")
    assert weighted.llf == pytest.approx(many.llf)
    assert (weighted.nobs, weighted.bic) == (len(copies), pytest.approx(many.bic))
    for kind in ("observed", "sandwich"):
        np.testing.assert_allclose(
            weighted.cov_params(kind), many.cov_params(kind), rtol=1e-4, atol=1e-8
        )
    survey = pm.mixture("y ~ x", table, weight_type="sampling", **options)
    np.testing.assert_allclose(survey.params, weighted.params, rtol=1e-6)
    assert survey.nobs == pytest.approx(120)
    for k in range(2):  # the sandwich of weighted least squares, by hand
        part = table[table.c == k]
        design, _, _, residuals = regression(part, part.w)
        bread = np.linalg.inv(design.T @ (part.w.to_numpy()[:, None] * design))
        meat = design * (part.w * residuals).to_numpy()[:, None]
        expected = np.sqrt(np.diag(bread @ meat.T @ meat @ bread))
        np.testing.assert_allclose(survey.bse[k, "y"].iloc[:2], expected, rtol=1e-4)


def test_sampling_weights_have_no_unit(table):
    options = {"labels": "c", "weights": "w", "weight_type": "sampling"}
    one = pm.mixture("y ~ x", table, **options)
    with pytest.raises(ValueError, match="got sampling weights, which have no likelihood"):
        one.profile_interval((0, "y", "x"))
    other = pm.mixture("y ~ x", table.assign(w=100.0 * table.w), **options)
    np.testing.assert_allclose(other.bse, one.bse, rtol=1e-6)
    assert other.llf == pytest.approx(one.llf)
    assert resampled(one, 0)[1].weights.shape == (120,)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weight_type": "survey"}, "expected weight_type in .*; got 'survey'"),
        ({"weight_type": "sampling"}, "expected weights with weight_type='sampling'; got none"),
        ({"labels": "nowhere"}, "nowhere"),
    ],
)
def test_what_a_mixture_refuses(table, options, message):
    with pytest.raises(ValueError, match=message):
        pm.mixture("y ~ x", table, **options)
