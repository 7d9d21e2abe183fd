import numpy as np
import pyro.distributions as dist
import pytest
import torch
from scipy import stats
from torch.testing import assert_close

from pyro_moe.distributions import (
    ContinuousBernoulli,
    Mixture,
    MultivariateNormal,
    NegativeBinomial,
    Normal,
    Poisson,
    Stacked,
    StudentT,
    in_double,
    is_precise,
    log_probabilities_of,
    rounded,
)
from pyro_moe.distributions.double import parameters_of


def single(*values):
    return torch.tensor(values, dtype=torch.float32)


LARGE = single(1e5, 1e6, 1e7, 1e8, 1e9)
LOGITS = single(-15.0, -3.0, -0.01, -0.0039, -1e-6, 0.0, 1e-5, 0.004, 0.1, 8.0, 15.0)
FAMILIES = {
    "normal": Normal(single(1e5, -3.0), single(0.1, 2.0)),
    "full normal": MultivariateNormal(single(1e4, 2e4), scale_tril=torch.eye(2).float()),
    "student-t": StudentT(single(3.0, 1e6), single(0.0, 1e5), single(1.0, 0.1)),
    "poisson": Poisson(single(0.5, 1e8)),
    "negative binomial": NegativeBinomial(single(5.0, 1e6), logits=single(0.0, 3.0)),
    "continuous bernoulli": ContinuousBernoulli(logits=single(0.0, 12.0)),
}


@pytest.mark.parametrize("deviations", [-4.0, 0.0, 3.0])
def test_poisson_densities_of_large_counts_are_scipys(deviations):
    rate = LARGE.double().numpy()
    count = np.round(rate + deviations * np.sqrt(rate))
    got = Poisson(LARGE).log_prob(torch.as_tensor(count))
    np.testing.assert_allclose(got, stats.poisson.logpmf(count, rate), rtol=0, atol=2e-6)


@pytest.mark.parametrize("size", [0.5, 10.0, 1e5, 1e8])
def test_negative_binomial_densities_of_large_counts_are_scipys(size):
    p = NegativeBinomial(single(size), logits=(LARGE / size).log())
    probs = torch.sigmoid(-p.logits.double()).numpy()
    count = np.round(p.mean.double().numpy())
    expected = stats.nbinom.logpmf(count, size, probs)
    np.testing.assert_allclose(p.log_prob(torch.as_tensor(count)), expected, rtol=1e-7, atol=1e-4)


