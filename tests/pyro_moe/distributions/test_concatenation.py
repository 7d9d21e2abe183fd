"""Distributions of batches of rows are joined to that of all rows."""

import pyro.distributions as dist
import pytest
import torch
from torch.testing import assert_close

from pyro_moe.distributions import Mixture, Stacked, concatenate

K, M = 3, 2
SIZES = (2, 5, 1)
FAMILIES = {
    "normal": lambda n: dist.Normal(torch.randn(n, K, M), 1.0).to_event(1),
    "multivariate": lambda n: dist.MultivariateNormal(
        torch.randn(n, K, M), scale_tril=torch.tensor([[1.0, 0.0], [0.5, 2.0]])
    ),
    "student-t": lambda n: dist.StudentT(torch.rand(K, 1) + 3.0, torch.randn(n, K, M)).to_event(1),
    "categorical": lambda n: dist.Categorical(logits=torch.randn(n, K, 4)),
    "bernoulli": lambda n: dist.Bernoulli(logits=torch.randn(n, K, M)).to_event(1),
    "poisson": lambda n: dist.Poisson(torch.rand(n, K, M)).to_event(1),
    "counts": lambda n: dist.NegativeBinomial(torch.rand(K, M), torch.rand(n, K, M)).to_event(1),
    "mixture": lambda n: Mixture(
        torch.randn(n, K, 4), dist.Normal(torch.randn(n, K, 4, M), 1.0).to_event(1)
    ),
    "stacked": lambda n: Stacked(
        [
            dist.Normal(torch.randn(n), 1.0),
            dist.Laplace(torch.randn(n), 2.0),
            dist.Normal(0.0, torch.ones(n)),
        ]
    ),
}


@pytest.mark.parametrize("name", FAMILIES)
def test_a_joined_distribution_has_the_density_of_its_parts(name):
    parts = [FAMILIES[name](n) for n in SIZES]
    whole = concatenate(parts, 0)
    assert type(whole) is type(parts[0])
    assert whole.batch_shape == (sum(SIZES), K)
    assert whole.event_shape == parts[0].event_shape
    values = [part.sample() for part in parts]
    expected = torch.cat([part.log_prob(value) for part, value in zip(parts, values, strict=True)])
    assert_close(whole.log_prob(torch.cat(values)), expected)


def test_rows_may_be_the_second_dimension():
    parts = [dist.Normal(torch.randn(K, n), 1.0) for n in SIZES]
    whole = concatenate(parts, 1)
    assert_close(whole.mean, torch.cat([part.mean for part in parts], 1))


def test_one_part_is_the_whole_and_an_unknown_family_is_none():
    part = dist.Weibull(torch.ones(2), torch.ones(2))
    assert concatenate([part], 0) is part
    assert concatenate([part, part], 0) is None
