import pyro
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO, TraceEnum_ELBO
from torch.distributions import MultivariateNormal
from torch.testing import assert_close

import pyro_moe
from pyro_moe import evaluation
from pyro_moe.inference.handlers import Discretize
from pyro_moe.inference.objectives import MarginalELBO, objective
from pyro_moe.inference.traces import enumerated_traces, global_log_weight, row_bounds
from pyro_moe.models import DMVAE, DVMoE, GroupedMixture, HierarchicalDMVAE, HierarchicalDVMoE
from pyro_moe.models.parts.groups import MIN_SCALE

pytestmark = pytest.mark.usefixtures("double")
EXACT = {"rtol": 1e-9, "atol": 1e-9}
N, D, M, L, K, G = 6, 3, 2, 2, 5, 2
covariances = pytest.mark.parametrize("covariance", ["full", "diagonal", "tied"])


def of_x(**choices):
    return HierarchicalDMVAE(D, L, K, hidden=(4,), **{"num_groups": G, **choices})


def of_y(**choices):
    return HierarchicalDVMoE(D, M, K, L, hidden=(4,), **{"num_groups": G, **choices})


each_story = pytest.mark.parametrize("make", [of_x, of_y])
STORIES = {of_x: lambda: DMVAE(D, L, K, hidden=(4,)), of_y: lambda: DVMoE(D, M, K, L, hidden=(4,))}


@pytest.fixture
def rows():
    return torch.randn(N, D), torch.randn(N, M)


def data_of(make, rows):
    return rows[: 1 if make is of_x else 2]


def mixture(scatter, covariance="full", weights="learned", **choices):
    return scatter(
        GroupedMixture(L, K, num_groups=G, covariance=covariance, weights=weights, **choices)
    )


# The mixture


@covariances
def test_the_weights_of_components_are_those_of_the_mixture(scatter, covariance):
    prior = mixture(scatter, covariance)
    of_groups, within = prior.layer_logits()
    assert_close((of_groups.unsqueeze(-1) + within).logsumexp(0), prior.logits.log_softmax(-1))
    assert_close(within.exp().sum(-1), torch.ones(G))
    assert_close(of_groups.exp().sum(), torch.tensor(1.0))
    joint = (of_groups.unsqueeze(-1) + within).T
    assert_close(joint.log_softmax(-1), prior.log_memberships())


@covariances
def test_the_distribution_of_centers_is_a_mixture_in_units_of_the_spread(scatter, covariance):
    prior = mixture(scatter, covariance)
    factors = prior.scale_tril.expand(K, L, L)
    spread = torch.einsum("k,kij,klj->il", prior.logits.softmax(-1), factors, factors)
    s = prior.group_scale
    factor = torch.linalg.cholesky(spread)
    in_units_of_z = [MultivariateNormal(factor @ m, s**2 * spread) for m in prior.group_loc]
    each = torch.stack([p.log_prob(prior.loc) for p in in_units_of_z], -1)
    jacobian = factor.diagonal().log().sum()
    expected = (each - torch.tensor(float(G)).log()).logsumexp(-1) + jacobian
    assert_close(prior.center_distribution().log_prob(prior.centers()), expected, **EXACT)
    assert_close(prior.log_memberships(), each.log_softmax(-1), **EXACT)


def test_groups_do_not_depend_on_the_linear_coordinates_of_z(scatter):
    prior, other = mixture(scatter), mixture(scatter)
    turn = torch.tensor([[2.0, 0.0], [-1.0, 3.0]])  # lower triangular, as the factors are
    z, r = torch.randn(200, L), torch.rand(200, K).softmax(-1)
    r[:100, :2] += 4.0
    z[:100] += 6.0
    r = r / r.sum(-1, keepdim=True)
    prior.maximize(z, r)
    other.maximize(z @ turn.T + 5.0, r)
    assert_close(prior.log_memberships(), other.log_memberships(), rtol=1e-4, atol=1e-4)
    assert_close(prior.group_scale, other.group_scale, rtol=1e-4, atol=1e-4)


def test_the_order_of_groups_does_not_matter(scatter, rows):
    story, other = scatter(of_x(num_groups=3)), of_x(num_groups=3)
    other.load_state_dict(story.state_dict())
    with torch.no_grad():
        other.prior.group_loc.copy_(story.prior.group_loc[[2, 0, 1]])
    found = []
    for each in (story, other):
        torch.manual_seed(0)
        traces = enumerated_traces(each.model, each.guide, rows[0])
        found.append((row_bounds(*traces), global_log_weight(*traces)))
    assert_close(found[0], found[1], **EXACT)


def test_known_groups_are_found():
    """Five components, of which three and two are near each other, in any order."""
    places = torch.tensor([[0.0, 0.0], [20.0, 1.0], [1.0, 2.0], [21.0, 0.0], [2.0, 0.0]])
    labels = torch.arange(500) % K
    z = places[labels] + 0.3 * torch.randn(500, 2)
    prior = GroupedMixture(2, K, num_groups=2)
    prior.maximize(z, torch.eye(K)[labels])
    tree = prior.log_memberships().argmax(-1)
    assert (tree == tree[0]).tolist() == [True, False, True, False, True]


