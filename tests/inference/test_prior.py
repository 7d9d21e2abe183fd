import numpy as np
import pytest
import torch
from torch import nn
from torch.testing import assert_close

from pyro_moe.inference import EM, MarginalELBO
from pyro_moe.inference.context import reproducible
from pyro_moe.inference.prior import (
    FLAT,
    PERMUTATIONS,
    WEAK,
    Prior,
    log_ridge,
    with_prior_rows,
    with_ridge,
    without_effect,
)
from pyro_moe.models import GMM, ME, DVMoE, GMMMoE, HierarchicalME
from pyro_moe.models.parts.experts import experts_of
from pyro_moe.models.parts.networks import MLP

pytestmark = pytest.mark.usefixtures("double")
N, D, K, M = 20, 2, 3, 1
ROWS, NULL = 0.7, 0.4


@pytest.fixture
def x():
    return torch.randn(N, D) * torch.tensor([1.0, 5.0]) + 2.0


@pytest.fixture
def y():
    """Targets, of which some are missing."""
    y = 3.0 * torch.randn(N, M) + 1.0
    y[[0, 3, 4, 11]] = torch.nan
    return y


@pytest.fixture
def make(scatter, x, y):
    def story(name):
        made = {
            "me": lambda: ME(D, M, K),
            "gmm_moe": lambda: GMMMoE(D, M, K),
            "dvmoe": lambda: DVMoE(D, M, K, 2, hidden=(4,), weights="learned"),
        }[name]()
        with torch.no_grad():
            made.adapt(x, y)
        return scatter(made)

    return story


each_story = pytest.mark.parametrize("name", ["me", "gmm_moe", "dvmoe"])


def terms(name, story, x, y):
    """Σ_nk log p(d_n, c_n = k), by hand: that of c and x, and that of y."""
    known = ~y.isnan().any(-1)
    each = story.experts(x).log_prob(y.nan_to_num(0.0).unsqueeze(1)) * known.unsqueeze(-1)
    if name == "me":
        return story.gate(x).logits.log_softmax(-1).sum(), each.sum()
    if name == "gmm_moe":
        return story.mixture.log_joint(x).sum(), each.sum()
    # the target has the weights of the gate, not those of c
    gate = story.gate(x).logits.log_softmax(-1)
    weights = story.prior.logits.log_softmax(-1)
    return N * weights.sum(), (each + gate)[known].sum()


def added(story, prior, *data, num_rows=N):
    """What a prior adds to the marginal ELBO, at the same noise."""
    losses = []
    for each in (FLAT, prior):
        elbo = MarginalELBO(prior=each, num_rows=num_rows)
        with reproducible(3):
            losses.append(elbo.differentiable_loss(story.model, story.guide, *data))
    return losses[0] - losses[1]


@each_story
def test_the_rows_of_the_prior_are_those_of_a_sum_by_hand(make, x, y, name):
    story = make(name)
    got = added(story, Prior(rows=ROWS, ridge=0.0), x, y)
    expected = ROWS / N * sum(terms(name, story, x, y))
    assert_close(got, expected, rtol=1e-8, atol=1e-10)
    parameters = list(story.parameters())
    gradients = [
        torch.autograd.grad(each, parameters, retain_graph=True, allow_unused=True)
        for each in (got, expected)
    ]
    for p, *pair in zip(parameters, *gradients, strict=True):
        first, second = (torch.zeros_like(p) if each is None else each for each in pair)
        assert_close(first, second, rtol=1e-7, atol=1e-9)


@each_story
def test_rows_without_an_effect_have_the_targets_of_other_rows(make, x, y, name):
    story = make(name)
    prior = Prior(rows=ROWS, null_rows=NULL, ridge=0.0)
    of_rows, of_null = terms(name, story, x, y), terms(name, story, x, y.roll(1, 0))
    expected = (ROWS * sum(of_rows) + NULL * sum(of_null)) / N
    assert_close(added(story, prior, x, y), expected, rtol=1e-8, atol=1e-10)


