"""The relaxed one-hot variable is Pyro's where that is finite, and finite everywhere."""

import pyro.distributions as dist
import pytest
import torch
from torch.testing import assert_close

from pyro_moe.distributions import RelaxedOneHotCategorical, one_hot_of

pytestmark = pytest.mark.usefixtures("double")
EXACT = {"rtol": 1e-9, "atol": 1e-12}
N, K = 6, 4


@pytest.mark.parametrize("temperature", [0.3, 1.0])
@pytest.mark.parametrize("by", ["logits", "probs"])
def test_it_samples_and_scores_as_pyros(temperature, by):
    given = {by: torch.rand(N, K) + 0.1}
    one = RelaxedOneHotCategorical(torch.tensor(temperature), **given)
    other = dist.RelaxedOneHotCategorical(torch.tensor(temperature), **given)
    torch.manual_seed(1)
    sample = one.rsample()
    torch.manual_seed(1)
    assert_close(sample, other.rsample(), **EXACT)
    assert_close(one.log_prob(sample), other.log_prob(sample), **EXACT)
    assert_close(one.log_prob(sample.detach().clone()), other.log_prob(sample), **EXACT)
    assert_close(one.logits, other.logits, **EXACT)
    assert_close(one.probs, other.probs, **EXACT)


@pytest.mark.parametrize("temperature", [1e-2, 1e-4])
def test_it_is_finite_where_samples_underflow(temperature):
    logits = (10.0 * torch.randn(N, K)).requires_grad_()
    c = RelaxedOneHotCategorical(torch.tensor(temperature), logits=logits)
    sample = c.rsample()
    assert (sample == 0).any()
    log_prob = c.log_prob(sample)
    assert log_prob.isfinite().all()
    log_prob.sum().backward()
    assert logits.grad.isfinite().all()


def test_bounded_log_odds_are_those_of_the_relaxed_variable_alone():
    logits, bound = 20.0 * torch.randn(N, K), 6.0
    c = RelaxedOneHotCategorical(torch.tensor(0.5), logits=logits, max_log_odds=bound)
    distance = logits.amax(-1, keepdim=True) - logits
    relaxed = -bound * (1.0 - (-distance / bound).exp())
    other = dist.RelaxedOneHotCategorical(torch.tensor(0.5), logits=relaxed)
    torch.manual_seed(1)
    sample = c.rsample()
    torch.manual_seed(1)
    assert_close(sample, other.rsample(), **EXACT)
    assert_close(c.log_prob(sample), other.log_prob(sample), **EXACT)
    assert_close(c.logits, logits.log_softmax(-1), **EXACT)
    assert_close(c.probs, logits.softmax(-1), **EXACT)


def test_a_wide_bound_changes_nothing():
    logits = torch.randn(N, K)
    wide = RelaxedOneHotCategorical(torch.tensor(0.5), logits=logits, max_log_odds=1e9)
    sample = wide.sample()
    without = RelaxedOneHotCategorical(torch.tensor(0.5), logits=logits)
    assert_close(wide.log_prob(sample), without.log_prob(sample), rtol=1e-6, atol=1e-6)


def test_a_larger_batch_is_of_the_same_kind():
    c = RelaxedOneHotCategorical(torch.tensor(0.5), logits=9.0 * torch.randn(K), max_log_odds=6.0)
    larger = c.expand([N])
    assert isinstance(larger, RelaxedOneHotCategorical)
    assert larger.batch_shape == (N,)
    assert larger.max_log_odds == 6.0
    sample = larger.sample()
    assert_close(larger.log_prob(sample), c.log_prob(sample), **EXACT)


@pytest.mark.parametrize("shape", [(3,), (4, 3), (5, 4, 3)])
def test_a_one_hot_variable_of_log_probabilities_is_that_of_torch(shape):
    logits = torch.randn(shape).log_softmax(-1)
    p, expected = one_hot_of(logits), dist.OneHotCategorical(logits=logits)
    assert (p.batch_shape, p.event_shape) == (expected.batch_shape, expected.event_shape)
    value = expected.sample()
    for other in (p, p.expand((2, *expected.batch_shape))):
        assert_close(other.log_prob(value), expected.log_prob(value).expand(other.batch_shape))
        assert_close(other.probs, expected.probs.expand_as(other.probs), **EXACT)
    torch.manual_seed(0)
    first = p.sample()
    torch.manual_seed(0)
    assert_close(first, expected.sample(), rtol=0, atol=0)
