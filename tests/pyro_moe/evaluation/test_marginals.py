"""Means, variances and distribution functions are scipy's, also of mixtures and stacks."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from scipy import stats
from torch.testing import assert_close

from pyro_moe import DataError
from pyro_moe.distributions.mixture import Mixture, Stacked
from pyro_moe.evaluation.marginals import cdf_of, families, has_classes, mean_of, variance_of

pytestmark = pytest.mark.usefixtures("double")
N, K, M = 4, 3, 2
CLOSE = {"rtol": 1e-10, "atol": 1e-12}


def normal():
    loc, scale = torch.randn(N, K, M), torch.rand(N, K, M) + 0.5
    return dist.Normal(loc, scale).to_event(1), stats.norm(loc, scale)


def full_normal():
    loc, tril = torch.randn(N, K, M), torch.randn(N, K, M, M).tril()
    tril.diagonal(dim1=-2, dim2=-1).abs_().add_(0.5)
    deviation = (tril @ tril.mT).diagonal(dim1=-2, dim2=-1).sqrt()
    return dist.MultivariateNormal(loc, scale_tril=tril), stats.norm(loc, deviation)


def student_t():
    df, loc, scale = 2.5 + torch.rand(K, 1), torch.randn(N, K, M), torch.rand(K, M) + 0.5
    return dist.StudentT(df, loc, scale).to_event(1), stats.t(df, loc, scale)


def poisson():
    rate = torch.rand(N, K, M) * 3
    return dist.Poisson(rate).to_event(1), stats.poisson(rate)


def negative_binomial():
    size, probs = 0.5 + torch.rand(K, 1), torch.rand(N, K, M)
    return dist.NegativeBinomial(size, probs=probs).to_event(1), stats.nbinom(size, 1.0 - probs)


def bernoulli():
    probs = torch.rand(N, K, M)
    return dist.Bernoulli(probs).to_event(1), stats.bernoulli(probs)


FAMILIES = {
    "normal": normal,
    "full-covariance normal": full_normal,
    "student-t": student_t,
    "poisson": poisson,
    "negative binomial": negative_binomial,
    "bernoulli": bernoulli,
}
MIXTURES = {
    "ours": Mixture,
    "torch's": lambda log_weights, components: dist.MixtureSameFamily(
        dist.Categorical(logits=log_weights), components
    ),
}
VALUES = (-1.0, -0.3, 0.0, 0.4, 1.0, 1.7, 2.0, 3.0, 25.0)
each_mixture = pytest.mark.parametrize("mixture", MIXTURES.values(), ids=MIXTURES.keys())


@pytest.fixture(params=FAMILIES)
def family(request):
    """N x K distributions of M columns, and scipy's of the same shape."""
    return FAMILIES[request.param]()


@dataclass
class Mixed:
    """A mixture by its definition, of scipy's distributions, along the last axis but one."""

    log_weights: torch.Tensor
    of: Any

    def _average(self, each):
        return (self.log_weights.softmax(-1).unsqueeze(-1).numpy() * each).sum(-2)

    def mean(self):
        return self._average(self.of.mean())

    def var(self):
        return self._average(self.of.var() + self.of.mean() ** 2) - self.mean() ** 2

    def cdf(self, value):
        return self._average(self.of.cdf(np.expand_dims(value, -2)))


def agrees(p, expected, batch_shape):
    """At values that differ by row and column, so that no axis can stand for another."""
    shape = torch.Size((*batch_shape, M))
    as_tensor = torch.as_tensor
    assert mean_of(p).shape == variance_of(p).shape == shape
    assert_close(mean_of(p), as_tensor(expected.mean()).expand(shape), **CLOSE)
    assert_close(variance_of(p), as_tensor(expected.var()).expand(shape), **CLOSE)
    for shift in range(len(VALUES)):
        value = torch.tensor(VALUES).roll(shift)[: N * M].reshape(N, *(1,) * (len(shape) - 2), M)
        below = cdf_of(p, value)
        assert_close(below, as_tensor(expected.cdf(value.numpy())).expand(shape), **CLOSE)
        assert below.dtype == torch.float64


def test_each_family_is_scipys(family):
    agrees(*family, (N, K))


@each_mixture
def test_a_mixture_is_its_definition(family, mixture):
    components, expected = family
    log_weights = torch.randn(N, K)
    agrees(mixture(log_weights, components), Mixed(log_weights, expected), (N,))


def test_a_mixture_may_choose_one_component(family):
    components, expected = family
    log_weights = torch.where(
        torch.arange(K) == torch.tensor([[0], [2], [1], [2]]), 0.0, -torch.inf
    )
    agrees(Mixture(log_weights, components), Mixed(log_weights, expected), (N,))


def test_components_may_be_shared_by_several_sets_of_weights():
    """As they are where c is enumerated: weights (5, 1, K) over components (N, K)."""
    components, expected = normal()
    log_weights = torch.randn(5, 1, K)
    p, value = Mixture(log_weights, components), torch.randn(N, M)
    by_hand = Mixed(log_weights, expected)
    assert_close(mean_of(p), torch.as_tensor(by_hand.mean()), **CLOSE)
    assert_close(variance_of(p), torch.as_tensor(by_hand.var()), **CLOSE)
    assert_close(cdf_of(p, value), torch.as_tensor(by_hand.cdf(value.numpy())), **CLOSE)


