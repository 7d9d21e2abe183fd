"""Values far from all others, and targets on a grid."""

import warnings

import numpy as np
import pytest
import torch

import pyro_moe
from pyro_moe import DataError, DataWarning
from pyro_moe.models import GMM, ME
from pyro_moe.validation.columns import check_rounding, far_row

seeds = pytest.mark.parametrize("seed", range(5))


@seeds
@pytest.mark.parametrize("value", [1e6, -1e6, -999.0, 9999.0])
def test_a_value_far_from_all_others_is_found(seed, value):
    column = np.random.default_rng(seed).normal(size=200)
    column[17] = value
    assert far_row(column) == 17


@seeds
@pytest.mark.parametrize("share", [0.02, 0.3])
def test_a_code_of_nines_may_have_many_rows(seed, share):
    column = np.random.default_rng(seed).normal(size=200)
    coded = np.random.default_rng(seed).random(200) < share
    assert far_row(np.where(coded, -999.0, column)) == coded.argmax()
    assert far_row(np.where(coded, -999.5, column)) is None  # a cluster


@seeds
@pytest.mark.parametrize("num_rows", [10, 100, 1000, 10000])
def test_nothing_is_far_in_heavy_tails_or_clusters(seed, num_rows):
    random = np.random.default_rng(seed)
    normal = random.normal(size=num_rows)
    clusters = normal + 1000.0 * (np.arange(num_rows) % 2)
    for column in (normal, clusters, np.exp(normal), random.standard_t(3, size=num_rows)):
        assert far_row(column) is None


def test_missing_and_equal_values_are_not_far():
    assert far_row(np.array([np.nan, 1.0, 2.0, np.nan, 3.0, 2.0])) is None
    assert far_row(np.array([np.nan, 1e6, 1.0, 2.0, 3.0, 2.0])) == 1
    assert far_row(np.ones(9)) is None
    assert far_row(np.array([0.0, 0.0, 0.0, 5.0])) is None  # the others have no range


def test_fit_warns_of_far_values_in_x_and_y():
    x, y = torch.randn(50, 2), torch.randn(50, 1)
    choices = {"epochs": 1, "prior": "weak", "progress": False}
    story = GMM(2, 1)
    x[3, 1] = -999.0
    with pytest.warns(
        DataWarning, match="got -999 in row 3 of the fitted rows, column 'x1'"
    ) as seen:
        pyro_moe.fit(story.model, story.guide, x, **choices)
    assert seen[0].filename == __file__
    y[7] = 1e6
    story = ME(2, 1, 1)
    with pytest.warns(DataWarning, match="got 1e.06 in row 7 of the fitted rows, column 'y'"):
        pyro_moe.fit(story.model, story.guide, (x.clamp(-5, 5), y), **choices)


@pytest.mark.parametrize("unit", [1e-300, 1e-155, 1e200])
def test_units_whose_squares_no_number_can_hold_are_refused(unit):
    x = torch.randn(50, 2).double() * torch.tensor([1.0, unit], dtype=torch.float64)
    story = ME(2, 1, 1)
    with pytest.raises(
        DataError, match=r"of x between 1e-150 and 1e.150 .* in column 'x1': change"
    ):
        pyro_moe.fit(story.model, story.guide, (x, x[:, 0]), prior="weak", progress=False)


@pytest.mark.parametrize("unit", [1e-140, 1e140])
def test_any_other_unit_changes_nothing(unit):
    x = torch.randn(50, 2).double()
    fits = []
    for scaled in (x, x * torch.tensor([1.0, unit], dtype=torch.float64)):
        story = ME(2, 1, 1)
        y = x.sum(-1) + torch.linspace(-1, 1, 50)
        fit = pyro_moe.fit(story.model, story.guide, (scaled, y), prior="weak", progress=False)
        fits.append(pyro_moe.evaluation.predict(fit, scaled).mean)
    torch.testing.assert_close(*fits)


# Rounding


def test_targets_on_a_grid_are_told_with_its_step():
    y = (3 * torch.randn(500, 1)).round() / 4
    with pytest.warns(DataWarning, match=r"steps of 0.25 in column 0 of y: .* add -1.386"):
        check_rounding(y)


@pytest.mark.parametrize("step", [0.0, 0.01, 0.1])
def test_targets_with_hardly_any_rounding_pass(step):
    y = torch.randn(500, 1, dtype=torch.float64)
    check_rounding(y if step == 0 else (y / step).round() * step)  # h/√12 < 0.05


@pytest.mark.parametrize(("experts", "warns"), [("normal", 1), ("poisson", 0), ("categorical", 0)])
def test_only_densities_are_warned_of_rounding(experts, warns):
    x, y = torch.randn(60, 1), torch.arange(60) % 3
    story = ME(1, 3 if experts == "categorical" else 1, 1, experts=experts)
    y = y if experts == "categorical" else y[:, None].float()
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        pyro_moe.fit(story.model, story.guide, (x, y), epochs=1, prior="weak", progress=False)
    assert len([each for each in seen if "few ties" in str(each.message)]) == warns
