import math

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import nn
from torch.testing import assert_close

from pyro_moe.inference import MarginalELBO
from pyro_moe.models import (
    ME,
    MLP,
    CategoricalConditional,
    DeepMoE,
    HierarchicalME,
    MixtureOfExperts,
    NormalConditional,
    SoftmaxGate,
)
from pyro_moe.models.parts.experts import PoissonExperts, experts_of

pytestmark = pytest.mark.usefixtures("double")
N, D, K, M = 12, 3, 4, 2

STORIES = {
    "me": lambda **choices: ME(D, M, K, **choices),
    "deep": lambda **choices: DeepMoE(D, M, K, hidden=(5,), **choices),
    "hierarchical": lambda **choices: HierarchicalME(D, M, (2, 3), **choices),
    "three levels": lambda **choices: HierarchicalME(D, M, (2, 2, 3), **choices),
    "composed": lambda **choices: MixtureOfExperts(
        CategoricalConditional(nn.Linear(D, 2)),
        [ME(D, M, 2, **choices), DeepMoE(D, M, 3, hidden=(5,), **choices)],
    ),
    "any gate, any experts": lambda **choices: MixtureOfExperts(
        CategoricalConditional(MLP(D, (5,), 2)),
        [NormalConditional(nn.Linear(D, 2 * M)), ME(D, M, 3, **choices)],
    ),
}
each_story = pytest.mark.parametrize("name", STORIES)
each_family = pytest.mark.parametrize(
    "family", ["normal", "student-t", "categorical", "bernoulli", "poisson"]
)


@pytest.fixture
def x():
    return 2.0 * torch.randn(N, D) + 1.0


@pytest.fixture
def y():
    return 3.0 * torch.randn(N, M) - 1.0


def target(family, y):
    """Targets that are in the support of a family."""
    return {
        "categorical": torch.arange(N) % M,
        "bernoulli": (y > 0).double(),
        "poisson": y.abs().round(),
    }.get(family, y)


@pytest.fixture
def make(scatter):
    def story(name, x, y, **choices):
        made = STORIES[name](**choices)
        made.adapt(x, y)
        return scatter(made)

    return story


def log_density(story, x, y):
    """Log p(y|x) of each row by the recursion of the docstrings."""
    if not isinstance(story, MixtureOfExperts):  # a leaf
        return story(x).log_prob(y)
    log_gate = story.gate(x).logits.log_softmax(-1)
    if hasattr(story.experts, "experts"):
        each = torch.stack([log_density(e, x, y) for e in story.experts.experts], -1)
    else:
        each = story.experts(x).log_prob(y.unsqueeze(1))
    return (log_gate + each).logsumexp(-1)


# The likelihood


@each_story
def test_marginal_elbo_and_gradients_are_the_log_likelihood(make, x, y, marginal_elbo_is, name):
    story = make(name, x, y)
    marginal_elbo_is(story, lambda x, y: log_density(story, x, y), x, y)


@each_family
def test_the_same_holds_for_every_family_of_experts(make, x, y, marginal_elbo_is, family):
    y = target(family, y)
    story = make("me", x, y, experts=family)
    marginal_elbo_is(story, lambda x, y: log_density(story, x, y), x, y)


@each_story
def test_the_guide_is_the_exact_posterior(make, x, y, guide_is_the_posterior, name):
    guide_is_the_posterior(make(name, x, y), x, y)


@each_story
def test_as_a_conditional_distribution_it_has_the_same_density(make, x, y, name):
    story = make(name, x, y)
    assert_close(story(x).log_prob(y), log_density(story, x, y))
    assert story(x).sample((5,)).shape == (5, N, M)


@each_story
def test_rows_without_a_target_add_nothing(make, x, y, marginal_elbo_is, name):
    story = make(name, x, y)
    known = torch.arange(N) % 3 > 0
    holes = y.clone()
    holes[~known, 1] = torch.nan
    marginal_elbo_is(story, lambda x, _: log_density(story, x[known], y[known]), x, holes)


def test_without_targets_the_bound_is_zero(make, x, y):
    story = make("me", x, y)
    assert MarginalELBO().loss(story.model, story.guide, x) == pytest.approx(0.0, abs=1e-9)


