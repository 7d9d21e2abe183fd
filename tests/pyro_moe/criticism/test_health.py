"""The health of a gate is what entropies and divergences by hand say of it."""

import math
from dataclasses import replace

import pyro
import pyro.distributions as dist
import pytest
import scipy.stats
import torch
from scipy.integrate import quad
from torch.testing import assert_close

from pyro_moe import SiteError, models
from pyro_moe.criticism import Health, health
from pyro_moe.distributions import MAX_LOG_ODDS
from pyro_moe.inference.objectives import PRIOR_SHARE

pytestmark = pytest.mark.usefixtures("double")
N, D, L, K = 50, 2, 2, 3
CLOSE = {"rel": 1e-9, "abs": 1e-10}


@pytest.fixture
def x():
    return torch.randn(N, D)


def entropy(p):
    return -(p * p.log()).sum(-1)


def health_of(shares, *, num_rows=100, x_dim=2, entropy=0.0, disagreement=None):
    return Health(torch.tensor(shares), num_rows, x_dim, entropy, disagreement, None)


# Shares and entropies


def test_shares_and_entropies_are_those_of_the_gate(as_it_is, scatter, x):
    story = scatter(models.ME(D, 1, K))
    found = health(as_it_is(story.model, story.guide, x, torch.randn(N, 1)))
    g = story.gate(x).probs.detach()
    assert_close(found.shares, g.mean(0))
    assert found.entropy == pytest.approx(entropy(g).mean().item(), **CLOSE)
    assert found.effective_components == pytest.approx(entropy(g.mean(0)).exp().item(), **CLOSE)
    assert (found.num_rows, found.x_dim) == (N, D)


def test_rows_that_are_given_are_looked_at(as_it_is, scatter, x):
    story = scatter(models.GMM(D, K), scale=1.0)
    found = health(as_it_is(story.model, story.guide, x), x[:7])
    assert_close(found.shares, story.mixture.responsibilities(x[:7]).probs.mean(0).detach())
    assert found.num_rows == 7


@pytest.mark.parametrize(
    ("shares", "number"),
    [([0.25] * 4, 4.0), ([1.0, 0.0], 1.0), ([0.5, 0.5, 0.0], 2.0), ([0.9, 0.1], 1.3841)],
)
def test_the_effective_number_of_components_counts_those_with_rows(shares, number):
    assert health_of(shares).effective_components == pytest.approx(number, abs=1e-4)


# Warnings


def test_components_without_rows_are_dead():
    found = health_of([0.996, 0.004, 0.0])
    assert (found.dead, found.starving) == ([1, 2], [])
    assert found.warnings() == ["components without rows: 1, 2"]


def test_components_with_hardly_any_rows_starve():
    """With less than a tenth of an equal share, 10 of 300 rows, and not D + 1 rows."""
    found = health_of([0.99, 0.006, 0.004], num_rows=300)
    assert (found.dead, found.starving) == ([], [1, 2])
    assert found.warnings() == ["components with few rows: 1 (0.60%), 2 (0.40%)"]
    assert health_of([0.98, 0.01, 0.01], num_rows=300).starving == []
    assert health_of([0.99, 0.006, 0.004], num_rows=3000).starving == []


def test_an_unsure_gate_is_told():
    assert health_of([0.5, 0.5], entropy=0.34).warnings() == []
    assert health_of([0.5, 0.5], entropy=0.35).warnings() == [
        "the gate is uncertain: its mean entropy is 0.35 nats per row; the maximum is 0.69"
    ]
    assert health_of([1.0], entropy=0.0).warnings() == []


def test_guide_and_model_that_disagree_are_told():
    assert health_of([0.5, 0.5], disagreement=0.5).warnings() == []
    assert health_of([0.5, 0.5], disagreement=0.51).warnings() == [
        "guide and model disagree on components: the mean of KL(q(c|x) ‖ p(c|z)) is 0.51 nats per "
        "row"
    ]


# Between guide and model


def test_a_guide_that_takes_the_models_assignment_does_not_disagree(as_it_is, scatter, x):
    story = scatter(models.VaDE(D, L, K, hidden=(5,)), scale=1.0)
    found = health(as_it_is(story.model, story.guide, x))
    assert found.entropy > 0.01
    assert found.disagreement == pytest.approx(0.0, abs=1e-12)


