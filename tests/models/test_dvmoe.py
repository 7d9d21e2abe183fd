from copy import deepcopy
from functools import partial

import pytest
import torch
from pyro import poutine
from torch.distributions import Normal
from torch.testing import assert_close

from pyro_moe.inference import MarginalELBO
from pyro_moe.models import DMVAE, DVMoE

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
        made = DVMoE(D, M, K, L, hidden=(5,), weights="learned", **choices)
        made.adapt(x, y)
        return scatter(made)

    return story


def terms(story, x, y):
    """log p(x|z) - log q(z|x), (N,); log pi_k + log N_k(z), log g_k and log p_k(y|x), (N, K)."""
    dmvae = story
    q = dmvae.encoder(x)
    z = q.mean + q.stddev * torch.normal(torch.zeros(N, L), torch.ones(N, L))
    u = dmvae.decoder.network(z)
    p = Normal(dmvae.units.inverse(u), dmvae.units.scale * dmvae.decoder.log_scale.exp())
    rest = p.log_prob(x).sum(-1) - q.log_prob(z)
    gate = dmvae.gate.network(x).log_softmax(-1)
    context = x if story.context == "x" else q.mean
    return rest, dmvae.prior.log_joint(z), gate, story.experts(context).log_prob(y.unsqueeze(1))


@each_context
@each_covariance
def test_marginal_elbo_and_gradients_are_the_papers_formula_with_a_q_that_knows_y(
    make, x, y, marginal_elbo_is, context, covariance
):
    story = make(context=context, covariance=covariance)

    def rows(x, y):
        rest, prior, gate, experts = terms(story, x, y)
        log_y = (gate + experts).logsumexp(-1)
        log_q = gate + experts - log_y.unsqueeze(-1)
        return log_y + rest + (log_q.exp() * (prior - log_q)).sum(-1)

    marginal_elbo_is(story, rows, x, y)


def test_where_experts_are_equal_the_bound_is_the_papers(make, x, y):
    story = make()
    with torch.no_grad():
        for p in story.experts.parameters():
            p.copy_(p[:1].expand_as(p))

    torch.manual_seed(0)
    loss = MarginalELBO().loss(story.model, story.guide, x, y)
    torch.manual_seed(0)
    rest, prior, gate, experts = terms(story, x, y)
    log_y = (gate + experts).logsumexp(-1)
    paper = log_y + rest + (gate.exp() * (prior - gate)).sum(-1)
    assert -loss == pytest.approx(paper.sum().item(), rel=1e-10)


@each_context
def test_rows_without_a_target_add_the_bound_of_x_alone(make, x, y, marginal_elbo_is, context):
    story, missing = make(context=context), torch.arange(N) % 3 == 0
    holes = y.clone()
    holes[missing, 1] = torch.nan

    def rows(x, holes):
        rest, prior, gate, experts = terms(story, x, y)
        known = torch.where(missing.unsqueeze(-1), torch.zeros_like(experts), experts)
        log_y = (gate + known).logsumexp(-1)  # zero where y is missing: gates sum to one
        log_q = gate + known - log_y.unsqueeze(-1)
        return log_y + rest + (log_q.exp() * (prior - log_q)).sum(-1)

    marginal_elbo_is(story, rows, x, holes)


@each_context
def test_without_targets_it_is_the_dmvae_and_the_experts_learn_nothing(
    make, x, loss_and_gradients, context
):
    story = make(context=context)
    loss, gradients = loss_and_gradients(MarginalELBO(), story.model, story.guide, story, x)
    of_x = (partial(program, story) for program in (DMVAE.model, DMVAE.guide))
    assert_close((loss, gradients), loss_and_gradients(MarginalELBO(), *of_x, story, x))
    assert not any(g.any() for name, g in gradients.items() if name.startswith("experts"))
    nowhere = torch.full((N, M), torch.nan)
    again = loss_and_gradients(MarginalELBO(), story.model, story.guide, story, x, nowhere)
    assert_close((loss, gradients), again)


@each_context
def test_as_a_conditional_distribution_it_is_the_gated_mixture_of_experts(make, x, y, context):
    story = make(context=context)
    _, _, gate, experts = terms(story, x, y)
    assert_close(story(x).log_prob(y), (gate.exp() * experts.exp()).sum(-1).log())
    assert_close(story.gate(1e3 * x).probs.sum(-1), torch.ones(N))


def test_given_y_the_guide_of_c_is_bayes_rule_on_gate_and_experts(make, x, y):
    story = make()
    _, _, gate, experts = terms(story, x, y)
    expected = (gate + experts).softmax(-1)
    for arguments, probs in (((x, y), expected), ((x,), gate.exp())):
        trace = poutine.trace(story.guide).get_trace(*arguments)
        assert_close(trace.nodes["c"]["fn"].probs, probs)


def test_the_m_step_is_that_of_the_prior_on_codes_and_of_the_experts_on_their_context(make, x, y):
    codes, r = torch.randn(N, L), torch.rand(N, K).softmax(-1)
    for context, sees in (("x", x), ("z", codes)):
        story = make(context=context)
        alone = deepcopy(story)
        story.m_step(r, codes, x, y)
        alone.prior.maximize(codes, r)
        alone.experts.maximize(sees, y, r)
        assert_close(story.state_dict(), alone.state_dict(), rtol=0, atol=0)


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
        DVMoE(D, M, K, L, **choices)
