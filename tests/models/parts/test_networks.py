import math

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from pyro_moe.models import MLP, AffineMaps, Standardize

pytestmark = pytest.mark.usefixtures("double")

each_batch = pytest.mark.parametrize("batch", [(), (5,), (2, 3)])


def test_mlp_is_the_formula():
    network, x = MLP(2, (4, 3), 5), torch.randn(7, 2)
    first, second, last = (layer for layer in network if isinstance(layer, torch.nn.Linear))
    h = (x @ first.weight.T + first.bias).clamp(min=0)
    h = (h @ second.weight.T + second.bias).clamp(min=0)
    assert_close(network(x), h @ last.weight.T + last.bias)
    assert (h == 0).any()


def test_mlp_without_hidden_layers_is_affine():
    network, x, y = MLP(2, (), 3), torch.randn(2), torch.randn(2)
    assert_close(network(0.3 * x + 0.7 * y), 0.3 * network(x) + 0.7 * network(y))


@each_batch
def test_mlp_takes_any_batch(batch):
    assert MLP(2, (4,), 3)(torch.zeros(*batch, 2)).shape == (*batch, 3)


# Units


def test_units_start_as_the_identity():
    x = torch.randn(5, 3)
    assert_close(Standardize(3)(x), x)


def test_robust_units_are_those_of_the_middle_whatever_wild_values_are():
    units, x = Standardize(2, robust=True), 3.0 * torch.randn(401, 2) + 7.0
    units.adapt(x)
    median, low, high = (torch.quantile(x, q, dim=0) for q in (0.5, 0.25, 0.75))
    assert_close(units.loc, median)
    assert_close(units.scale, (high - low) / 1.349)
    wild = x.clone()
    wild[x > high] = 1e6
    fitted = units.scale.clone()
    units.adapt(wild)
    assert_close(units.loc, median)
    assert_close(units.scale, fitted)


def test_robust_units_that_columns_share_are_the_root_mean_square_of_their_own():
    own, common = Standardize(3, robust=True), Standardize(3, robust=True, common=True)
    x = torch.randn(50, 3) * torch.tensor([1.0, 2.0, 5.0])
    own.adapt(x)
    common.adapt(x)
    assert_close(common.scale, own.scale.square().mean().sqrt().reshape(1))


def test_robust_units_of_a_column_whose_middle_half_is_one_value_are_those_of_all():
    x = torch.zeros(20, 1)
    x[:2] = 5.0
    units = Standardize(1, robust=True)
    units.adapt(x)
    assert_close(units.scale, x.std(0, correction=0))


def test_adapted_units_have_zero_mean_and_unit_scale():
    units, x = Standardize(3), torch.randn(50, 3) * torch.tensor([1.0, 1e-3, 1e4]) + 7.0
    units.adapt(x)
    assert_close(units(x).mean(0), torch.zeros(3), rtol=0, atol=1e-9)
    assert_close(units(x).std(0, correction=0), torch.ones(3))


def test_inverse_goes_back_to_the_units_of_the_data():
    units, x = Standardize(3), 5.0 * torch.randn(50, 3) + 7.0
    units.adapt(x)
    assert_close(units.inverse(units(x)), x)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("value", [0.0, 0.1, 0.7, 1000.1])
def test_a_constant_column_keeps_unit_scale(value, dtype):
    units = Standardize(1).to(dtype)
    units.adapt(torch.full((1000, 1), value, dtype=dtype))
    assert units.scale == 1.0


def test_a_single_row_keeps_unit_scale():
    units = Standardize(2)
    units.adapt(torch.tensor([[3.0, 4.0]]))
    assert_close(units.scale, torch.ones(2))
    assert_close(units.loc, torch.tensor([3.0, 4.0]))


def test_units_are_saved_but_not_learned():
    units = Standardize(2)
    assert not list(units.parameters())
    assert set(units.state_dict()) == {"loc", "scale", "varies"}


@pytest.mark.parametrize("unit", [1e-24, 1e-3, 1.0, 1e20])
@pytest.mark.parametrize("choices", [{}, {"common": True}, {"robust": True}])
def test_rows_in_another_unit_have_the_same_standard_units(unit, choices):
    x = torch.randn(40, 3) * torch.tensor([1.0, 2.0, 5.0]) + 1.0
    first, second = Standardize(3, **choices), Standardize(3, **choices)
    first.adapt(x)
    second.adapt(unit * x)
    assert_close(second(unit * x), first(x), rtol=1e-9, atol=1e-9)
    assert_close(second.scale / unit, first.scale, rtol=1e-9, atol=0)


