"""Published fits of classical tables, of R's flexmix and mixtools, where the tables are at hand.

flexmix divides σ² by degrees of freedom, and stops early: it lies a little below the maximum.
"""

import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from pyro_moe import mixture

pytestmark = pytest.mark.skipif(
    "PYRO_MOE_CLASSICAL" not in os.environ, reason="PYRO_MOE_CLASSICAL names no folder"
)


def fitted(name, formula, **options):
    rows = pd.read_csv(Path(os.environ["PYRO_MOE_CLASSICAL"]) / f"{name}.csv")
    return mixture(formula, rows, **options), rows


def close(found, expected, errors):
    """Within a tenth of a standard error: more digits than that are of the algorithm."""
    np.testing.assert_array_less(np.abs(np.subtract(found, expected)), 0.1 * np.asarray(errors))


@pytest.mark.parametrize(
    ("name", "formula", "options", "published", "df"),
    [
        ("NPreg", "yn ~ x + I(x**2)", {}, -642.545, 9),
        ("NPreg", ["yn ~ x + I(x**2)", "yp ~ x"], {"family": ("normal", "poisson")}, -1044.77, 13),
        ("NPreg", "yn ~ x + I(x**2)", {"groups": "id2"}, -561.565, 9),
        ("NPreg", "yn ~ x + I(x**2) | x + I(x**2)", {}, -640.33, 11),
        ("tone", "tuned ~ stretchratio", {}, 141.198, 7),
        ("tone", "tuned ~ stretchratio | stretchratio", {}, 142.838, 8),
        ("CO2", "CO2 ~ GNP", {}, -66.940, 7),
        ("NO", "Equivalence ~ NO", {}, 122.025, 7),
        ("NO", "Equivalence ~ NO | NO", {}, 123.608, 8),
        (
            "patent",
            "Patents ~ lgRD | RDS",
            {"family": "poisson", "num_components": 3},
            -197.675,
            10,
        ),
        (
            "patent",
            "Patents ~ lgRD | lgRD",
            {"family": "poisson", "num_components": 3},
            -197.851,
            10,
        ),
    ],
)
def test_the_log_likelihood_is_the_published_one(name, formula, options, published, df):
    fit, _ = fitted(name, formula, **options)
    assert published - 0.0015 < fit.llf < published + 0.02
    assert fit.df_model == df
    assert fit.converged


def test_the_coefficients_of_npreg():
    fit, rows = fitted("NPreg", "yn ~ x + I(x**2)")
    fit = fit.relabel("I(x ** 2)")
    error = [1.324, 0.592, 0.0553, 1.009, 0.510, 0.0498]
    found = [fit.params[k, "yn"].iloc[:3] for k in (0, 1)]
    close(np.r_[tuple(found)], [14.718, 9.845, -0.968, -0.208, 4.816, 0.036], error)
    errors = np.r_[tuple(fit.bse[k, "yn"].iloc[:3] for k in (0, 1))]
    np.testing.assert_allclose(errors, error, rtol=0.02)
    np.testing.assert_allclose(fit.params[:, "yn", "sigma"], [3.481, 3.475], rtol=0.01)
    table = pd.crosstab(fit.classify(), rows["class"]).to_numpy()
    assert sorted(table.ravel().tolist()) == [5, 5, 95, 95]
    np.testing.assert_allclose([fit.aic, fit.bic], [1303.09, 1332.78], atol=0.04)


@pytest.mark.parametrize(
    ("formula", "options", "counts"),
    [
        ("yn ~ x + I(x**2)", {"groups": "id2"}, [0, 0, 100, 100]),
        (["yn ~ x + I(x**2)", "yp ~ x"], {"family": ("normal", "poisson")}, [1, 5, 95, 99]),
    ],
)
def test_the_classes_of_npreg(formula, options, counts):
    fit, rows = fitted("NPreg", formula, **options)
    table = pd.crosstab(fit.classify(), rows["class"]).to_numpy()
    assert sorted(table.ravel().tolist()) == counts


def test_the_coefficients_of_tone():
    fit, _ = fitted("tone", "tuned ~ stretchratio", order="size")
    expected = [1.916, 0.0425, 0.0462, -0.0193, 0.9923, 0.1328]
    np.testing.assert_allclose(fit.params[:6], expected, atol=6e-4)
    np.testing.assert_allclose(fit.sizes["gate"][0], 0.698, atol=5e-4)
    fit, _ = fitted("tone", "tuned ~ stretchratio | stretchratio", order="size")
    close(-fit.params[1, "gate"], [2.717, -0.805], fit.bse[1, "gate"])


def test_the_coefficients_of_co2():
    fit, _ = fitted("CO2", "CO2 ~ GNP", order="size")
    expected = [8.679, -0.0233, 2.049, 1.415, 0.6766, 0.809]
    np.testing.assert_allclose(fit.params[:6], expected, atol=6e-4)
    np.testing.assert_allclose(fit.sizes["gate"][0], 0.755, atol=5e-4)


def test_the_gate_of_no():
    fit, _ = fitted("NO", "Equivalence ~ NO | NO", order="NO")
    close(fit.params[1, "gate"], [-0.763, 0.416], fit.bse[1, "gate"])


def test_the_coefficients_of_patent():
    options = {"family": "poisson", "num_components": 3, "order": "size"}
    fit, _ = fitted("patent", "Patents ~ lgRD | RDS", **options)
    error = [0.161, 0.040, 0.626, 0.134, 0.177, 0.046]
    found = np.r_[tuple(fit.params[k, "Patents"] for k in range(3))]
    close(found, [0.509, 0.880, -2.635, 1.586, 1.962, 0.672], error)
    errors = np.r_[tuple(fit.bse[k, "Patents"] for k in range(3))]
    np.testing.assert_allclose(errors, error, rtol=0.02)
    for k, gate in ((1, [-2.88, 40.09]), (2, [-3.10, 40.84])):
        close(fit.params[k, "gate"], gate, fit.bse[k, "gate"])
    np.testing.assert_allclose(fit.bic, 437.836, atol=0.01)


def test_deaths_of_betablockers_by_center():
    """Grün and Leisch (2008): three intercepts of centers, and one effect of the treatment."""
    options = {"family": "binomial", "trials": "Total", "groups": "Center", "shared": ["Treatment"]}
    fit, _ = fitted(
        "betablocker", "Deaths ~ Treatment", num_components=3, order="Intercept", **options
    )
    expected = [-0.2582, -2.8337, -2.2502, -1.6097]
    found = [fit.params["all"].iloc[0], *fit.params[:, "Deaths", "Intercept"]]
    np.testing.assert_allclose(found, expected, atol=2e-3)
