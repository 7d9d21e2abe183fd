"""What must not matter: the order of rows and labels, and the units."""

import copy
import pickle

import numpy as np
import pandas as pd
import pytest

from pyro_moe import Fit, evaluation, mixture


def test_the_order_of_rows_does_not_matter(table, fitted):
    order = np.random.default_rng(1).permutation(len(table))
    again = mixture("y ~ x + level | x", table.iloc[order], order="x", restarts=3)
    np.testing.assert_allclose(again.params, fitted.params, rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(again.bse, fitted.bse, rtol=1e-5)


def test_units_change_the_coefficients_as_they_must(table, fitted):
    rows = table.assign(x=1e3 * table["x"] + 7e4, y=1e-4 * table["y"])
    again = mixture("y ~ x + level | x", rows, order="x", restarts=3)
    np.testing.assert_allclose(again.llf, fitted.llf + len(table) * np.log(1e4), rtol=1e-9)
    for name, factor in ((("y", "x"), 1e-7), (("y", "level[T.b]"), 1e-4), (("y", "sigma"), 1e-4)):
        for k in range(2):
            for read in ("params", "bse"):
                found, before = (getattr(f, read)[(k, *name)] for f in (again, fitted))
                np.testing.assert_allclose(found, factor * before, rtol=1e-5)
    np.testing.assert_allclose(
        again.params[1, "gate", "x"], 1e-3 * fitted.params[1, "gate", "x"], rtol=1e-5
    )


def test_relabelling_changes_the_labels_alone(table, fitted):
    other = fitted.relabel([1, 0])
    assert other.llf == pytest.approx(fitted.llf, rel=1e-12)
    np.testing.assert_allclose(other.params[1, "y"], fitted.params[0, "y"], rtol=1e-12)
    np.testing.assert_allclose(other.bse[1, "y"], fitted.bse[0, "y"], rtol=1e-7)
    np.testing.assert_allclose(other.params[1, "gate"], -fitted.params[1, "gate"], rtol=1e-9)
    np.testing.assert_allclose(other.bse[1, "gate"], fitted.bse[1, "gate"], rtol=1e-7)
    np.testing.assert_allclose(other.posterior()[[1, 0]], fitted.posterior(), atol=1e-12)
    back = other.relabel(fitted)
    np.testing.assert_allclose(back.params, fitted.params, rtol=1e-9)
    np.testing.assert_allclose(other.relabel("x").params, fitted.params, rtol=1e-9)
    np.testing.assert_allclose(other.relabel(("y", "x")).params, fitted.params, rtol=1e-9)
    sizes = fitted.relabel("size").sizes["posterior"]
    assert sizes.is_monotonic_decreasing


@pytest.mark.parametrize(
    ("order", "message"),
    [([0, 0], "each of the components"), ("z", "a coefficient that each expert has once")],
)
def test_an_order_that_is_none(fitted, order, message):
    with pytest.raises(ValueError, match=message):
        fitted.relabel(order)


def test_it_is_a_fit_that_all_tools_take(table, fitted):
    assert isinstance(fitted, Fit)
    assert len(repr(fitted)) < 300
    prediction = evaluation.predict(fitted, table[["x", "level"]][:5])
    assert prediction.mean.shape == (5, 1)
    by_columns = evaluation.predict(fitted, fitted.design.features(table[:5]))
    np.testing.assert_allclose(prediction.mean, by_columns.mean)
    mean = evaluation.gate(fitted, table[:5]).numpy() * np.stack(
        [
            (
                fitted.params[k, "y", "Intercept"]
                + fitted.params[k, "y", "x"] * table["x"][:5]
                + fitted.params[k, "y", "level[T.b]"] * (table["level"][:5] == "b")
                + fitted.params[k, "y", "level[T.c]"] * (table["level"][:5] == "c")
            )
            for k in range(2)
        ],
        -1,
    )
    np.testing.assert_allclose(prediction.mean[:, 0], mean.sum(-1), rtol=1e-7)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda fit: pickle.loads(pickle.dumps(fit))])  # noqa: S301
def test_a_copy_is_the_same_fit(table, fitted, copied):
    other = copied(fitted)
    pd.testing.assert_series_equal(other.params, fitted.params)
    assert other.llf == fitted.llf
    assert str(other.summary()) == str(fitted.summary())


@pytest.mark.parametrize(
    ("family", "shared"), [("normal", ()), ("student-t", ()), ("normal", ("time", "square"))]
)
def test_a_year_and_its_square_have_the_fit_of_centered_ones(family, shared):
    rng = np.random.default_rng(0)
    t, first = rng.uniform(-15.0, 15.0, 120), rng.random(120) < 0.5
    y = np.where(first, 3 + 0.2 * t - 0.01 * t**2, -4 + 0.02 * t**2) + 0.5 * rng.normal(size=120)
    fits = [
        mixture(
            "y ~ time + square",
            {"time": time, "square": time**2, "y": y},
            family=family,
            shared=shared,
            initialize=first.astype(int),
        )
        for time in (t, t + 2005.0)
    ]
    assert fits[1].llf == pytest.approx(fits[0].llf, abs=1e-5)
    means = [fit.predict(fit.data[0]).mean for fit in fits]
    np.testing.assert_allclose(*means, atol=1e-4)
    assert fits[1].bse.drop("df", level=2, errors="ignore").notna().all()
    curvature = [fit.params.xs("square", level=2) for fit in fits]
    np.testing.assert_allclose(*curvature, rtol=1e-3)
