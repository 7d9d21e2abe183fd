"""Outliers: the check sees them in normal experts, and no more in Student-t ones."""

import pytest
import torch
from scipy import stats
from torch.testing import assert_close

from pyro_moe import criticism, evaluation
from pyro_moe.inference.programs import modules


@pytest.fixture(scope="module")
def example(load):
    return load("student_t")


@pytest.fixture(scope="module")
def fits(example):
    return example.fitted(example.readings(600, seed=1), epochs=100)


@pytest.fixture(scope="module")
def held_out(example):
    return example.readings(400, seed=2)


@pytest.fixture(scope="module")
def checks(fits, held_out):
    return {name: criticism.check(fit, held_out, num_replicates=100) for name, fit in fits.items()}


def test_normal_experts_do_not_have_such_tails(checks):
    surprises = checks["normal"].surprises()["statistic"]
    assert {"largest score", "log kurtosis of scores"} & set(surprises)


def test_student_t_experts_do(checks):
    assert checks["student_t"].surprises().empty


def test_new_rows_are_likelier_with_heavy_tails(fits, held_out):
    table = criticism.compare(fits, held_out)
    assert table.index.tolist() == ["student_t", "normal"]
    assert table["difference"].iloc[1] < -2 * table["difference_standard_error"].iloc[1]


def test_the_density_is_a_mixture_of_scipys(fits, held_out):
    fit = fits["student_t"]
    (story,) = modules(fit.programs.model)
    df = 2.0 + fit.parameters()["df"].exp()
    with torch.no_grad():
        gate, lines = story.gate(held_out.x).probs, story.experts(held_out.x).base_dist
    each = stats.t(df, lines.loc[..., 0], lines.scale[..., 0]).pdf(held_out.y)
    expected = torch.as_tensor((gate.numpy() * each).sum(-1)).log()
    density = evaluation.predict(fit, held_out.x).log_prob(held_out.y)
    assert_close(density, expected, rtol=1e-4, atol=1e-4)


def test_the_empty_guide_loses_nothing(fits, held_out):
    """The marginal ELBO is the log density, and the gate that of the module."""
    for fit in fits.values():
        (story,) = modules(fit.programs.model)
        density = evaluation.predict(fit, held_out.x).log_prob(held_out.y)
        assert_close(evaluation.elbo(fit, held_out), density, rtol=1e-4, atol=1e-4)
        gate = evaluation.gate(fit, held_out.x)
        assert_close(gate, story.gate(held_out.x).probs.detach(), rtol=1e-4, atol=1e-5)