@each_mixture
def test_a_mixture_of_mixtures_is_one_of_all_their_components(mixture):
    """The K components of each mixture (N, 2, K), their weights multiplied."""
    first, second = normal(), normal()
    inner, outer = torch.randn(N, 2, K).log_softmax(-1), torch.randn(N, 2).log_softmax(-1)
    locs, scales = (
        torch.stack([getattr(p.base_dist, name) for p, _ in (first, second)], 1)
        for name in ("loc", "scale")
    )
    below = mixture(inner, dist.Normal(locs, scales).to_event(1))
    flat = Mixed(
        (outer.unsqueeze(-1) + inner).flatten(1),
        stats.norm(locs.flatten(1, 2), scales.flatten(1, 2)),
    )
    agrees(mixture(outer, below), flat, (N,))


@dataclass
class SideBySide:
    """Scipy's distributions along a new last axis but one."""

    of: list

    def __getattr__(self, name):
        return lambda *value: np.stack([self._read(q, name, *value) for q in self.of], -2)

    def _read(self, q, name, *value):
        return np.broadcast_to(getattr(q, name)(*(v[..., 0, :] for v in value)), (N, M))


def test_stacked_distributions_are_each_their_own():
    """A normal, a Student-t, and a mixture of three normals, which have but one support."""
    loc, scale, df = torch.randn(N, M), torch.rand(N, M) + 0.5, torch.tensor(3.0)
    components, expected = normal()
    log_weights = torch.randn(N, K)
    p = Stacked(
        [
            dist.Normal(loc, scale).to_event(1),
            dist.StudentT(df, loc, scale).to_event(1),
            Mixture(log_weights, components),
        ]
    )
    by_scipy = [stats.norm(loc, scale), stats.t(df, loc, scale), Mixed(log_weights, expected)]
    agrees(p, SideBySide(by_scipy), (N, 3))
    weights = torch.randn(N, 3)
    agrees(Mixture(weights, p), Mixed(weights, SideBySide(by_scipy)), (N,))


def test_targets_of_one_number_have_no_columns():
    loc = torch.randn(N, K)
    p = Mixture(torch.zeros(N, K), dist.Normal(loc, 2.0))
    value = torch.randn(N)
    expected = stats.norm(loc, 2.0).cdf(value.unsqueeze(-1)).mean(-1)
    assert mean_of(p).shape == variance_of(p).shape == (N,)
    assert_close(mean_of(p), loc.mean(-1), **CLOSE)
    assert_close(variance_of(p), 4.0 + loc.var(-1, correction=0), **CLOSE)
    assert_close(cdf_of(p, value), torch.as_tensor(expected), **CLOSE)
    stacked = Stacked([dist.Normal(loc[:, k], 2.0) for k in range(K)])
    below = cdf_of(stacked, value.unsqueeze(-1))
    assert_close(below.mean(-1), torch.as_tensor(expected), **CLOSE)


def test_below_zero_there_are_no_counts_and_above_one_all_answers():
    value = torch.tensor([-1.0, -1e-9, 0.0, 0.999, 1.0, 7.0])
    below = cdf_of(dist.Poisson(2.0), value)
    assert_close(below, torch.as_tensor(stats.poisson(2.0).cdf(value)), **CLOSE)
    expected = torch.tensor([0.0, 0.0, 0.7, 0.7, 1.0, 1.0])
    assert_close(cdf_of(dist.Bernoulli(0.3), value), expected, **CLOSE)


# Classes

PROBS = torch.tensor([[0.2, 0.3, 0.5], [0.6, 0.4, 0.0]], dtype=torch.float64)
CLASSES = {
    "one": (lambda: dist.Categorical(PROBS), PROBS),
    "a mixture": (
        lambda: Mixture(torch.tensor([0.25, 0.75]).log(), dist.Categorical(PROBS)),
        PROBS.T @ torch.tensor([0.25, 0.75], dtype=torch.float64),
    ),
    "a stack of mixtures": (
        lambda: Stacked(
            [
                Mixture(torch.tensor([[0.25, 0.75]]).log(), dist.Categorical(PROBS)),
                dist.Categorical(PROBS[:1]),
            ]
        ),
        torch.stack([PROBS.T @ torch.tensor([0.25, 0.75], dtype=torch.float64), PROBS[0]])[None],
    ),
}


@pytest.mark.parametrize(("make", "probs"), CLASSES.values(), ids=CLASSES.keys())
def test_the_mean_of_classes_is_their_probabilities(make, probs):
    p = make()
    assert has_classes(p)
    assert_close(mean_of(p), probs, **CLOSE)
    assert_close(variance_of(p), probs * (1 - probs), **CLOSE)


@pytest.mark.parametrize("make", [make for make, _ in CLASSES.values()], ids=CLASSES.keys())
def test_classes_have_no_distribution_function(make):
    with pytest.raises(DataError) as caught:
        cdf_of(make(), torch.zeros(1, 2))
    expected = "expected a target with a distribution function; got Categorical"
    assert str(caught.value) == expected


def test_a_family_whose_distribution_function_torch_lacks_is_named():
    with pytest.raises(DataError, match="a distribution function; got Beta"):
        cdf_of(Mixture(torch.zeros(2), dist.Beta(torch.ones(2), 2.0)), torch.tensor(0.5))


def test_families_are_those_at_the_leaves():
    p = Stacked(
        [
            Mixture(torch.zeros(N, K), normal()[0]),
            dist.StudentT(3.0, torch.zeros(N, M)).to_event(1),
        ]
    )
    assert [type(leaf) for leaf in families(p)] == [dist.Normal, dist.StudentT]
    assert not has_classes(p)
