import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch.distributions import Categorical, kl_divergence
from torch.testing import assert_close

from pyro_moe.distributions import MAX_LOG_ODDS, RelaxedOneHotCategorical
from pyro_moe.inference.context import running
from pyro_moe.inference.handlers import (
    CategoricalKL,
    Discretize,
    Enumerate,
    EnumerateInParallel,
    Relax,
    log_probabilities,
)
from pyro_moe.inference.handlers.assignment import one_hot_values
from pyro_moe.inference.objectives import PRIOR_SHARE, objective

pytestmark = pytest.mark.usefixtures("double")
EXACT = {"rtol": 1e-9, "atol": 1e-12}
N, K = 6, 4


def choice(logits, obs=None):
    """A program with one site c, with the given logits in each row."""

    def program():
        with pyro.plate("data", len(logits)):
            pyro.sample("c", dist.OneHotCategorical(logits=logits), obs=obs)

    return program


def site_c(program):
    return poutine.trace(program).get_trace().nodes["c"]


# CategoricalKL


def test_kl_of_categorical_kl_is_that_of_the_categoricals():
    q, p = torch.randn(N, K), torch.randn(N, K)
    got = kl_divergence(
        CategoricalKL(torch.tensor(0.3), logits=q), CategoricalKL(torch.tensor(0.7), logits=p)
    )
    log_q, log_p = q.log_softmax(-1), p.log_softmax(-1)
    assert_close(got, (log_q.exp() * (log_q - log_p)).sum(-1), **EXACT)
    assert_close(got, kl_divergence(Categorical(logits=q), Categorical(logits=p)), **EXACT)


def test_kl_of_categorical_kl_survives_expansion_by_a_plate():
    q = CategoricalKL(torch.tensor(0.3), logits=torch.randn(N, K))
    p = CategoricalKL(torch.tensor(0.3), logits=torch.randn(K))
    assert_close(kl_divergence(q, p.expand([N])), kl_divergence(q, p), **EXACT)


@pytest.mark.parametrize("temperature", [0.3, 1.0])
def test_categorical_kl_samples_and_scores_as_relaxed_one_hot(temperature):
    logits, tau = torch.randn(N, K), torch.tensor(temperature)
    one, other = (
        CategoricalKL(tau, logits=logits),
        dist.RelaxedOneHotCategorical(tau, logits=logits),
    )
    torch.manual_seed(1)
    sample = one.rsample()
    torch.manual_seed(1)
    assert_close(sample, other.rsample(), **EXACT)
    assert_close(one.log_prob(sample), other.log_prob(sample), **EXACT)


def test_relaxed_density_is_that_of_maddison_mnih_and_teh():
    logits, tau = torch.randn(N, K), 0.7
    c = torch.rand(N, K).softmax(-1)
    site = site_c(Relax(tau)(choice(logits)))
    power = logits.exp() * c ** (-tau)
    expected = 6.0 * tau ** (K - 1) * (power / c).prod(-1) / power.sum(-1) ** K
    assert_close(site["fn"].log_prob(c), expected.log(), **EXACT)


def test_relaxed_samples_choose_each_component_with_its_probability():
    logits, num = torch.randn(K), 20_000
    c = site_c(Relax(0.1)(choice(logits.expand(num, K))))["value"]
    p = logits.softmax(-1)
    shares = c.argmax(-1).bincount(minlength=K) / num
    assert ((shares - p).abs() < 4.5 * (p * (1 - p) / num).sqrt()).all()


# Numbers that stay finite


def relaxed_loss(q, p, temperature, loss="relaxed"):
    """A loss that is log q(c) - log p(c), its gradient by q, and the seed's Gumbel noise."""
    q = q.detach().clone().requires_grad_()
    elbo, treatment = objective(loss)

    def guide():
        pyro.param("q", q)
        choice(q)()

    with running({"params": {}, "constraints": {}}):
        torch.manual_seed(0)
        value = elbo.loss_and_grads(*treatment(choice(p), guide, temperature, False))
    return value, q.grad


