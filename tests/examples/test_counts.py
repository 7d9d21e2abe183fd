"""Counts: the check sees negative ones, then overdispersion, and then nothing."""

import pytest
import torch
from scipy import stats
from torch.testing import assert_close

from pyro_moe import criticism, evaluation
from pyro_moe.inference.programs import modules


@pytest.fixture(scope="module")
def example(load):
    return load("counts")


@pytest.fixture(scope="module")
def fits(example):
    return example.fitted(example.calls(600, seed=1), epochs=40)


@pytest.fixture(scope="module")
def held_out(example):
    return example.calls(400, seed=2)


@pytest.fixture(scope="module")
def checks(example, fits, held_out):
    own = {"y": {"negative": example.negative}}
    return {
        name: criticism.check(fit, held_out, statistics=own, num_replicates=100)
        for name, fit in fits.items()
    }


def test_normal_counts_would_be_negative(checks):
    assert "negative" in checks["normal"].surprises()["statistic"].tolist()


def test_poisson_counts_would_vary_less(checks):
    surprises = checks["poisson"].surprises().set_index("statistic")
    assert "negative" not in surprises.index
    spread = surprises.loc[["standard deviation of scores"]]
    assert (spread["observed"] > spread["replicated"]).all()


def test_overdispersed_counts_are_like_these(checks):
    assert checks["negative_binomial"].surprises().empty


def test_new_rows_are_likeliest_with_overdispersion(fits, held_out):
    table = criticism.compare(fits, held_out)
    assert table.index[0] == "negative_binomial"
    assert (table["difference"][1:] < -3 * table["difference_standard_error"][1:]).all()


def test_the_density_is_a_mixture_of_scipys(fits, held_out):
    fit = fits["negative_binomial"]
    (story,) = modules(fit.programs.model)
    size = fit.parameters()["size"].exp()
    with torch.no_grad():
        gate, rate = story.gate(held_out.x).probs, story.experts(held_out.x).base_dist.rate
    rate = rate[..., 0]
    each = torch.as_tensor(stats.nbinom(size, size / (size + rate)).pmf(held_out.y))
    prediction = evaluation.predict(fit, held_out.x)
    density = prediction.log_prob(held_out.y)
    assert_close(density, (gate * each).sum(-1).log(), rtol=1e-6, atol=1e-6)
    mean = (gate * rate).sum(-1)
    within = (gate * (rate + rate.square() / size)).sum(-1)
    assert_close(prediction.mean.squeeze(-1), mean.double(), rtol=1e-4, atol=1e-4)
    assert_close(prediction.within.squeeze(-1), within.double(), rtol=1e-4, atol=1e-4)


def test_calls_vary_more_than_poisson_ones(example):
    """By a gamma variable of size 3: the variance is rate + rate² / 3."""
    rows = example.calls(200_000, seed=0)
    y = rows.y[(rows.x > 0.95)].double()  # busy but for one in a hundred, at a rate of exp 2.99
    mean, variance = y.mean().item(), y.var().item()
    error = (6.0 / len(y)) ** 0.5  # of a variance, relative; a gamma of size 3 has kurtosis 5
    assert abs(variance / (mean + mean**2 / 3) - 1) < 4.5 * error
    assert variance > 5 * mean
