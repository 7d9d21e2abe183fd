"""Targets far from the training data, where the expert that fits has a gate of about 1e-60."""

import copy

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy import stats
from scipy.special import log_softmax, logsumexp

import pyro_moe
from pyro_moe import criticism, evaluation, models

FAR = 138.0  # the log-odds of the two components at x = 1
X = torch.tensor([[1.0], [0.9], [-1.0]], dtype=torch.float32)
Y = torch.tensor([[-30.0], [-31.5], [40.0]], dtype=torch.float32)


def set_experts(experts):
    """Two lines, y = ± 30 x, with scales of about one half."""
    with torch.no_grad():
        experts.network.weight.copy_(torch.tensor([[[30.0]], [[-30.0]]]))
        experts.network.bias.zero_()
        experts.log_scale.copy_(torch.tensor([[-0.7], [-0.6]]))


def set_affine_gate(gate):
    with torch.no_grad():
        gate.maps.weight.copy_(torch.tensor([[[FAR / 2], [-FAR / 2]]]))
        gate.maps.bias.zero_()


def set_linear(layer, weight, bias=0.0):
    with torch.no_grad():
        layer.weight.copy_(torch.as_tensor(weight).reshape(layer.weight.shape))
        layer.bias.copy_(torch.as_tensor(bias))


def me():
    story = models.ME(1, 1, 2)
    set_affine_gate(story.gate)
    return story, lambda exact, x: exact.gate(x).logits


def deep_moe():
    story = models.DeepMoE(1, 1, 2, gate=torch.nn.Linear(1, 2))
    set_linear(story.gate.network[1], [FAR / 2, -FAR / 2])
    return story, lambda exact, x: exact.gate(x).logits


def gmm_moe():
    story = models.GMMMoE(1, 1, 2)
    root = (FAR / 2) ** 0.5  # N(x | ± √(a / 2), 1) have log-odds of 2 √(a / 2) x
    with torch.no_grad():
        story.mixture.loc.copy_(torch.tensor([[root], [-root]]))
        story.mixture.log_scale.fill_(-0.5 * np.log(root))

    def log_gate(exact, x):
        mixture = exact.mixture
        normals = stats.norm(mixture.loc[:, 0], mixture.log_scale[:, 0].exp())
        return torch.as_tensor(normals.logpdf(x))

    return story, log_gate


def dvmoe():
    story = models.DVMoE(1, 1, 2, z_dim=1, gate=torch.nn.Linear(1, 2))
    set_linear(story.gate.network[1], [FAR / 2, -FAR / 2])
    return story, lambda exact, x: exact.gate(x).logits


def vade_moe():
    story = models.VaDEMoE(1, 1, 2, z_dim=1, encoder=torch.nn.Linear(1, 2))
    set_linear(story.encoder.network[1], [8.3, 0.0], [0.0, -10.0])  # z = 8.3 x, almost surely
    with torch.no_grad():
        story.prior.loc.copy_(torch.tensor([[8.3], [-8.3]]))
        story.prior.log_scale.zero_()
        story.prior.correlation.zero_()
    return story, lambda exact, x: exact.prior.log_joint(exact.encoder(x).mean)


STORIES = {"me": me, "deep": deep_moe, "gmm": gmm_moe, "dvmoe": dvmoe, "vade": vade_moe}


def kept(model, guide, dtype=torch.float32):
    x, y = torch.randn(20, 1, dtype=dtype), torch.randn(20, 1, dtype=dtype)
    return pyro_moe.fit(
        model, guide, (x, y), epochs=0, initialize="keep", loss="marginal", progress=False
    )