@pytest.mark.parametrize("df", [1.0, 30.0, 1e4, 1e6, 1e8])
def test_student_t_densities_of_many_degrees_of_freedom_are_scipys(df):
    value = single(-9.0, 0.0, 2.5)
    got = StudentT(single(df), single(0.3), single(0.2)).log_prob(value)
    exact = stats.t(df, *single(0.3, 0.2).double().numpy()).logpdf(value.double().numpy())
    np.testing.assert_allclose(got, exact, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("value", [0.0, 0.25, 1.0])
def test_continuous_bernoulli_densities_are_their_closed_form(value):
    r"""log C = log [l / tanh(l / 2)] with l the logit, which does not cancel anywhere."""
    logits = LOGITS.double()
    log_c = torch.where(logits == 0, np.log(2.0), (logits / torch.tanh(logits / 2)).log())
    expected = value * logits - torch.nn.functional.softplus(logits) + log_c
    got = ContinuousBernoulli(logits=LOGITS).log_prob(torch.full_like(LOGITS, value))
    assert_close(got.double(), expected, rtol=2e-7, atol=2e-7)


@pytest.mark.parametrize("correlation", [0.0, 0.999, -0.99999])
def test_full_normals_are_scipys(correlation):
    tril = torch.tensor([[1.0, 0.0], [correlation, (1 - correlation**2) ** 0.5]]).float()
    loc, value = single(1e4, 1e4), single(1e4 + 0.5, 1e4 - 3.0)
    exact = tril.double().numpy()
    expected = stats.multivariate_normal(loc.double(), exact @ exact.T).logpdf(value.double())
    got = MultivariateNormal(loc, scale_tril=tril).log_prob(value)
    assert got.item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("name", FAMILIES)
def test_parameters_samples_and_moments_keep_their_type(name):
    p = FAMILIES[name]
    expanded = p.expand((3, *p.batch_shape))
    for q in (p, expanded):
        assert q.sample().dtype == q.mean.dtype == torch.float32
        density = q.log_prob(q.sample())
        assert density.dtype == torch.float32
        assert density.shape == q.batch_shape
    assert type(expanded) is type(p)


@pytest.mark.parametrize("name", FAMILIES)
def test_of_parameters_in_double_it_is_pyros_density(name):
    p = in_double(FAMILIES[name])
    value = p.sample()
    assert value.dtype == torch.float64
    pyros = getattr(dist, type(p).__name__)(**parameters_of(p))
    assert_close(p.log_prob(value), pyros.log_prob(value), rtol=0, atol=0)


def test_a_rounded_distribution_has_the_density_of_its_exact_parameters():
    exact = Normal(torch.tensor([1e8 + 1.0, 0.0]).double(), torch.tensor([1.0, 2.0]).double())
    p = rounded(exact, torch.float32)
    value = single(1e8, 1.0)
    for q, of in ((p, exact), (p.expand((3, 2)), exact.expand((3, 2)))):
        assert q.loc.dtype == q.sample().dtype == torch.float32
        assert_close(q.log_prob(value), of.log_prob(value).float())
        assert_close(in_double(q).loc, of.loc, rtol=0, atol=0)
    assert rounded(exact, torch.float64) is exact
    assert not is_precise(p)
    assert is_precise(exact)


def test_gradients_reach_the_parameters_in_their_type():
    rate = single(1e6, 2e6).requires_grad_()
    Poisson(rate).log_prob(single(1e6 + 500.0, 2e6)).sum().backward()
    assert_close(rate.grad, single(500.0 / 1e6, 0.0), rtol=1e-5, atol=1e-9)


def test_the_support_is_checked_where_arguments_are():
    with pytest.raises(ValueError, match="within the support"):
        Poisson(single(1.0), validate_args=True).log_prob(single(-1.0))
    assert not Poisson(single(1.0), validate_args=False).log_prob(single(-1.0)).isfinite()


def test_any_nest_of_distributions_is_converted():
    normal = dist.Normal(torch.zeros(4, 3, 2).float(), 1.0).to_event(1)
    laplace = dist.Laplace(torch.zeros(4, 2).float(), 1.0).to_event(1)
    for p in (
        normal,
        Mixture(torch.zeros(4, 3).float(), normal),
        Stacked([laplace, laplace]),
        dist.MixtureSameFamily(dist.Categorical(torch.ones(4, 3).float()), normal),
    ):
        assert not is_precise(p)
        precise = in_double(p)
        assert is_precise(precise)
        assert (precise.batch_shape, precise.event_shape) == (p.batch_shape, p.event_shape)
        value = p.sample()
        assert precise.log_prob(value.double()).dtype == torch.float64
        assert_close(precise.log_prob(value.double()).float(), p.log_prob(value))


def test_a_family_that_is_not_known_stays_as_it_is():
    p = dist.VonMises(single(0.0), single(1.0))
    assert in_double(p) is p
    assert in_double(p.to_event(1)).base_dist is p
    assert is_precise(p)


def test_given_probabilities_are_not_clamped():
    """PyTorch's logits of probabilities are those of at least 1e-7."""
    p = dist.Categorical(single(1.0, 1e-30, 0.0))
    expected = single(0.0, np.log(1e-30), -np.inf)
    assert_close(log_probabilities_of(p), expected)
    assert p.logits[1] > -17
    assert_close(log_probabilities_of(p), expected)  # also after the logits were computed
    of_logits = dist.Categorical(logits=single(0.0, -200.0))
    assert of_logits.probs[1] == 0
    assert_close(log_probabilities_of(of_logits), single(0.0, -200.0))


def test_a_mixture_is_a_choice_only_if_the_other_weights_are_zero():
    components = dist.Normal(single(0.0, 1.0), 1.0)
    assert not Mixture(single(0.0, -200.0), components).is_choice
    assert Mixture(single(0.0, -np.inf), components).is_choice


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("factors", [1, 3])
@pytest.mark.parametrize("shift", [0.0, 1e8])
def test_rows_under_each_of_several_normals_are_scored_as_one_by_one(factors, shift):
    loc, x = shift + 4.0 * torch.randn(3, 2), shift + 4.0 * torch.randn(50, 2)
    factor = torch.eye(2) + torch.randn(factors, 2, 2).tril(-1)
    got = MultivariateNormal(loc, scale_tril=factor).log_prob(x.unsqueeze(1))
    each = zip(loc, factor.expand(3, 2, 2), strict=True)
    expected = [dist.MultivariateNormal(m, scale_tril=f).log_prob(x) for m, f in each]
    assert_close(got, torch.stack(expected, -1), rtol=1e-10, atol=1e-10)


@pytest.mark.usefixtures("double")
def test_the_gradients_of_rows_under_each_normal_are_those_of_pyro():
    loc, x = torch.randn(3, 2), torch.randn(5, 2)
    factor = torch.eye(2) + torch.randn(3, 2, 2).tril(-1)
    gradients = []
    for family in (MultivariateNormal, dist.MultivariateNormal):
        given = [part.clone().requires_grad_() for part in (loc, factor, x)]
        p = family(given[0], scale_tril=given[1])
        (p.log_prob(given[2].unsqueeze(1)) * torch.arange(3.0)).sum().backward()
        gradients.append([part.grad for part in given])
    assert_close(*gradients, rtol=1e-10, atol=1e-10)
