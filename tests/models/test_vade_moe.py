from copy import deepcopy
from functools import partial

import pytest
import torch
from torch.distributions import Normal
from torch.testing import assert_close

from pyro_moe.inference import MarginalELBO
from pyro_moe.models import VaDE, VaDEMoE

pytestmark = pytest.mark.usefixtures("double")
N, D, L, K, M = 9, 3, 2, 4, 2
each_context = pytest.mark.parametrize("context", ["x", "z"])
each_covariance = pytest.mark.parametrize("covariance", ["full", "diagonal", "tied"])


@pytest.fixture
def x():
    return 2.0 * torch.randn(N, D) + 1.0


@pytest.fixture
def y():
    return 3.0 * torch.randn(N, M)


@pytest.fixture
def make(scatter, x, y):
    def story(**choices):
        made = VaDEMoE(D, M, K, L, hidden=(5,), **choices)
        made.adapt(x, y)
        return scatter(made)

    return story


def terms(story, x, y):
    """log p(x|z) - log q(z|x), (N,); log pi_k + log N_k(z), (N, K); log p_k(y|x), (N, K)."""
    vade = story
    q = vade.encoder(x)
    z = q.mean + q.stddev * torch.normal(torch.zeros(N, L), torch.ones(N, L))
    u = vade.decoder.network(z)
    p = Normal(vade.units.inverse(u), vade.units.scale * vade.decoder.log_scale.exp())
    rest = p.log_prob(x).sum(-1) - q.log_prob(z)
    context = x if story.context == "x" else q.mean
    return rest, vade.prior.log_joint(z), story.experts(context).log_prob(y.unsqueeze(1))


@each_context
@each_covariance
def test_marginal_elbo_and_gradients_are_the_hand_summed_bound(
    make, x, y, marginal_elbo_is, context, covariance
):
    story = make(context=context, covariance=covariance)

    def rows(x, y):
        rest, prior, experts = terms(story, x, y)
        log_q = (prior + experts).log_softmax(-1)
        return rest + (log_q.exp() * (prior + experts - log_q)).sum(-1)

    marginal_elbo_is(story, rows, x, y)


@each_context
def test_given_z_the_sum_over_c_is_exact(make, x, y, marginal_elbo_is, context):
    story = make(context=context)

    def rows(x, y):
        rest, prior, experts = terms(story, x, y)
        return rest + (prior + experts).logsumexp(-1)

    marginal_elbo_is(story, rows, x, y)


@each_context
def test_given_z_the_guide_of_c_is_the_exact_posterior(make, x, y, guide_is_the_posterior, context):
    story = make(context=context)
    guide_is_the_posterior(story, x, y)
    guide_is_the_posterior(story, x)


def test_the_bound_exceeds_that_of_the_paper_by_the_divergence_of_their_guides(make, x, y):
    story = make()
    torch.manual_seed(0)
    loss = MarginalELBO().loss(story.model, story.guide, x, y)
    torch.manual_seed(0)
    rest, prior, experts = terms(story, x, y)
    gate, q = prior.log_softmax(-1), (prior + experts).log_softmax(-1)
    paper = rest + (gate.exp() * (prior + experts - gate)).sum(-1)
    divergence = (gate.exp() * (gate - q)).sum(-1)
    assert (divergence > 0).all()
    assert -loss == pytest.approx((paper + divergence).sum().item(), rel=1e-10)


@each_context
def test_rows_without_a_target_add_the_bound_of_x_alone(make, x, y, marginal_elbo_is, context):
    story, missing = make(context=context), torch.arange(N) % 3 == 0
    holes = y.clone()
    holes[missing, 1] = torch.nan

    def rows(x, holes):
        rest, prior, experts = terms(story, x, y)
        known = torch.where(missing.unsqueeze(-1), torch.zeros_like(experts), experts)
        return rest + (prior + known).logsumexp(-1)

    marginal_elbo_is(story, rows, x, holes)


@each_context
def test_without_targets_it_is_vade_and_the_experts_learn_nothing(
    make, x, loss_and_gradients, context
):
    story = make(context=context)
    loss, gradients = loss_and_gradients(MarginalELBO(), story.model, story.guide, story, x)
    of_x = (partial(program, story) for program in (VaDE.model, VaDE.guide))
    assert_close((loss, gradients), loss_and_gradients(MarginalELBO(), *of_x, story, x))
    assert not any(g.any() for name, g in gradients.items() if name.startswith("experts"))
    nowhere = torch.full((N, M), torch.nan)
    again = loss_and_gradients(MarginalELBO(), story.model, story.guide, story, x, nowhere)
    assert_close((loss, gradients), again)


def test_the_m_step_is_that_of_the_prior_on_codes_and_of_the_experts_on_their_context(make, x, y):
    codes, r = torch.randn(N, L), torch.rand(N, K).softmax(-1)
    for context, sees in (("x", x), ("z", codes)):
        story = make(context=context)
        alone = deepcopy(story)
        story.m_step(r, codes, x, y)
        alone.prior.maximize(codes, r)
        alone.experts.maximize(sees, y, r)
        assert_close(story.state_dict(), alone.state_dict(), rtol=0, atol=0)


def test_experts_of_x_see_it_in_the_units_of_the_story_and_those_of_z_the_codes(make, x):
    by_x, by_z = make(context="x"), make(context="z")
    assert by_x.experts.network.units is by_x.units
    codes = by_z.encoder(x).mean
    assert_close(by_z.expert_distributions(x).mean, by_z.experts(codes).mean)
    assert_close(by_x.expert_distributions(x).mean, by_x.experts(x).mean)


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({"context": "w"}, r"expected context in \('x', 'z'\); got 'w'"),
        ({"experts": "gamma"}, "expected experts in .*; got 'gamma'"),
        ({"covariance": "round"}, "expected covariance in .*; got 'round'"),
        ({"likelihood": "gamma"}, "expected likelihood in .*; got 'gamma'"),
    ],
)
def test_a_choice_that_is_none_is_an_error(choices, message):
    with pytest.raises(ValueError, match=message):
        VaDEMoE(D, M, K, L, **choices)