def mixed(log_gate, experts):
    """SciPy's log-density of Y."""
    with torch.no_grad():
        normals = experts(X.double()).base_dist
        each = stats.norm(normals.loc[..., 0], normals.scale[..., 0]).logpdf(Y)
        return logsumexp(log_softmax(log_gate(X.double()).numpy(), axis=-1) + each, axis=-1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", STORIES)
def test_the_density_is_scipys_at_the_same_parameters(name, dtype):
    story, log_gate = STORIES[name]()
    set_experts(story.experts)
    fit = kept(story.to(dtype).model, story.guide, dtype)
    exact = copy.deepcopy(fit.story).double()
    expected = mixed(lambda x: log_gate(exact, x), exact.experts)
    assert (expected < -110).all()  # where probabilities in single precision are zero
    prediction = evaluation.predict(fit, X)
    np.testing.assert_allclose(prediction.log_prob(Y), expected, rtol=0, atol=1e-4)
    table = criticism.compare({"one": fit}, (X, Y))
    assert table["log_density"].item() == pytest.approx(expected.mean(), abs=1e-4)


def test_of_a_tree_the_density_is_scipys():
    story = models.HierarchicalME(1, 1, (2, 2)).float()
    set_affine_gate(story.gate)
    for branch, sign in zip(story.experts.experts, (1.0, -1.0), strict=True):
        set_affine_gate(branch.gate)
        set_experts(branch.experts)
        with torch.no_grad():
            branch.gate.maps.weight.mul_(0.1)
            branch.experts.network.weight.mul_(sign)
            branch.experts.network.bias.fill_(sign)
    fit = kept(story.model, story.guide)
    exact = copy.deepcopy(fit.story).double()
    below = [mixed(lambda x, b=b: b.gate(x).logits, b.experts) for b in exact.experts.experts]
    gate = exact.gate(X.double()).logits.detach().log_softmax(-1).numpy()
    expected = logsumexp(gate + np.stack(below, -1), axis=-1)
    np.testing.assert_allclose(evaluation.predict(fit, X).log_prob(Y), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("in_guide", [True, False])
@pytest.mark.parametrize("as_probs", [True, False])
def test_of_a_plain_function_the_density_is_scipys(in_guide, as_probs):
    """PyTorch clamps given probabilities at 1e-7; here they are 1e-30."""
    experts = models.NormalExperts(models.AffineMaps(1, 2, 1), 2, 1).float()
    set_experts(experts)
    half = 0.25 * FAR

    def gate(x):
        logits = torch.cat([half * x, -half * x], -1)
        given = {"probs": logits.softmax(-1)} if as_probs else {"logits": logits}
        return dist.OneHotCategorical(**given)

    def model(x, y=None):
        pyro.module("experts", experts)
        with pyro.plate("data", len(x)):
            c = pyro.sample("c", gate(x))
            normals = experts(x).base_dist
            plain = dist.Normal(normals.loc, normals.scale).to_event(1)
            models.observe_target(models.choose(c, plain), y)

    def guide(x, y=None):
        if in_guide:
            with pyro.plate("data", len(x)):
                pyro.sample("c", gate(x))

    fit = kept(model, guide)
    exact = copy.deepcopy(experts).double()
    expected = mixed(lambda x: torch.cat([half * x, -half * x], -1), exact)
    got = evaluation.predict(fit, X).log_prob(Y)
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-4)


def test_an_expert_without_weight_has_none_at_any_distance():
    def model(x, y=None):
        with pyro.plate("data", len(x)):
            c = pyro.sample("c", dist.OneHotCategorical(torch.tensor([1.0, 0.0])))
            experts = dist.Normal(torch.tensor([[0.0], [50.0]]), 1.0).to_event(1)
            models.observe_target(models.choose(c, experts), y)

    def guide(x, y=None):
        with pyro.plate("data", len(x)):
            pyro.sample("c", dist.OneHotCategorical(torch.tensor([1.0, 0.0])))

    fit = kept(model, guide, torch.float64)
    got = evaluation.predict(fit, X).log_prob([[50.0]] * 3)
    np.testing.assert_allclose(got, stats.norm.logpdf(50.0), rtol=1e-12)
    bound = evaluation.elbo(fit, (X, Y))
    np.testing.assert_allclose(bound, stats.norm.logpdf(Y[:, 0]), rtol=1e-6)


def test_the_tails_of_the_distribution_function_have_their_digits():
    """In single precision 1 - F is zero or a multiple of 6e-8 beyond five deviations."""
    story = models.ME(1, 1, 1).float()
    with torch.no_grad():
        story.experts.network.weight.zero_(), story.experts.network.bias.zero_()
    fit = kept(story.model, story.guide)
    prediction = evaluation.predict(fit, X)
    scale = prediction.variance[0, 0].sqrt().item()
    tail = 1 - prediction.cdf(torch.full((3, 1), 6.0 * scale))
    np.testing.assert_allclose(tail, stats.norm.sf(6.0), rtol=1e-4)
    q = prediction.quantile(1 - 1e-9)
    np.testing.assert_allclose(q, scale * stats.norm.ppf(1 - 1e-9), rtol=1e-6)


@pytest.mark.parametrize("unit", [1e-24, 1e-3, 1e12])
def test_moments_have_the_units_of_the_target(unit):
    """A variance of 1e-48 is zero in single precision."""
    experts = dist.Normal(torch.tensor([[[1.0], [3.0]]]).float() * unit, unit).to_event(1)
    prediction = evaluation.Prediction(torch.zeros(1, 1, 2).log_softmax(-1), (experts,))
    np.testing.assert_allclose(prediction.mean, 2.0 * unit, rtol=1e-6)
    np.testing.assert_allclose(prediction.within, unit**2, rtol=1e-6)
    np.testing.assert_allclose(prediction.between, unit**2, rtol=1e-6)
    np.testing.assert_allclose(prediction.variance.sqrt(), 2**0.5 * unit, rtol=1e-6)
    np.testing.assert_allclose(prediction.quantile(0.5), 2.0 * unit, rtol=1e-6)
    score = evaluation.regression_scores(prediction, [[2.0 * unit]])
    assert score["crps"] / unit == pytest.approx(0.35941, rel=1e-4)  # E|Y - y| - E|Y - Y'| / 2
