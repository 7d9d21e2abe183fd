"""Columns that single precision does not resolve."""

import pytest
import torch

import pyro_moe
from pyro_moe import evaluation
from pyro_moe.models import ME, DeepMoE
from pyro_moe.validation import unresolved

N = 200


def columns(of):
    """A line with noise, in units that float32 does not resolve."""
    x = torch.randn(N, 1, dtype=torch.float64)
    y = x + 0.5 * torch.randn(N, 1, dtype=torch.float64)
    if of == "offset":
        return x, 4e9 + 50 * y
    return (x, 1e-24 * y) if of == "tiny" else (1e20 * x, y)


def deviation(x, y):
    """The residual deviation of least squares."""
    design = torch.cat([torch.ones_like(x), x / x.std()], 1)
    return (y - design @ torch.linalg.lstsq(design, y).solution).square().mean().sqrt().item()


@pytest.mark.parametrize("of", ["offset", "tiny", "large x"])
def test_em_has_the_residual_deviation_of_least_squares(of):
    x, y = columns(of)
    story = ME(1, 1, 1)
    fitted = pyro_moe.fit(story.model, story.guide, (x, y), prior="none", progress=False)
    found = evaluation.predict(fitted, x).variance.sqrt()
    assert found.dtype == torch.float64
    assert_all(found, deviation(x, y), rel=1e-3)


@pytest.mark.parametrize("of", ["offset", "tiny", "large x"])
def test_gradients_are_in_double_precision_where_it_is_needed(of):
    x, y = columns(of)
    story = DeepMoE(1, 1, 2, hidden=(4,))
    choices = {"epochs": 60, "learning_rate": 0.05, "prior": "weak", "progress": False}
    fitted = pyro_moe.fit(story.model, story.guide, (x, y), **choices)
    assert {p.dtype for p in fitted.parameters().values()} == {torch.float64}
    found = evaluation.predict(fitted, x).variance.sqrt().median()
    assert found.item() == pytest.approx(deviation(x, y), rel=0.3)


def test_gradients_stay_in_single_precision_where_it_is_enough():
    story = DeepMoE(1, 1, 2, hidden=(4,))
    x = torch.randn(N, 1, dtype=torch.float64)
    choices = {"epochs": 1, "prior": "weak", "progress": False}
    fitted = pyro_moe.fit(story.model, story.guide, (x, 2 * x), **choices)
    assert {p.dtype for p in fitted.parameters().values()} == {torch.float32}


def test_a_constant_column_is_no_reason():
    constant = torch.full((9, 1), 4e9, dtype=torch.float64)
    assert unresolved([constant], torch.float32) == []


def assert_all(found, expected, rel):
    assert found.min().item() == pytest.approx(expected, rel=rel)
    assert found.max().item() == pytest.approx(expected, rel=rel)
