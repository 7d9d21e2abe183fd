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
    HeteroscedasticNormalLikelihood,
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
        ("normal-heteroscedastic", HeteroscedasticNormalLikelihood),
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


# A variance that depends on z


def test_heteroscedastic_likelihood_is_scipys_normal_in_the_units_of_the_data():
    x = torch.randn(N, D) * torch.tensor([1.0, 1e-3, 1e4]) + 5.0
    likelihood = HeteroscedasticNormalLikelihood(
        nn.Identity(), adapted_units(x), initial_scale=0.4, min_scale=0.05
    )
    output = torch.randn(N, 2 * D)
    mean, sd = x.mean(0).numpy(), x.std(0, correction=0).numpy()
    loc, log_variance = output.numpy()[:, :D], output.numpy()[:, D:]
    scale = 0.05 + 0.4 * np.exp(log_variance / 2)
    expected = norm(mean + sd * loc, sd * scale).logpdf(x.numpy()).sum(-1)
    assert_close(likelihood(output).log_prob(x), torch.as_tensor(expected))


def test_a_floor_bounds_the_density_however_exact_the_fit():
    likelihood = HeteroscedasticNormalLikelihood(nn.Identity(), Standardize(D), min_scale=0.01)
    exact = torch.cat([torch.zeros(N, D), torch.full((N, D), -1e9)], -1)
    bound = D * norm(0.0, 0.01).logpdf(0.0)
    density = likelihood(exact).log_prob(torch.zeros(N, D))
    assert (density <= bound + 1e-9).all()
    assert_close(density, torch.full((N,), bound), rtol=1e-2, atol=0.0)


def test_a_decoder_without_variances_is_told_so():
    likelihood = HeteroscedasticNormalLikelihood(nn.Linear(2, D), Standardize(D))
    message = r"^expected a decoder to 6 numbers, a mean and a log-variance for each .*; got 3$"
    with pytest.raises(ValueError, match=message):
        likelihood(torch.zeros(N, 2))
