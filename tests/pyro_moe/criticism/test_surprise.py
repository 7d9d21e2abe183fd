"""P-values are exactly valid for data that are like the replicates, however many statistics."""

import math

import pytest
import torch
from torch.testing import assert_close

from pyro_moe.criticism.statistics import cramer_von_mises
from pyro_moe.criticism.surprise import (
    adjusted_p_values,
    allowing_for_estimates,
    predictive_p_values,
    standardized,
)

pytestmark = pytest.mark.usefixtures("double")
S, J = 99, 50
CLOSE = {"rtol": 1e-12, "atol": 1e-12}
REPEATS = 800


def normal(generator):
    """Statistics that hang together: a factor in all of them."""
    common = torch.randn(S + 1, 1, generator=generator)
    return 0.7 * common + torch.randn(S + 1, J, generator=generator)


def heavy_tailed(generator):
    """The same over a chi-square of two degrees of freedom, some of them squared."""
    chi2 = torch.randn(S + 1, J, 2, generator=generator).square().mean(-1)
    values = normal(generator) / chi2.sqrt()
    values[:, ::2] = values[:, ::2].square()
    return values


def with_constants(generator):
    values = normal(generator)
    values[:, :10] = 3.0
    values[:, 10:20] = (values[:, 10:20] > 2.5).double()  # hardly ever varies
    return values


def with_undefined(generator):
    values = heavy_tailed(generator)
    values[torch.rand(S + 1, J, generator=generator) < 0.2] = math.nan
    values[:, :3] = math.nan
    return values


STATISTICS = [normal, heavy_tailed, with_constants, with_undefined]


def least_p_values(make, p_values, repeats=REPEATS):
    generator = torch.Generator().manual_seed(0)
    samples = (make(generator) for _ in range(repeats))
    return torch.stack([p_values(*standardized(s[0], s[1:])).min() for s in samples])


@pytest.mark.parametrize("make", STATISTICS)
def test_the_least_adjusted_p_value_is_below_a_level_as_often_as_that(make):
    least = least_p_values(make, adjusted_p_values)
    for level in (0.01, 0.05, 0.2):
        error = math.sqrt(level * (1 - level) / REPEATS)
        rate = (least <= level + 1e-9).double().mean().item()
        assert rate <= level + 3 * error
        if make is not with_constants:  # whose maxima may be equal
            assert rate >= level - 3 * error


def test_the_least_p_value_that_is_not_adjusted_is_far_too_often_small():
    least = least_p_values(normal, predictive_p_values, repeats=100)
    assert (least <= 0.05).double().mean() > 0.5


@pytest.mark.parametrize("make", [normal, with_undefined])
def test_observed_data_is_treated_like_any_other(make):
    """Change places with a replicate, and the distances change places."""
    values = make(torch.Generator().manual_seed(0))
    first, others = standardized(values[0], values[1:])
    order = torch.arange(S + 1)
    order[[0, 30]] = order[[30, 0]]
    swapped, rest = standardized(values[order][0], values[order][1:])
    assert_close(swapped, others[29], **CLOSE)
    assert_close(rest[29], first, **CLOSE)


def test_distances_of_a_worked_example():
    observed, replicated = torch.tensor([8.0]), torch.tensor([[0.0], [1.0], [3.0]])
    t, others = standardized(observed, replicated)
    distances = torch.tensor([5.0, 3.0, 2.0, 0.0])  # from the mean, 3
    unit = distances.quantile(0.99)
    assert_close(t, distances[:1] / unit, **CLOSE)
    assert_close(others.squeeze(-1), distances[1:] / unit, **CLOSE)


def test_p_values_of_a_worked_example():
    t = torch.tensor([2.0, 1.0])
    others = torch.tensor([[2.0, 0.0], [1.0, 3.0], [1.0, 0.5], [0.0, 0.0]])
    assert predictive_p_values(t, others).tolist() == [2 / 5, 2 / 5]
    assert adjusted_p_values(t, others).tolist() == [3 / 5, 4 / 5]  # maxima 2, 3, 1, 0


def test_p_values_are_fractions_in_double_precision():
    """In single precision five of a hundred are more than five percent."""
    others = torch.arange(99.0, dtype=torch.float32).unsqueeze(-1)
    t = torch.tensor([95.0], dtype=torch.float32)
    torch.set_default_dtype(torch.float32)
    assert [p(t, others).item() for p in (predictive_p_values, adjusted_p_values)] == [0.05] * 2


