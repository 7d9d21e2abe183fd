"""One linear model of all rows, computed by hand."""

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import optimize, stats
from torch.testing import assert_close

import pyro_moe
from pyro_moe import DataError, evaluation
from pyro_moe.models import GMM, ME

N = 80
choices = {"epochs": 1, "prior": "weak", "progress": False}


def fitted(y, y_dim=1, **options):
    story = ME(2, y_dim, 1, **options)
    return pyro_moe.fit(story.model, story.guide, (X, y), **choices)


random = np.random.default_rng(0)
X = random.normal(size=(N, 2)) * [1.0, 10.0] + 3.0
NEW = random.normal(size=(30, 2)) * [1.0, 10.0] + 3.0
LINE, NEW_LINE = X @ [0.5, 0.05], NEW @ [0.5, 0.05]
DESIGN, NEW_DESIGN = (np.column_stack([np.ones(len(x)), x]) for x in (X, NEW))


def test_normal_targets_have_ordinary_least_squares():
    y, new_y = (np.column_stack([2 * m + random.normal(size=len(m)), -m]) for m in (LINE, NEW_LINE))
    y[:, 1] += random.normal(size=N)
    expected = 0.0
    for column, new in zip(y.T, new_y.T, strict=True):
        solution, squares, *_ = np.linalg.lstsq(DESIGN, column, rcond=None)
        scale = np.sqrt(squares[0] / (N - 3))
        expected = expected + stats.norm.logpdf(new, NEW_DESIGN @ solution, scale)
    found = evaluation.linear_baseline(fitted(y, 2), (NEW, new_y))
    assert_close(found, torch.as_tensor(expected), rtol=1e-6, atol=1e-6)


def test_counts_have_poisson_regression():
    y, new_y = (random.poisson(np.exp(m - 1.0)).astype(float) for m in (LINE, NEW_LINE))

    def loss(weights):
        return -stats.poisson.logpmf(y, np.exp(DESIGN @ weights)).sum()

    def slope(weights):
        return DESIGN.T @ (np.exp(DESIGN @ weights) - y)

    weights = optimize.minimize(loss, np.zeros(3), jac=slope, tol=1e-10).x
    expected = stats.poisson.logpmf(new_y, np.exp(NEW_DESIGN @ weights))
    found = evaluation.linear_baseline(fitted(y, experts="poisson"), (NEW, new_y))
    assert_close(found, torch.as_tensor(expected), rtol=0, atol=2e-3)


@pytest.mark.parametrize("family", ["categorical", "bernoulli"])
def test_classes_have_penalized_logistic_regression(family):
    """Of standardized x, with the penalty |w|²/2 of scikit-learn."""
    y, new_y = ((m + random.logistic(size=len(m)) > 2).astype(int) for m in (LINE, NEW_LINE))
    u, new_u = ((x - X.mean(0)) / X.std(0) for x in (X, NEW))
    signs, new_signs = 2 * y - 1, 2 * new_y - 1

    def loss(weights):
        logits = weights[0] + u @ weights[1:]
        return np.logaddexp(0, -signs * logits).sum() + 0.5 * np.square(weights[1:]).sum()

    weights = optimize.minimize(loss, np.zeros(3), tol=1e-8).x
    expected = -np.logaddexp(0, -new_signs * (new_u @ weights[1:] + weights[0]))
    if family == "bernoulli":
        y, new_y, y_dim = y.astype(float), new_y.astype(float), 1
    else:
        y_dim = 2
    found = evaluation.linear_baseline(fitted(y, y_dim, experts=family), (NEW, new_y))
    assert_close(found, torch.as_tensor(expected), rtol=0, atol=2e-3)


def test_a_story_of_x_alone_has_no_baseline():
    story = GMM(2, 1)
    fit = pyro_moe.fit(story.model, story.guide, X, **choices)
    assert evaluation.linear_baseline(fit, X) is None


def test_the_baseline_does_not_depend_on_where_zero_is():
    y, new_y = (m + random.normal(size=len(m)) for m in (LINE, NEW_LINE))
    expected = evaluation.linear_baseline(fitted(y), (NEW, new_y))
    found = evaluation.linear_baseline(fitted(1e10 + y), (NEW, 1e10 + new_y))
    assert_close(found, expected, rtol=0, atol=1e-3)


def test_columns_are_matched_by_name_and_no_digit_is_lost():
    frame, new = (pd.DataFrame(x, columns=["dose", "age"]) for x in (X, NEW))
    y, new_y = (
        pd.DataFrame({"a": 1e9 + m + random.normal(size=len(m)), "b": -m}) for m in (LINE, NEW_LINE)
    )
    y["b"] += random.normal(size=N)
    story = ME(2, 2, 1)
    fit = pyro_moe.fit(story.model, story.guide, (frame, y), **choices)
    expected = evaluation.linear_baseline(fit, (new, new_y))
    turned = evaluation.linear_baseline(fit, (new[["age", "dose"]], new_y[["b", "a"]]))
    assert_close(turned, expected)
    near = evaluation.predict(fit, new).log_prob(new_y) - expected
    assert near.abs().max() < 0.2
    with pytest.raises(DataError, match="expected 'age' among the columns of x, as fitted"):
        evaluation.linear_baseline(fit, (new[["dose"]], new_y))
