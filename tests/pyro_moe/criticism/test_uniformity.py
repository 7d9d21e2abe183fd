"""The test of uniform ranks is exact: against every outcome there is."""

from itertools import product

import numpy as np
import pytest

from pyro_moe.criticism.posterior_calibration.uniformity import band, counts_below, p_value


def outcomes(num_ranks, num_draws):
    return [np.array(ranks) for ranks in product(range(num_draws + 1), repeat=num_ranks)]


@pytest.mark.parametrize(("num_ranks", "num_draws"), [(4, 3), (3, 5), (1, 4), (6, 1)])
def test_p_values_are_the_shares_of_outcomes_with_such_p_values_or_smaller(num_ranks, num_draws):
    p = np.array([p_value(ranks, num_draws) for ranks in outcomes(num_ranks, num_draws)])
    shares = [(p <= value + 1e-9).mean() for value in p]
    np.testing.assert_allclose(p, shares, atol=1e-12)


@pytest.mark.parametrize("level", [0.5, 0.9, 0.95])
def test_a_count_is_outside_the_band_just_where_the_p_value_is_small(level):
    low, high = band(4, 3, level)
    outside = []
    for ranks in outcomes(4, 3):
        counts = counts_below(ranks, 3)
        outside.append(bool(((counts < low) | (counts > high)).any()))
        assert outside[-1] == (p_value(ranks, 3) <= 1 - level + 1e-12)
    assert 0 < np.mean(outside) <= 1 - level


def test_counts_are_of_ranks_below():
    assert list(counts_below([0, 2, 2, 3], 3)) == [1, 1, 3]


@pytest.mark.parametrize(
    ("draw", "small"),
    [
        (lambda rng: rng.integers(0, 100, 200), False),
        (lambda rng: rng.binomial(99, rng.beta(1.6, 1.6, 200)), True),  # too wide a posterior
        (lambda rng: rng.binomial(99, rng.beta(0.6, 0.6, 200)), True),  # too narrow
        (lambda rng: rng.binomial(99, rng.beta(1.5, 1.0, 200)), True),  # too low
    ],
)
def test_ranks_that_are_not_uniform_are_found(draw, small):
    p = np.array([p_value(draw(np.random.default_rng(seed)), 99) for seed in range(40)])
    if small:
        assert np.median(p) < 0.01
    else:  # binomial: three standard errors above one in ten
        assert (p <= 0.1).mean() <= 0.1 + 3 * (0.09 / 40) ** 0.5


@pytest.mark.parametrize("ranks", [[-1, 0], [0, 10], []])
def test_an_impossible_rank_is_an_error(ranks):
    with pytest.raises(ValueError, match=r"expected ranks from 0 to 9; got \["):
        p_value(ranks, 9)
