"""Arguments of `mixture` and of estimators that are refused in a line."""

import numpy as np
import pytest

from pyro_moe import mixture
from pyro_moe.estimators import MixtureOfExpertsRegressor


@pytest.mark.parametrize("number", [0, 1.5, "2", True])
@pytest.mark.parametrize("story", ["me", "deepmoe"])
def test_a_number_of_components_that_is_none(table, number, story):
    with pytest.raises(ValueError, match="expected a whole num_components of at least 1"):
        mixture("y ~ x | x", table, num_components=number, story=story)


def test_estimators_refuse_it_as_well(table):
    with pytest.raises(ValueError, match=r"whole num_components of at least 1; got 1.5"):
        MixtureOfExpertsRegressor(n_components=1.5).fit(table[["x"]], table["y"])


def test_one_quantile_is_a_number(table):
    fit = MixtureOfExpertsRegressor(n_components=2, epochs=2).fit(table[["x"]], table["y"])
    one, several = (fit.predict_quantiles(table[["x"]], q) for q in (0.5, [0.5]))
    assert one.shape == (len(table),)
    np.testing.assert_array_equal(one, several[:, 0])


def test_trials_of_other_families(table):
    with pytest.raises(ValueError, match="expected family='binomial' with trials; got 'poisson'"):
        mixture("count ~ x", table, family="poisson", trials="time")


def test_experts_without_columns(table):
    with pytest.raises(ValueError, match="expected experts with an intercept or columns; got none"):
        mixture("y ~ 0 | x", table)
