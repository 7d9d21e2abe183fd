"""Singular information, small components and no convergence are said in words."""

import numpy as np
import pandas as pd
import pytest
import torch

import pyro_moe
from pyro_moe import ConvergenceWarning, mixture, models


def test_separable_classes_have_no_errors_and_the_summary_says_so():
    x = np.linspace(-1.0, 1.0, 40)
    rows = pd.DataFrame({"x": x, "y": (x > 0).astype(float)})
    fit = mixture("y ~ x", rows, family="bernoulli", num_components=1)
    assert fit.undetermined
    assert fit.bse.isna().any()
    assert "the information is singular there" in str(fit.summary())
    assert "nan" not in str(fit.summary()).lower()


def separated_in_the_gate():
    """Two lines, of which the first has no rows of one level."""
    rng = np.random.default_rng(0)
    x, level = rng.normal(size=90), np.repeat(["a", "b", "c"], 30)
    of_first = (level == "c") | ((level == "b") & (np.arange(90) % 2 == 0))
    of_first |= np.arange(90) < 5
    y = np.where(of_first, 5 + x, -5 - x) + 0.5 * rng.normal(size=90)
    return pd.DataFrame({"x": x, "level": level, "y": y})


def test_a_level_of_one_component_alone_has_no_error_in_the_gate():
    rows = separated_in_the_gate()
    fit = mixture("y ~ x | level", rows, order="x")
    name = (1, "gate", "level[T.c]")
    assert fit.undetermined == [name]
    assert fit.bse.isna().sum() == 1
    note = "No standard error of level[T.c] of gate 1: the information is singular there."
    assert note in str(fit.summary())
    other = fit.bse[1, "gate", "level[T.b]"]
    assert other == pytest.approx(np.sqrt(1 / 5 + 1 / 25 + 1 / 15 + 1 / 15), rel=1e-2)


def test_it_has_none_without_a_formula_either():
    rows = separated_in_the_gate()
    x = pd.get_dummies(rows[["x", "level"]], columns=["level"], drop_first=True, dtype=float)
    story = models.ME(3, 1, 2, predictor=models.Predictor(columns=[0]), gate_columns=[1, 2])
    story.double()
    options = {"prior": "none", "progress": False, "tolerance": 1e-12}
    fit = pyro_moe.fit(story.model, story.guide, (x, rows["y"]), **options)
    errors = fit.coefficients()["standard_error"]
    assert np.isnan(errors[1, "gate", "level_c"])
    assert errors[1, "gate", "level_b"] == pytest.approx(0.61, rel=0.02)
    assert errors.isna().sum() == 1


@pytest.mark.parametrize("family", ["bernoulli", "poisson"])
def test_a_level_with_zeros_alone_has_no_error_in_an_expert(family):
    level = np.repeat(["a", "b"], [15, 5])
    rows = pd.DataFrame({"level": level, "y": np.where(level == "b", 0, np.arange(20) % 2)})
    fit = mixture("y ~ level", rows, family=family, num_components=1)
    assert fit.undetermined == [(0, "y", "level[T.b]")]
    rate = 7 / 15
    variance = rate * (1 - rate) if family == "bernoulli" else rate
    assert fit.bse[0, "y", "Intercept"] == pytest.approx((15 * variance) ** -0.5, rel=1e-6)


def test_counts_of_a_million_leave_the_gate_determined():
    rng = np.random.default_rng(1)
    x = rng.normal(size=120)
    y = rng.poisson(1e7 * np.exp(0.1 * x + (np.arange(120) % 40 == 0)))
    fit = mixture("y ~ x | x", pd.DataFrame({"x": x, "y": y}), family="poisson")
    assert fit.undetermined == []


def test_years_and_their_squares_are_determined():
    year = np.linspace(1950.0, 2020.0, 200)
    rows = pd.DataFrame({"year": year, "y": np.sin(np.arange(200.0) ** 2) + 0.01 * year})
    fit = mixture("y ~ year + I(year ** 2)", rows, num_components=1)
    assert fit.undetermined == []


def test_a_determined_fit_names_nothing(fitted):
    assert fitted.undetermined == []
    assert fitted.bse.notna().all()
    assert "singular" not in str(fitted.summary())


def test_small_components_are_named(table):
    rows = pd.concat([table[:40], table[:3].assign(y=[80.0, 82.1, 84.3])])
    fit = mixture(
        "y ~ x",
        rows.reset_index(drop=True),
        initialize=np.r_[np.zeros(40), np.ones(3)].astype(int),
        prior="weak",
    )
    assert "Component 1 has 3.0 rows" in str(fit.summary())


def test_a_fit_without_iterations_says_that_it_did_not_converge(table):
    with pytest.warns(ConvergenceWarning, match="expected EM and Newton's method to end"):
        fit = mixture("y ~ x", table, epochs=0, restarts=1)
    assert not fit.converged
    assert "not converged" in repr(fit)


def test_a_saddle_is_left(table):
    """Equal responsibilities are a stationary point of EM: all components are alike."""
    best = mixture("y ~ x", table).llf
    alike = mixture("y ~ x", table, initialize=np.full((len(table), 2), 0.5), epochs=3)
    assert alike.converged
    assert alike.llf == pytest.approx(best, abs=1e-6)


@pytest.mark.parametrize("seed", range(3))
def test_few_iterations_end_at_a_maximum_or_say_that_they_do_not(table, seed):
    fit = mixture("y ~ x", table, epochs=1, restarts=1, seed=seed)
    observed = fit.information.observed
    scale = observed.diagonal().sqrt()
    assert fit.converged
    assert torch.linalg.eigvalsh(observed / scale / scale.unsqueeze(-1)).min() > 0
    assert fit.information.gradient.norm() < 1e-6 * scale.norm()


def test_the_summary_has_the_numbers(fitted):
    text = str(fitted.summary())
    for part in (
        "Component 0: y",
        "Gate: component 1",
        "level[T.b]",
        f"{fitted.llf:.3f}",
        "sigma",
        "starts of EM",
    ):
        assert part in text
    assert max(map(len, text.splitlines()[:-4])) <= 82
    assert "<table" in fitted.summary()._repr_html_()


def test_the_interval_of_a_scale_is_positive(fitted):
    interval = fitted.conf_int(1e-9)
    assert (interval.xs("sigma", level="term")["lower"] > 0).all()
    with pytest.raises(ValueError, match="expected alpha between 0 and 1; got 2"):
        fitted.conf_int(2)


def test_a_covariance_that_is_none(fitted):
    with pytest.raises(ValueError, match="expected cov_type in"):
        fitted.cov_params("robust")