def test_a_small_variation_of_a_large_number_is_resolved_in_double_precision():
    u = torch.randn(1000, 1)
    units, x = Standardize(1), 4e9 + 50.0 * u
    units.adapt(x)
    expected = (u - u.mean()) / u.std(correction=0)
    assert_close(units(x), expected, rtol=0, atol=1e-7)  # 4e9 has an error of 2.4e-7


@pytest.mark.parametrize("unit", [1e-24, 1e20])
def test_constants_of_single_precision_parameters_are_computed_in_double(unit):
    units, x = Standardize(1).float(), (unit * torch.randn(50, 1)).float()
    units.adapt(x)
    assert_close(units(x).std(correction=0), torch.tensor(1.0, dtype=torch.float32))


@pytest.mark.parametrize("choices", [{}, {"common": True}, {"robust": True}])
@pytest.mark.parametrize("value", [0.0, 0.1, -1e9])
def test_a_constant_column_is_zero_for_every_later_value(choices, value):
    units, x = Standardize(2, **choices), torch.randn(30, 2)
    x[:, 0] = value
    units.adapt(x)
    later = 1e3 * torch.randn(2, 5, 2)
    assert_close(units(x)[:, 0], torch.zeros(30), rtol=0, atol=0)
    assert_close(units(later)[..., 0], torch.zeros(2, 5), rtol=0, atol=0)
    assert (units(later)[..., 1] != 0).all()
    assert_close(units.inverse(torch.zeros(2))[0], torch.tensor(value))


# Affine maps


@pytest.fixture
def maps():
    """Maps of three columns far from standard units, and rows of these."""
    x = torch.randn(40, 3) * torch.tensor([1.0, 1e-3, 1e4]) + 7.0
    units = Standardize(3)
    units.adapt(x)
    return AffineMaps(3, 4, 2, units=units), x


def test_affine_maps_are_the_formula(maps):
    affine, x = maps
    u = affine.units(x) / math.sqrt(3)
    expected = torch.stack(
        [u @ v.T + b for v, b in zip(affine.weight, affine.bias, strict=True)], 1
    )
    assert_close(affine(x), expected)
    assert_close(affine(x.reshape(2, 20, 3)), expected.reshape(2, 20, 4, 2))


def test_affine_maps_start_with_outputs_of_the_same_size_whatever_the_inputs_number():
    spread = [AffineMaps(d, 2000, 1)(torch.randn(5, d)).std().item() for d in (2, 800)]
    np.testing.assert_allclose(spread, math.sqrt(1.25), rtol=0.35)  # five rows of random length


@pytest.mark.parametrize("zeros", [0, 20])
def test_least_squares_is_that_of_numpy_with_weights(maps, zeros):
    (affine, x), t, r = maps, torch.randn(40, 2), torch.rand(40, 4)
    r[:zeros] = 0.0
    residuals = affine.least_squares(x, t, r)[:]
    design = np.c_[x.numpy() / x.numpy().std(0), np.ones(40)]
    for k in range(4):
        root = np.sqrt(r[:, k].numpy())[:, None]
        solution = np.linalg.lstsq(design * root, t.numpy() * root, rcond=None)[0]
        expected = t.numpy() - design @ solution
        np.testing.assert_allclose(residuals[:, k].numpy(), expected, atol=1e-5)
    assert_close(residuals, t.unsqueeze(1) - affine(x).detach())


def test_least_squares_are_small_in_directions_that_no_row_shows():
    affine, x = AffineMaps(5, 1, 1), torch.randn(3, 5)
    t = torch.randn(3, 1)
    residuals = affine.least_squares(x, t, torch.ones(3, 1))[:]
    assert_close(residuals, torch.zeros_like(residuals), rtol=0, atol=1e-5)
    design = np.c_[x.numpy() / math.sqrt(5), np.ones(3)]
    shortest = np.linalg.lstsq(design, t.numpy()[:, 0], rcond=None)[0]
    got = np.r_[affine.weight.detach().numpy().ravel(), affine.bias.detach().numpy().ravel()]
    np.testing.assert_allclose(got, shortest, rtol=1e-3, atol=1e-4)


def test_a_map_without_rows_is_zero(maps):
    affine, x = maps
    affine.least_squares(x, torch.ones(40, 2), torch.tensor([0.0, 1.0, 1.0, 1.0]).expand(40, 4))
    assert_close(affine(x)[:, 0], torch.zeros(40, 2))
    assert_close(affine(x)[:, 1:], torch.ones(40, 3, 2), rtol=0, atol=1e-5)
