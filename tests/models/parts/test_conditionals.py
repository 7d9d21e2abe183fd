import numpy as np
import pytest
import torch
from scipy.stats import bernoulli, norm
from torch import nn
from torch.testing import assert_close

from pyro_moe.models import (
    BernoulliLikelihood,
    CategoricalConditional,
    ContinuousBernoulliLikelihood,
    NormalConditional,
    NormalLikelihood,
    Standardize,
)
from pyro_moe.models.parts.conditionals import likelihood_of

pytestmark = pytest.mark.usefixtures("double")
N, D = 6, 3


def adapted_units(x):
    units = Standardize(D)
    units.adapt(x)
    return units


def test_normal_conditional_splits_its_network_into_mean_and_log_scale():
    context = torch.randn(N, 2 * D)
    q = NormalConditional(nn.Identity(), initial_scale=0.3)(context)
    assert_close(q.mean, context[:, :D])
    assert_close(q.stddev, 0.3 * context[:, D:].exp())
    assert q.batch_shape == (N,)
    assert q.event_shape == (D,)


def test_normal_likelihood_is_a_density_in_the_units_of_the_data():
    x = torch.randn(N, D) * torch.tensor([1.0, 1e-3, 1e4]) + 5.0
    units = adapted_units(x)
    likelihood = NormalLikelihood(nn.Identity(), units, initial_scale=0.4)
    f = torch.randn(N, D)
    scale = x.std(0, correction=0)
    u, s = ((x - x.mean(0)) / scale).numpy(), scale.numpy()
    expected = (norm(f.numpy(), 0.4).logpdf(u) - np.log(s)).sum(-1)  # change of variables
    assert_close(likelihood(f).log_prob(x).detach(), torch.as_tensor(expected))


def test_normal_likelihood_has_one_learned_scale_a_dimension():
    likelihood = NormalLikelihood(nn.Identity(), Standardize(D))
    with torch.no_grad():
        likelihood.log_scale.copy_(torch.tensor([0.0, 1.0, 2.0]))
    expected = torch.tensor([0.0, 1.0, 2.0]).exp().expand(N, D)
    assert_close(likelihood(torch.randn(N, D)).stddev, expected)
    likelihood.reset_parameters()
    assert_close(likelihood(torch.randn(N, D)).stddev, torch.full((N, D), 0.1))


def test_bernoulli_likelihood_is_a_product_of_bernoullis():
    f, x = torch.randn(N, D), torch.randint(2, (N, D)).double()
    expected = bernoulli(f.sigmoid().numpy()).logpmf(x.numpy()).sum(-1)
    got = BernoulliLikelihood(nn.Identity())(f).log_prob(x)
    assert_close(got, torch.as_tensor(expected))


@pytest.mark.parametrize("logit", [-20.0, -3.0, -0.01, 0.0, 1e-4, 0.5, 8.0, 20.0])
def test_continuous_bernoulli_likelihood_integrates_to_one(logit):
    nodes, weights = np.polynomial.legendre.leggauss(100)
    grid = torch.as_tensor((nodes[:, None] + 1) / 2)
    density = ContinuousBernoulliLikelihood(nn.Identity())(torch.tensor([logit]))
    integral = (density.log_prob(grid).exp() * torch.as_tensor(weights / 2)).sum()
    assert integral.item() == pytest.approx(1.0, rel=1e-6)


def test_continuous_bernoulli_likelihood_is_the_formula():
    f, x = torch.randn(N, D), torch.rand(N, D)
    lam = (15.0 * (f / 15.0).tanh()).sigmoid()
    log_c = (2 * torch.atanh(1 - 2 * lam) / (1 - 2 * lam)).log()
    expected = (log_c + x * lam.log() + (1 - x) * (1 - lam).log()).sum(-1)
    assert_close(ContinuousBernoulliLikelihood(nn.Identity())(f).log_prob(x), expected)


def test_categorical_conditional_is_the_softmax():
    logits = torch.randn(N, D)
    q = CategoricalConditional(nn.Identity())(logits)
    assert_close(q.probs, logits.exp() / logits.exp().sum(-1, keepdim=True))
    assert q.event_shape == (D,)


@pytest.mark.parametrize("batch", [(), (N,), (4, N)])
@pytest.mark.parametrize("name", ["normal", "bernoulli", "continuous-bernoulli"])
def test_likelihoods_take_any_batch(name, batch):
    p = likelihood_of(name, nn.Linear(2, D), Standardize(D))(torch.zeros(*batch, 2))
    assert p.batch_shape == batch
    assert p.event_shape == (D,)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("normal", NormalLikelihood),
        ("bernoulli", BernoulliLikelihood),
        ("continuous-bernoulli", ContinuousBernoulliLikelihood),
    ],
)
def test_likelihood_by_name(name, expected):
    network = nn.Linear(2, D)
    likelihood = likelihood_of(name, network, Standardize(D))
    assert type(likelihood) is expected
    assert likelihood.network is network


def test_an_unknown_likelihood_is_an_error():
    with pytest.raises(ValueError, match=r"expected likelihood in .*'normal'.*; got 'gamma'"):
        likelihood_of("gamma", nn.Linear(2, D), Standardize(D))