def test_finding_groups_does_not_lower_the_density_of_centers(scatter):
    prior = mixture(scatter)
    before = prior.center_distribution().log_prob(prior.centers()).sum()
    prior.find_groups()
    found = prior.center_distribution().log_prob(prior.centers()).sum()
    assert found >= before - 1e-6
    for name in ("group_loc", "group_log_scale"):
        gradient = torch.autograd.grad(
            prior.center_distribution().log_prob(prior.centers()).sum(), getattr(prior, name)
        )[0]
        at_limit = name == "group_log_scale" and prior.group_scale < 1.05 * MIN_SCALE
        assert at_limit or gradient.abs().max() < 1e-2


@pytest.mark.parametrize("number", [0, K + 1])
def test_there_are_not_more_groups_than_components(number):
    message = rf"expected num_groups from 1 to num_components=5; got {number}"
    with pytest.raises(ValueError, match=message):
        of_x(num_groups=number)


def test_as_many_groups_as_components_have_a_bounded_density():
    prior = GroupedMixture(L, K, num_groups=K)
    assert prior.group_scale >= MIN_SCALE
    assert prior.center_distribution().log_prob(prior.centers()).isfinite().all()


# The stories


@each_story
@pytest.mark.parametrize("number", [1, G, K])
def test_the_bound_of_a_row_is_that_of_the_story_of_one_layer(scatter, rows, make, number):
    """C1 is summed out exactly, because q(c1|c) = p(c1|c). With one group there is nothing else."""
    story, flat = scatter(make(num_groups=number)), STORIES[make]()
    flat.load_state_dict(story.state_dict(), strict=False)
    found = []
    for each in (story, flat):
        torch.manual_seed(0)
        traces = enumerated_traces(each.model, each.guide, *data_of(make, rows))
        found.append(row_bounds(*traces))
    assert_close(found[0], found[1], **EXACT)
    of_centers = story.prior.center_distribution().log_prob(story.prior.centers()).sum()
    torch.manual_seed(0)
    loss = MarginalELBO().loss(story.model, story.guide, *data_of(make, rows))
    assert -loss == pytest.approx((found[1].sum() + of_centers).item(), rel=1e-9)


@each_story
def test_the_marginal_elbo_and_gradients_equal_trace_enum(scatter, rows, loss_and_gradients, make):
    story, data = scatter(make()), data_of(make, rows)
    elbo, treat = objective(TraceEnum_ELBO(max_plate_nesting=1))
    model, guide = treat(story.model, story.guide, 1.0)
    got = loss_and_gradients(MarginalELBO(), story.model, story.guide, story, *data)
    expected = loss_and_gradients(elbo, model, guide, story, *data)
    assert_close(got, expected, rtol=1e-7, atol=1e-9)


@each_story
def test_plain_pyro_trains_it(rows, make):
    story = make()
    svi = SVI(story.model, story.guide, pyro.optim.Adam({"lr": 0.01}), Trace_ELBO())
    losses = [svi.step(*data_of(make, rows)) for _ in range(5)]
    assert torch.tensor(losses).isfinite().all()


def test_the_model_simulates_what_its_equations_say(scatter):
    story, num = scatter(of_x(weights="learned")), 20_000
    with torch.no_grad():
        of_groups, within = story.prior.layer_logits()
        with Discretize():
            trace = poutine.trace(poutine.uncondition(story.model)).get_trace(torch.zeros(num, D))
    c1, c, z = (trace.nodes[name]["value"] for name in ("c1", "c", "z"))
    joint = torch.einsum("ng,nk->gk", c1, c) / num
    p = (of_groups.unsqueeze(-1) + within).exp()
    assert ((joint - p).abs() < 4.5 * (p * (1 - p) / num).sqrt() + 1e-9).all()
    for k in range(K):
        mine = z[c[:, k] == 1]
        error = mine.std(0) / len(mine) ** 0.5
        assert ((mine.mean(0) - story.prior.loc[k].detach()).abs() < 4.5 * error).all()


@pytest.mark.parametrize("loss", ["marginal", "relaxed", "categorical-kl"])
def test_it_finds_a_hierarchy_in_simulated_data(loss):
    """Five normals in two groups, with the normals known and not the groups."""
    torch.set_default_dtype(torch.float32)
    centers = torch.tensor([[0.0, 0.0], [3.0, 0.0], [0.0, 3.0], [12.0, 12.0], [15.0, 12.0]])
    labels = torch.arange(500) % 5
    x = centers[labels] + 0.4 * torch.randn(500, 2)
    story = HierarchicalDMVAE(2, 2, 5, hidden=(32,))
    options = {"initialize": labels, "epochs": 5, "initial_epochs": 10, "batch_size": 64}
    fit = pyro_moe.fit(
        story.model, story.guide, x, loss=loss, compile=False, progress=False, **options
    )
    g = evaluation.gate(fit, x, site="c1")
    assert evaluation.clustering_scores(g, (labels > 2).long())["accuracy"] > 0.99
    memberships = fit.story.prior.log_memberships().exp()
    assert_close(g, evaluation.gate(fit, x) @ memberships, rtol=1e-4, atol=1e-5)


def test_the_prior_of_components_takes_part_in_the_m_step(rows):
    story = of_y()
    r = torch.rand(N, K).softmax(-1)
    story.m_step(r, torch.randn(N, L), *rows)
    before = story.prior.group_loc.clone()
    story.prior.find_groups()
    assert_close(story.prior.group_loc, before)
