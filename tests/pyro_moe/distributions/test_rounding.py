import numpy as np
import pytest
import torch
from torch.testing import assert_close

from pyro_moe.distributions import rounding_error

ROOT = 12**0.5


def column(values, dtype=torch.float64):
    return torch.as_tensor(np.asarray(values), dtype=dtype).unsqueeze(-1)


def test_it_is_the_deviation_of_the_error_of_rounding():
    exact = 5.0 * torch.randn(20_000, 1, dtype=torch.float64)
    error = (exact.round() - exact).square().mean().sqrt()
    assert_close(rounding_error(exact.round()), error.reshape(1), rtol=4.5 / 20_000**0.5, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("step", [1e-3, 0.1, 0.25, 1.0, 5.0, 1e4])
@pytest.mark.parametrize("origin", [0.0, -3.0])
def test_the_step_of_a_grid_is_found(step, origin, dtype):
    values = origin * step + step * np.array([3, 4, 4, 6, 11, 3, 20])
    assert_close(rounding_error(column(values, dtype)) * ROOT, torch.tensor([step], dtype=dtype))


def test_values_with_one_decimal_are_on_a_grid_of_a_tenth():
    values = np.round(np.random.default_rng(0).normal(20.0, 1.0, 500), 1)
    assert rounding_error(column(values)).item() * ROOT == pytest.approx(0.1)


def test_the_grid_may_begin_anywhere():
    assert rounding_error(column([0.37, 1.37, 1.37, 4.37])).item() * ROOT == pytest.approx(1.0)


def test_values_without_ties_are_not_rounded():
    assert_close(rounding_error(column([1.0, 2.0, 3.0, 5.0])), torch.zeros(1).double())


def test_values_off_a_grid_are_not_rounded_whatever_ties_they_have():
    values = np.random.default_rng(0).normal(size=100)
    assert rounding_error(column(np.r_[values, values])).item() == 0.0


@pytest.mark.parametrize("value", [0.0, 0.1, 7.0])
def test_a_single_value_is_not_a_grid(value):
    assert rounding_error(column([value] * 5)).item() == 0.0
    assert rounding_error(column([value])).item() == 0.0


def test_each_column_is_by_itself():
    y = torch.cat([column([1, 2, 2, 4]), column([0.1, 0.7, 0.25, 0.9]), column([3] * 4)], -1)
    assert_close(rounding_error(y) * ROOT, torch.tensor([1.0, 0.0, 0.0]).double())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_it_is_finite_and_of_the_type_of_the_values(dtype):
    for y in (torch.zeros(3, 2), torch.ones(1, 2), torch.tensor([[1e30, 0.0], [-1e30, 0.0]] * 2)):
        error = rounding_error(y.to(dtype))
        assert error.dtype == dtype
        assert error.shape == (2,)
        assert error.isfinite().all()
        assert (error >= 0).all()