def test_an_adjusted_p_value_is_never_the_smaller_one():
    values = heavy_tailed(torch.Generator().manual_seed(0))
    t = standardized(values[0], values[1:])
    assert (adjusted_p_values(*t) >= predictive_p_values(*t)).all()
    assert (adjusted_p_values(*t) > predictive_p_values(*t)).any()


def test_a_shift_of_one_statistic_of_fifty_is_found_and_named():
    values = normal(torch.Generator().manual_seed(0))
    values[0, 7] = 9.0
    p = adjusted_p_values(*standardized(values[0], values[1:]))
    assert p[7] == 1 / (S + 1)
    assert (p.argsort()[0], (p <= 0.05).sum()) == (7, 1)


# What estimates add


def test_estimates_spread_statistics_around_their_mean_and_multiply_squared_distances():
    replicated = torch.tensor([[0.0, 1.0], [2.0, 2.0], [4.0, 6.0]])
    allowed = allowing_for_estimates(replicated, 3.0, squared=torch.tensor([False, True]))
    assert allowed.tolist() == [[-2.0, 4.0], [2.0, 8.0], [6.0, 24.0]]


def test_fewer_rows_that_were_fitted_make_observed_data_less_surprising():
    values = normal(torch.Generator().manual_seed(0))
    squared = torch.zeros(J, dtype=torch.bool)
    p = [
        predictive_p_values(
            *standardized(values[0], allowing_for_estimates(values[1:], ratio, squared=squared))
        )
        for ratio in (0.0, 1.0, 15.0)
    ]
    assert torch.equal(p[0], predictive_p_values(*standardized(values[0], values[1:])))
    assert p[0].mean() < p[1].mean() < p[2].mean()


@pytest.mark.parametrize("num_fitted", [50, 200])
def test_with_what_they_add_estimates_raise_alarms_as_often_as_stated(num_fitted):
    """A normal of unknown mean and scale: means, scales, and distances of distributions."""
    number, repeats = 100, 1000
    generator = torch.Generator().manual_seed(1)
    squared = torch.tensor([False, False, True])

    def statistics(rows, mean, scale):
        distance = cramer_von_mises(torch.special.ndtr((rows - mean) / scale))
        return torch.stack([rows.mean(0), rows.std(0), distance], -1)

    alarms = {"with": 0, "without": 0}
    for _ in range(repeats):
        fitted = torch.randn(num_fitted, 1, generator=generator)
        mean, scale = fitted.mean(), fitted.std()
        made = mean + scale * torch.randn(number, S, generator=generator)
        observed = statistics(torch.randn(number, 1, generator=generator), mean, scale)[0]
        replicated = statistics(made, mean, scale)
        allowed = allowing_for_estimates(replicated, number / num_fitted, squared=squared)
        for name, others in (("with", allowed), ("without", replicated)):
            alarms[name] += bool(adjusted_p_values(*standardized(observed, others)).min() <= 0.05)
    error = (0.05 * 0.95 / repeats) ** 0.5
    assert alarms["with"] / repeats <= 0.05 + 3 * error
    assert alarms["without"] / repeats > 0.05 + 3 * error


# What is out of the ordinary


def test_what_no_replicate_ever_does_is_surprising():
    values = torch.zeros(S + 1, 1)
    values[0] = 1.0
    assert predictive_p_values(*standardized(values[0], values[1:])).item() == 1 / (S + 1)


@pytest.mark.parametrize("value", [math.inf, -math.inf])
def test_what_is_infinite_is_surprising_beside_finite_replicates(value):
    values = normal(torch.Generator().manual_seed(0))
    values[0, 3] = value
    p = adjusted_p_values(*standardized(values[0], values[1:]))
    assert p[3] == 1 / (S + 1)


def test_what_is_undefined_is_not_surprising():
    values = normal(torch.Generator().manual_seed(0))
    values[0, 3], values[1:, 4] = math.nan, math.nan
    t = standardized(values[0], values[1:])
    assert predictive_p_values(*t)[3:5].tolist() == [1.0, 1.0]
    assert all(part.isfinite().all() for part in t)
