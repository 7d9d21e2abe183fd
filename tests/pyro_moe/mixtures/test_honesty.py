"""Singular information, small components and no convergence are said in words."""

import numpy as np
import pandas as pd
import pytest
import torch

from pyro_moe import ConvergenceWarning, mixture


def test_separable_classes_have_no_errors_and_the_summary_says_so():
    x = np.linspace(-1.0, 1.0, 40)
    rows = pd.DataFrame({"x": x, "y": (x > 0).astype(float)})
    fit = mixture("y ~ x", rows, family="bernoulli", num_components=1)
    assert fit.undetermined
    assert fit.bse.isna().any()
    assert "the information is singular there" in str(fit.summary())
    assert "nan" not in str(fit.summary()).lower()


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