def assigned(log_prior, log_posterior):
    """A story whose code says nothing of c: p(c|z) is p(c), and q(c|x) what is given."""

    def model(x):
        with pyro.plate("data", len(x)):
            c = pyro.sample("c", dist.OneHotCategorical(logits=log_prior))
            loc = 0.0 * c.sum(-1, keepdim=True).expand(*c.shape[:-1], L)
            z = pyro.sample("z", dist.Normal(loc, 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("c", dist.OneHotCategorical(logits=log_posterior))
            pyro.sample("z", dist.Normal(0.5 * x, 0.7).to_event(1))

    return model, guide


def test_disagreement_is_the_divergence_of_guide_and_model(as_it_is, x):
    prior, posterior = torch.randn(K).log_softmax(-1), torch.randn(N, K).log_softmax(-1)
    found = health(as_it_is(*assigned(prior, posterior), x))
    by_hand = (posterior.exp() * (posterior - prior)).sum(-1).mean().item()
    assert by_hand > 0.1
    assert found.disagreement == pytest.approx(by_hand, **CLOSE)


def test_disagreement_is_at_the_codes_that_the_guide_draws(as_it_is, scatter, x):
    """A code that all but lies where the encoder says has p(c|z) there."""
    story = scatter(models.DMVAE(D, L, K, hidden=(5,)), scale=1.0)
    with torch.no_grad():
        posterior = story.encoder(x)
        shape = posterior.mean.shape
    fixed = dist.Normal(posterior.mean, torch.full(shape, 1e-7)).to_event(1)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("c", story.gate(x))
            pyro.sample("z", fixed)

    with torch.no_grad():
        log_q = story.gate(x).logits.log_softmax(-1)
        log_p = story.prior.responsibilities(posterior.mean).logits.log_softmax(-1)
        by_hand = (log_q.exp() * (log_q - log_p)).sum(-1).mean().item()
    found = health(as_it_is(story.model, guide, x))
    assert by_hand > 0.05
    assert found.disagreement == pytest.approx(by_hand, abs=1e-5)


@pytest.mark.parametrize("name", ["gmm", "me", "gmmmoe", "bayesian"])
def test_without_a_code_there_is_nothing_to_disagree_on(fits, name):
    assert health(fits(name)).disagreement is None


def test_a_target_is_not_looked_at(as_it_is, scatter, x):
    story = scatter(models.DVMoE(D, 1, K, L, hidden=(5,)), scale=0.3)
    first, second = (
        health(as_it_is(story.model, story.guide, x, y)).disagreement
        for y in (torch.randn(N, 1), 100 * torch.randn(N, 1))
    )
    assert first == second


# What was trained on, beside the marginal ELBO


LOG_PRIOR, LOG_POSTERIOR, MEANS = (
    torch.tensor([0.7, 0.3]).double().log(),
    torch.tensor([0.2, 0.8]).double().log(),
    torch.tensor([-1.0, 2.0]).double(),
)


def one_cluster(x):
    with pyro.plate("data", len(x)):
        pyro.sample("c", dist.OneHotCategorical(logits=LOG_PRIOR))
        pyro.sample("x", dist.Normal(torch.zeros(1), 1.0).to_event(1), obs=x)


def two_clusters(x):
    with pyro.plate("data", len(x)):
        c = pyro.sample("c", dist.OneHotCategorical(logits=LOG_PRIOR))
        pyro.sample("x", dist.Normal((c @ MEANS).unsqueeze(-1), 1.0).to_event(1), obs=x)


def fixed_assignment(x):
    with pyro.plate("data", len(x)):
        pyro.sample("c", dist.OneHotCategorical(logits=LOG_POSTERIOR))


@pytest.fixture
def gap(as_it_is):
    """A function to the gap of programs as if they had been trained."""

    def found(model, guide, x, loss, temperature=0.7):
        fit = replace(as_it_is(model, guide, x, loss=loss), history=[{"temperature": temperature}])
        return health(fit, num_samples=16).objective_gap

    return found


def relaxed_divergence(log_q=LOG_POSTERIOR, ratio=PRIOR_SHARE):
    """Mean, and mean square, of log q - log p of the relaxed assignment."""
    logistic = scipy.stats.logistic()
    a, b = (float(logits[1] - logits[0]) for logits in (log_q, LOG_PRIOR))
    a = math.copysign(-MAX_LOG_ODDS * math.expm1(-abs(a) / MAX_LOG_ODDS), a)

    def log_ratio(u):
        return logistic.logpdf(u) - logistic.logpdf(ratio * (a + u) - b) - math.log(ratio)

    return [quad(lambda u: logistic.pdf(u) * log_ratio(u) ** i, -40, 40)[0] for i in (1, 2)]  # noqa: B023


def test_the_relaxed_objective_is_off_by_divergences_of_gumbel_differences(gap):
    """KL of the categoricals less that of two logistics, whatever the temperature.

    With log-odds a, bounded, in q, and b in p, of temperatures in the ratio r, it is that of u
    from r (a + u) - b.
    """
    relaxed, squared = relaxed_divergence()
    discrete = (LOG_POSTERIOR.exp() * (LOG_POSTERIOR - LOG_PRIOR)).sum().item()
    x = torch.randn(2000, 1)
    error = math.sqrt((squared - relaxed**2) / (16 * len(x)))
    assert abs(discrete - relaxed) > 20 * error
    for temperature in (0.3, 2.0):
        found = gap(one_cluster, fixed_assignment, x, "relaxed", temperature)
        assert found == pytest.approx(discrete - relaxed, abs=4 * error)


def test_a_relaxed_c_counts_at_the_temperatures_it_was_written_with(gap):
    def model(x):
        with pyro.plate("data", len(x)):
            pyro.sample("c", dist.RelaxedOneHotCategorical(torch.tensor(0.2), logits=LOG_PRIOR))
            pyro.sample("x", dist.Normal(0.0, 1.0).expand([1]).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            site = dist.RelaxedOneHotCategorical(torch.tensor(0.6), logits=LOG_POSTERIOR)
            pyro.sample("c", site)

    relaxed, squared = relaxed_divergence(ratio=0.2 / 0.6)
    discrete = (LOG_POSTERIOR.exp() * (LOG_POSTERIOR - LOG_PRIOR)).sum().item()
    x = torch.randn(2000, 1)
    error = math.sqrt((squared - relaxed**2) / (16 * len(x)))
    assert gap(model, guide, x, "relaxed") == pytest.approx(discrete - relaxed, abs=4 * error)


def test_the_categorical_divergence_is_off_by_what_the_relaxed_assignment_explains(gap):
    """E over a relaxed ζ of (x - ζ m)², in place of that over c."""
    temperature, x = 0.7, torch.full((2000, 1), 1.5)
    q = scipy.stats.logistic((LOG_POSTERIOR[1] - LOG_POSTERIOR[0]).item())

    def squared_error(u):
        share = 1 / (1 + math.exp(-u / temperature))
        return (1.5 - (MEANS[0] * (1 - share) + MEANS[1] * share).item()) ** 2

    moments = [quad(lambda u: q.pdf(u) * squared_error(u) ** i, -40, 40)[0] for i in (1, 2)]  # noqa: B023
    discrete = (LOG_POSTERIOR.exp() * (1.5 - MEANS).square()).sum().item()
    expected = 0.5 * (discrete - moments[0])
    error = 0.5 * math.sqrt((moments[1] - moments[0] ** 2) / (16 * len(x)))
    assert abs(expected) > 20 * error
    found = gap(two_clusters, fixed_assignment, x, "categorical-kl", temperature)
    assert found == pytest.approx(expected, abs=4 * error)


def test_where_the_assignment_explains_nothing_the_categorical_divergence_is_exact(gap):
    x = torch.randn(30, 1)
    assert gap(one_cluster, fixed_assignment, x, "categorical-kl") == pytest.approx(0.0, abs=1e-10)


@pytest.mark.parametrize("loss", ["relaxed", "categorical-kl"])
def test_what_rows_share_is_in_both(gap, loss):
    """A posterior far from its prior, 450 nats, is not a gap of 450 nats."""

    def model(x):
        pyro.sample("m", dist.Normal(0.0, 1.0))
        one_cluster(x)

    def guide(x):
        pyro.sample("m", dist.Normal(torch.tensor(30.0), 1e-3))
        with pyro.plate("data", len(x)):
            pyro.sample("c", dist.OneHotCategorical(logits=LOG_PRIOR))

    expected, squared = relaxed_divergence(LOG_PRIOR) if loss == "relaxed" else (0.0, 0.0)
    error = math.sqrt((squared - expected**2) / 1600)
    found = gap(model, guide, torch.randn(100, 1), loss)
    assert found == pytest.approx(-expected, abs=0.01 + 4.5 * error)


def test_the_marginal_elbo_and_em_have_no_gap(fits):
    assert [health(fits(name)).objective_gap for name in ("vade", "gmm")] == [0.0, 0.0]


def test_objects_and_untrained_fits_have_no_gap(as_it_is):
    x = torch.randn(20, 1)
    fit = as_it_is(one_cluster, fixed_assignment, x, loss=pyro.infer.Trace_ELBO())
    assert health(replace(fit, history=[{"temperature": 0.7}])).objective_gap is None
    assert health(as_it_is(one_cluster, fixed_assignment, x, loss="relaxed")).objective_gap is None


def test_a_story_without_c_is_told_so(fits):
    with pytest.raises(SiteError, match=r"^expected a site 'c' in the guide or the model; got"):
        health(fits("vae"))