@pytest.mark.filterwarnings("ignore:Encountered NaN")
@pytest.mark.parametrize("loss", ["relaxed", "categorical-kl"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("num_components", "temperature", "spread"),
    [(5, 0.1, 1.0), (5, 0.1, 8.0), (5, 0.01, 5.0), (1000, 0.1, 1.0), (1000, 0.1, 5.0)],
)
def test_relaxed_losses_and_gradients_are_finite(num_components, temperature, spread, dtype, loss):
    q = spread * torch.randn(20, num_components).to(dtype)
    value, gradient = relaxed_loss(q, torch.zeros_like(q), temperature, loss)
    assert torch.isfinite(torch.tensor(value))
    assert gradient.isfinite().all()
    assert gradient.abs().sum() > 0


@pytest.mark.filterwarnings("ignore:Encountered NaN")
@pytest.mark.parametrize("temperature", [0.5, 0.1, 0.01, 0.001])
def test_log_ratio_of_relaxed_densities_is_a_function_of_the_gumbel_noise_alone(temperature):
    q, p = torch.randn(N, K), torch.randn(N, K)
    value, gradient = relaxed_loss(q, p, temperature)
    torch.manual_seed(0)
    gumbel = -(-torch.rand(N, K).log()).log()
    q.requires_grad_()
    behind = q - q.amax(-1, keepdim=True)
    relaxed = MAX_LOG_ODDS * torch.expm1(behind / MAX_LOG_ODDS)
    prior = p.log_softmax(-1) - PRIOR_SHARE * (relaxed + gumbel)
    log_ratio = (K * prior.logsumexp(-1) - prior.sum(-1)) - (
        K * (-gumbel).logsumexp(-1) - (-gumbel).sum(-1)
    )
    expected = (log_ratio - (K - 1) * math.log(PRIOR_SHARE)).sum()
    expected.backward()
    assert value == pytest.approx(expected.item(), rel=1e-8)
    assert_close(gradient, q.grad, rtol=1e-6, atol=1e-8)


# Handlers


@pytest.mark.parametrize("family", [RelaxedOneHotCategorical, CategoricalKL])
def test_relax_keeps_the_logits_and_sets_the_temperature(family):
    logits = torch.randn(N, K)
    fn = site_c(Relax(0.3, family)(choice(logits)))["fn"]
    assert isinstance(fn, family)
    assert fn.temperature == 0.3
    assert_close(fn.logits, logits.log_softmax(-1), **EXACT)


def test_relax_takes_the_temperature_of_a_relaxed_site_if_it_is_as_written():
    logits = torch.randn(N, K)

    def program():
        with pyro.plate("data", N):
            pyro.sample("c", dist.RelaxedOneHotCategorical(torch.tensor(0.5), logits=logits))

    assert site_c(Relax(0.3, as_written=True)(program))["fn"].temperature == 0.5
    assert site_c(Relax(0.3)(program))["fn"].temperature == 0.3
    assert site_c(Relax(0.3, as_written=True)(choice(logits)))["fn"].temperature == 0.3


def test_discretize_turns_a_relaxed_site_into_one_hot_choices():
    logits = torch.randn(N, K)
    site = site_c(Discretize()(Relax(0.3)(choice(logits))))
    assert isinstance(site["fn"], dist.OneHotCategorical)
    assert_close(site["fn"].logits, logits.log_softmax(-1), **EXACT)
    assert_close(site["value"].sort(-1).values, torch.eye(K)[-1].sort().values.expand(N, K))


def test_enumerate_takes_all_values_of_c_along_a_new_leftmost_dimension():
    logits = torch.randn(N, K)
    trace = poutine.trace(Enumerate()(choice(logits))).get_trace()
    trace.compute_log_prob()
    assert_close(trace.nodes["c"]["value"], torch.eye(K)[:, None, :])
    assert_close(trace.nodes["c"]["log_prob"], logits.log_softmax(-1).T, **EXACT)


def test_enumerate_draws_nothing():
    program = choice(torch.randn(N, K))
    before = torch.get_rng_state()
    site_c(Enumerate()(program))
    assert torch.equal(torch.get_rng_state(), before)


def test_enumerate_in_parallel_marks_the_site_for_pyro():
    site = site_c(EnumerateInParallel()(choice(torch.randn(N, K))))
    assert site["infer"]["enumerate"] == "parallel"
    assert site["fn"].has_enumerate_support


@pytest.mark.parametrize(
    "treatment", [Relax(0.3), Discretize(), Enumerate(), EnumerateInParallel()]
)
def test_an_observed_c_is_left_as_it_is(treatment):
    logits, obs = torch.randn(N, K), torch.eye(K)[torch.arange(N) % K]
    site = site_c(treatment(choice(logits, obs)))
    assert type(site["fn"]) is type(site_c(choice(logits, obs))["fn"])
    assert_close(site["value"], obs)
    assert "enumerate" not in site["infer"]


@pytest.mark.parametrize("treatment", [Relax(0.3), Discretize(), Enumerate()])
def test_other_sites_are_left_as_they_are(treatment):
    def program():
        return pyro.sample("d", dist.OneHotCategorical(logits=torch.zeros(K)))

    node = poutine.trace(treatment(program)).get_trace().nodes["d"]
    assert isinstance(node["fn"], dist.OneHotCategorical)
    assert node["value"].sum() == 1


def test_log_probabilities_are_found_inside_wrappers_and_normalized():
    logits = torch.randn(N, K)
    wrapped = dist.OneHotCategorical(logits=logits).mask(torch.tensor(True))
    assert_close(log_probabilities(wrapped), logits.log_softmax(-1), **EXACT)


def test_values_of_c_are_one_hot_rows():
    assert_close(one_hot_values(dist.OneHotCategorical(torch.ones(N, K))), torch.eye(K)[:, None])


def test_a_distribution_of_c_without_logits_is_an_error_that_names_it():
    with pytest.raises(TypeError, match=r"at site 'c'; got Independent"):
        log_probabilities(dist.Normal(torch.zeros(3), 1.0).to_event(1))