@each_story
def test_rows_of_the_gate_sum_to_one(make, x, y, name):
    probs = make(name, x, y).gate(1e3 * x).probs
    assert_close(probs.sum(-1), torch.ones(N))


def test_gate_and_experts_by_the_formula(make, x, y):
    story = make("me", x, y)
    u = (x - x.mean(0)) / x.std(0, correction=0) / math.sqrt(D)
    gate = (u @ story.gate.maps.weight[0].T + story.gate.maps.bias[0]).softmax(-1)
    maps, s = story.experts.network, y.std(0, correction=0)
    locs = y.mean(0) + s * (torch.einsum("nd,kpd->nkp", u, maps.weight) + maps.bias)
    scales = s * (1e-3 + story.experts.log_scale.exp())
    each = torch.distributions.Normal(locs, scales).log_prob(y.unsqueeze(1)).sum(-1)
    assert_close(story(x).log_prob(y), (gate * each.exp()).sum(-1).log())
    assert_close(story(x).mean, (gate.unsqueeze(-1) * locs).sum(1))


# Special cases


@pytest.mark.parametrize("name", ["me", "deep"])
def test_equal_experts_make_the_gate_irrelevant(make, x, y, name):
    story = make(name, x, y)
    with torch.no_grad():
        for p in story.experts.parameters():
            p.copy_(p[:1].expand_as(p))
    alone = story.experts(x).log_prob(y.unsqueeze(1))[:, 0]
    assert_close(story(x).log_prob(y), alone)
    gradients = torch.autograd.grad(
        story(x).log_prob(y).sum(), [*story.gate.parameters()], allow_unused=True
    )
    for gradient in gradients:
        assert_close(gradient, torch.zeros_like(gradient), rtol=0, atol=1e-9)


def test_me_with_one_expert_is_linear_regression(x, y):
    story = ME(D, M, 1)
    story.adapt(x, y)
    story.m_step(torch.ones(N, 1), x, x, y)
    design = np.c_[x.numpy(), np.ones(N)]
    solution = np.linalg.lstsq(design, y.numpy(), rcond=None)[0]
    residuals = y.numpy() - design @ solution
    p = story(x)
    np.testing.assert_allclose(p.mean.detach().numpy(), design @ solution, atol=1e-5)
    variance = p.variance.detach().numpy()
    np.testing.assert_allclose(variance, np.tile((residuals**2).mean(0), (N, 1)), rtol=1e-6)


@pytest.mark.parametrize("classes", [2, 3])
def test_me_with_one_expert_is_softmax_regression(classes):
    x = torch.randn(300, D)
    y = torch.distributions.Categorical(logits=x @ torch.randn(D, classes)).sample()
    story = ME(D, classes, 1, experts="categorical")
    story.adapt(x, y)
    story.m_step(torch.ones(300, 1), x, x, y)
    # Weights have a normal prior of scale 5 in standard units; two classes share theirs.
    strength = 25.0 / D * (2 if classes == 2 else 1)
    regression = LogisticRegression(C=strength, tol=1e-10, solver="newton-cg")
    u = story.units(x).numpy()
    expected = regression.fit(u, y.numpy()).predict_log_proba(u)
    values = torch.arange(classes).unsqueeze(-1)
    got = story(x).log_prob(values).T.detach().numpy()
    np.testing.assert_allclose(got, expected, atol=1e-3)


def test_a_hierarchy_is_a_flat_mixture_whose_gate_is_the_product(make, x, y):
    story = make("hierarchical", x, y)
    root = story.gate(x).probs
    branches = story.experts.experts
    gate = torch.stack([root[:, i, None] * b.gate(x).probs for i, b in enumerate(branches)], 1)
    leaves = torch.stack([b.experts(x).log_prob(y.unsqueeze(1)) for b in branches], 1)
    assert_close(gate.sum((1, 2)), torch.ones(N))
    expected = (gate * leaves.exp()).sum((1, 2)).log()
    assert_close(story(x).log_prob(y), expected)