@each_story
def test_the_rows_of_minibatches_add_up_to_those_of_all(make, x, y, name):
    story, prior = make(name), Prior(rows=ROWS)
    parts = zip(x.split(8), y.split(8), strict=True)
    total = sum(added(story, prior, *part) for part in parts)
    assert_close(total, added(story, prior, x, y), rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("name", ["me", "gmm_moe"])
@pytest.mark.parametrize("prior", [Prior(ROWS), Prior(ROWS, NULL)])
def test_em_records_the_likelihood_and_the_prior_per_row(make, x, y, name, prior):
    story = make(name)
    em = EM(story.model, story.guide, (x, y), 1, 0, prior)
    joint = em.log_joint()
    log_prior = ROWS / N * joint.sum()
    for number in range(PERMUTATIONS if prior.null_rows else 0):
        permuted = em.log_joint(without_effect((x, y), 0, number))
        log_prior = log_prior + prior.null_rows / (PERMUTATIONS * N) * permuted.sum()
    ridge = 0.0
    if name == "me":
        ridge = 0.5e-4 * story.gate.maps.weight.detach().square().sum() / D
    expected = joint.logsumexp(0).sum() + log_prior - ridge
    assert next(iter(em))["objective"] == pytest.approx(expected.item() / N, rel=1e-10)


def test_without_targets_there_are_no_rows_without_an_effect(make, x):
    story = make("gmm_moe")
    first, second = (added(story, Prior(ROWS, null), x) for null in (0.0, NULL))
    assert_close(first, second)
    assert first != 0


# The M-step


def least_squares(x, y, weights):
    """Predictions for x of weighted least squares, by numpy."""
    known = ~y.isnan().any(-1)
    design, root = np.c_[x.numpy(), np.ones(len(x))], np.sqrt(weights.numpy())[:, None]
    rows = known.numpy()
    a = np.linalg.lstsq(design[rows] * root[rows], y[known].numpy() * root[rows], rcond=None)[0]
    return torch.as_tensor(design[:N] @ a)


def test_experts_are_weighted_least_squares_with_more_weight_in_each_row(make, x, y):
    story, r = make("me"), torch.rand(N, K).softmax(-1)
    EM(story.model, story.guide, (x, y), 1, 0, Prior(rows=50.0)).m_step(r)
    for k in range(K):
        expected = least_squares(x, y, r[:, k] + 50.0 / N)
        assert_close(story.experts(x).mean[:, k].detach(), expected, rtol=0, atol=1e-5)


def test_rows_without_an_effect_are_rows_of_least_squares(make, x, y):
    story, r = make("gmm_moe"), torch.rand(N, K).softmax(-1)
    EM(story.model, story.guide, (x, y), 1, 5, Prior(ROWS, 30.0)).m_step(r)
    copies = [without_effect((x, y), 5, number)[1] for number in range(PERMUTATIONS)]
    many_x, many_y = x.repeat(1 + PERMUTATIONS, 1), torch.cat([y, *copies])
    for k in range(K):
        null = torch.full((PERMUTATIONS * N,), 30.0 / (PERMUTATIONS * N))
        weights = torch.cat([r[:, k] + ROWS / N, null])
        expected = least_squares(many_x, many_y, weights)
        assert_close(story.experts(x).mean[:, k].detach(), expected, rtol=0, atol=1e-5)


def test_many_rows_of_the_prior_make_all_components_one_model(make, x, y):
    story, r = make("gmm_moe"), torch.rand(N, K).softmax(-1)
    EM(story.model, story.guide, (x, y), 1, 0, Prior(rows=1e9)).m_step(r)
    means = story.experts(x).mean.detach()
    assert_close(means, means[:, :1].expand_as(means), rtol=0, atol=1e-5)
    loc = story.mixture.normals.mean.detach()
    assert_close(loc, x.mean(0).expand_as(loc), rtol=0, atol=1e-5)


def test_the_weights_of_all_rows_add_up(x, y):
    r = torch.rand(N, K).softmax(-1)
    weights, points, data = with_prior_rows(Prior(ROWS, NULL), r, x, (x, y), seed=2)
    assert_close(weights.sum(0), r.sum(0) + ROWS + NULL)
    assert [len(each) for each in (weights, points, *data)] == [(1 + PERMUTATIONS) * N] * 4
    assert_close(weights[:N], r + ROWS / N)
    assert_close(points, x.repeat(1 + PERMUTATIONS, 1), rtol=0, atol=0)
    assert_close(data[0], points, rtol=0, atol=0)
    known = y[~y.isnan()].sort().values
    for number, part in enumerate(data[1].split(N)):
        assert_close(part[~part.isnan()].sort().values, known, rtol=0, atol=0)
        assert torch.equal(part.nan_to_num(9.0), y.nan_to_num(9.0)) == (number == 0)


def test_a_flat_prior_adds_no_rows(x, y):
    r = torch.rand(N, K).softmax(-1)
    weights, points, data = with_prior_rows(FLAT, r, x, (x, y), seed=0)
    assert_close((weights, points), (r, x), rtol=0, atol=0)
    assert data[1] is y


def test_rows_without_targets_have_no_copies(x):
    r = torch.rand(N, K).softmax(-1)
    weights, _, data = with_prior_rows(Prior(ROWS, NULL), r, x, (x,), seed=0)
    assert_close(weights, r + ROWS / N)
    assert len(data) == 1


# The ridge


def test_the_ridge_of_experts_is_off_without_a_prior_and_on_again_with_one():
    story = ME(D, M, K, experts="poisson")
    with_ridge(FLAT, story.model)
    assert (story.gate.ridge, story.experts.ridge) == (0.0, 0.0)
    assert log_ridge(story.model) == 0.0
    with_ridge(Prior(ridge=0.3), story.model)
    assert (story.gate.ridge, story.experts.ridge) == (0.3, 1e-3)
    with_ridge(WEAK, story.model)
    assert story.gate.ridge == 1e-4


@pytest.mark.parametrize(("family", "ridge"), [("categorical", 0.04), ("bernoulli", 0.04)])
def test_classes_have_a_stronger_ridge(family, ridge):
    assert experts_of(family, D, K, 2).ridge == ridge


def test_the_ridge_is_half_the_squares_of_gate_and_experts():
    story = ME(D, M, K, experts="poisson")
    with_ridge(Prior(ridge=0.3), story.model)
    w, v = story.gate.maps.weight.square().sum() / D, story.experts.network.weight.square().sum()
    assert log_ridge(story.model).item() == pytest.approx(-0.15 * w.item() - 0.5e-3 * v.item())


def test_parts_within_experts_are_counted_once():
    story = HierarchicalME(D, M, (2, 2))
    with_ridge(Prior(ridge=0.3), story.model)
    below = [p for name, p in story.experts.named_parameters() if name.endswith("weight")]
    expected = -0.15 * story.gate.maps.weight.square().sum() / D
    expected = expected - 0.5e-3 * sum(p.square().sum() for p in below)
    assert log_ridge(story.model).item() == pytest.approx(expected.item())


@pytest.mark.parametrize("name", ["me", "dvmoe"])
def test_the_ridge_is_a_part_of_the_marginal_objective(make, x, y, name):
    story = make(name)
    prior = Prior(rows=0.0, ridge=0.3, networks=0.5)
    with_ridge(prior, story.model)
    assert_close(added(story, prior, x, y), log_ridge(story.model), rtol=1e-8, atol=1e-10)
    assert log_ridge(story.model) < 0


def test_the_weights_of_perceptrons_have_a_standard_normal_prior():
    story = DVMoE(D, M, K, z_dim=1, hidden=(3,))
    with_ridge(Prior(ridge=0.3, networks=1.0), story.model)
    weights = [
        part.weight
        for perceptron in story.modules()
        if isinstance(perceptron, MLP)
        for part in perceptron
        if isinstance(part, nn.Linear)
    ]
    assert len(weights) == 6  # encoder, decoder and gate have two layers each
    squares = sum(weight.square().sum() for weight in weights)
    experts = 1e-3 * story.experts.squared_weights()
    assert log_ridge(story.model).item() == pytest.approx(-0.5 * (squares + experts).item())
    with_ridge(FLAT, story.model)
    assert log_ridge(story.model) == 0.0


def test_other_stories_have_no_ridge():
    story = GMM(D, K)
    with_ridge(WEAK, story.model, nn.Linear(2, 2))
    assert log_ridge(story.model) == 0.0


@pytest.mark.parametrize("name", ["rows", "null_rows", "ridge", "networks"])
@pytest.mark.parametrize("value", [-1.0, float("nan")])
def test_a_negative_weight_is_an_error(name, value):
    with pytest.raises(ValueError, match=rf"expected {name} of at least 0; got {value}"):
        Prior(**{name: value})