def test_a_hierarchy_is_a_mixture_of_experts_by_composition(make, scatter, x, y):
    story = make("hierarchical", x, y)
    composed = MixtureOfExperts(SoftmaxGate(D, 2), [ME(D, M, 3), ME(D, M, 3)])
    scatter(composed).adapt(x, y)
    composed.gate = story.gate
    for inner, branch in zip(composed.experts.experts, story.experts.experts, strict=True):
        inner.gate, inner.experts = branch.gate, branch.experts
    assert_close(composed(x).log_prob(y), story(x).log_prob(y), rtol=0, atol=0)


# Units, M-steps and errors


@pytest.mark.parametrize("name", ["me", "deep", "hierarchical"])
def test_the_units_of_the_data_do_not_matter_but_for_the_density(make, x, y, name):
    columns, rows = torch.tensor([1.0, 1e-3, 1e4]), torch.tensor([1e-2, 1e3])
    story, other = make(name, x, y), make(name, 7.0 + columns * x, rows * y - 5.0)
    with torch.no_grad():
        for new, old in zip(other.parameters(), story.parameters(), strict=True):
            new.copy_(old)
    expected = story(x).log_prob(y) - rows.log().sum()
    assert_close(other(7.0 + columns * x).log_prob(rows * y - 5.0), expected)


def test_units_are_shared_by_gate_and_experts(x, y):
    story = HierarchicalME(D, M, (2, 2), common_scale=True)
    story.adapt(x, y)
    assert len(story.units.scale) == 1
    branch = story.experts.experts[0]
    for part in (story.gate.maps, branch.gate.maps, branch.experts.network):
        assert part.units is story.units


@pytest.mark.parametrize("name", ["me", "hierarchical"])
def test_the_m_step_ends_where_the_expected_log_joint_is_stationary_in_the_gate(make, x, y, name):
    story = make(name, x, y)
    r = torch.rand(N, story.gate(x).probs.shape[-1]).softmax(-1)
    before = (r * story.experts(x).log_prob(y.unsqueeze(1))).sum().item()
    for _ in range(3):  # of a few Newton steps each
        story.m_step(r, x, x, y)
    w = story.gate.maps.weight / math.sqrt(D)
    score = (r * story.gate(x).logits).sum() - 0.5e-4 * w.square().sum()
    for gradient in torch.autograd.grad(score / N, [*story.gate.parameters()]):
        assert_close(gradient, torch.zeros_like(gradient), rtol=0, atol=1e-6)
    assert (r * story.experts(x).log_prob(y.unsqueeze(1))).sum().item() > before


def test_the_m_step_of_a_neural_gate_is_that_of_its_experts(make, x, y):
    story, r = make("deep", x, y), torch.rand(N, K)
    before = {name: p.detach().clone() for name, p in story.gate.named_parameters()}
    story.m_step(r, x, x, y)
    assert_close({n: p.detach() for n, p in story.gate.named_parameters()}, before, rtol=0, atol=0)
    alone = experts_of("normal", D, K, M, units=story.units)
    alone.adapt(x, y)
    alone.maximize(x, y, r)
    assert_close(story.experts.state_dict(), alone.state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: HierarchicalME(D, M, (3,)), r"expected two levels or more; got .*\(3,\)"),
        (lambda: HierarchicalME(D, M, experts="gamma"), "expected experts in .*; got 'gamma'"),
        (lambda: ME(D, M, K, experts="gamma"), "expected experts in .*; got 'gamma'"),
        (lambda: DeepMoE(D, M, K, experts="gamma"), "expected experts in .*; got 'gamma'"),
    ],
)
def test_a_choice_that_is_none_is_an_error(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("program", ["model", "guide"])
def test_y_of_the_wrong_width_is_an_error(make, x, y, program):
    story = make("me", x, y)
    with pytest.raises(ValueError, match="expected y with 2 columns; got 3"):
        getattr(story, program)(x, torch.randn(N, 3))


def test_a_tree_of_one_level_is_an_error():
    for num_components in (4, (4,)):
        with pytest.raises(ValueError, match="expected two levels or more; got num_components="):
            HierarchicalME(D, M, num_components)


def test_a_tree_is_represented_by_a_mixture_of_its_leaves():
    shallow = HierarchicalME(2, 1, (2, 3), experts="poisson").shallow()
    assert isinstance(shallow, ME)
    assert shallow.num_components == 6
    assert isinstance(shallow.experts, PoissonExperts)
