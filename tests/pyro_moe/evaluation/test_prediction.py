"""Predictions are mixtures of what experts say, by hand and whatever was fitted."""

import math
from dataclasses import replace
from functools import partial

import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import scipy.stats
import torch
from torch.testing import assert_close

import pyro_moe
from pyro_moe import DataError, DataWarning, Rows, SiteError, evaluation
from pyro_moe.distributions.mixture import Mixture
from pyro_moe.evaluation import Prediction
from pyro_moe.models import DMVAE, ME, DeepMoE, DVMoE, GMMMoE, HierarchicalME, VaDEMoE

pytestmark = pytest.mark.usefixtures("double")
N, D, L, K, M = 12, 3, 2, 4, 2
EXACT = {"rtol": 0, "atol": 0}
CLOSE = {"rtol": 1e-9, "atol": 1e-11}
LEVELS = (0.01, 0.3, 0.5, 0.95)


def as_it_is(model, guide, *columns):
    """A fit whose parameters are those of the programs given."""
    return pyro_moe.fit(model, guide, columns, epochs=0, initialize="keep", progress=False)


def softmax_gate(story, x):
    return story.gate(x).probs, story.experts(x)


def mixture_gate(story, x):
    return story.mixture.responsibilities(x).probs, story.experts(x)


def encoders_gate(story, x):
    return story.gate(x).probs, story.expert_distributions(x)


STORIES = {  # how to make it, and its gate and experts by hand
    "me": (lambda **more: ME(D, M, K, **more), softmax_gate),
    "deepmoe": (lambda **more: DeepMoE(D, M, K, hidden=(5,), **more), softmax_gate),
    "hierarchicalme": (lambda **more: HierarchicalME(D, M, (K, 3), **more), softmax_gate),
    "gmmmoe": (lambda **more: GMMMoE(D, M, K, **more), mixture_gate),
    "vademoe": (lambda **more: VaDEMoE(D, M, K, L, hidden=(5,), **more), None),
    "vademoe of z": (lambda: VaDEMoE(D, M, K, L, hidden=(5,), context="z"), None),
    "dvmoe": (lambda **more: DVMoE(D, M, K, L, hidden=(5,), **more), encoders_gate),
    "dvmoe of z": (lambda: DVMoE(D, M, K, L, hidden=(5,), context="z"), encoders_gate),
}
each_story = pytest.mark.parametrize("name", STORIES)


@pytest.fixture
def x():
    return torch.randn(N, D)


@pytest.fixture
def y():
    return torch.randn(N, M)


@pytest.fixture
def fitted(scatter, x, y):
    """A function from the name of a story to a fit of it, away from its symmetric start."""

    def make(name, y=y, **more):
        story = scatter(STORIES[name][0](**more))
        return as_it_is(story.model, story.guide, x, y)

    return make


@pytest.fixture
def by_hand(fitted, x):
    """A function from the name of a story to a fit, its gate (N, K), and its experts (N, K)."""

    def make(name):
        fit, parts = fitted(name), STORIES[name][1]
        with torch.no_grad():
            if parts is not None:
                return fit, *parts(fit.story, x)
            return fit, evaluation.gate(fit, x), fit.story.expert_distributions(x)

    return make


# Every story


@each_story
def test_the_gate_is_that_of_the_story(by_hand, x, name):
    fit, g, _ = by_hand(name)
    prediction = evaluation.predict(fit, x)
    assert_close(prediction.gate, g, **CLOSE)
    assert_close(prediction.gate, evaluation.gate(fit, x), **CLOSE)
    assert_close(prediction.gate.sum(-1), torch.ones(N), **CLOSE)


@each_story
def test_mean_and_variance_are_those_of_the_mixture(by_hand, x, name):
    fit, g, experts = by_hand(name)
    prediction = evaluation.predict(fit, x)
    weights, means, variances = g.unsqueeze(-1), experts.mean, experts.variance
    mean = (weights * means).sum(1)
    assert_close(prediction.experts, means, **CLOSE)
    assert_close(prediction.mean, mean, **CLOSE)
    assert_close(prediction.within, (weights * variances).sum(1), **CLOSE)
    between = (weights * (means - mean.unsqueeze(1)) ** 2).sum(1)
    assert (between > 0).all()
    assert_close(prediction.between, between, **CLOSE)
    second_moment = (weights * (variances + means**2)).sum(1)
    assert_close(prediction.variance, second_moment - mean**2, **CLOSE)
    assert len(prediction) == N


@each_story
def test_the_density_is_that_of_the_mixture_jointly_over_columns(by_hand, x, y, name):
    fit, g, experts = by_hand(name)
    expected = (g.log() + experts.log_prob(y.unsqueeze(1))).logsumexp(-1)
    assert_close(evaluation.predict(fit, x).log_prob(y), expected, **CLOSE)


@each_story
def test_quantiles_undo_the_distribution_function_of_each_column(by_hand, x, name):
    fit, _, _ = by_hand(name)
    prediction = evaluation.predict(fit, x)
    for q in LEVELS:
        quantile = prediction.quantile(q)
        assert quantile.shape == (N, M)
        assert_close(prediction.cdf(quantile), torch.full((N, M), q), **CLOSE)


@each_story
def test_the_distribution_function_is_the_gates_average_of_the_experts(by_hand, x, y, name):
    fit, g, experts = by_hand(name)
    if name == "hierarchicalme":
        each = torch.stack([branch(x).log_prob(y) for branch in fit.story.experts.experts])
        assert each.shape == (K, N)  # a tree below, whose own distribution functions are tested
        below = sum(
            g[:, k, None]
            * torch.einsum(
                "nj,njm->nm",
                branch.gate(x).probs,
                branch.experts(x).base_dist.cdf(y.unsqueeze(1)),
            )
            for k, branch in enumerate(fit.story.experts.experts)
        )
    else:
        below = torch.einsum("nk,nkm->nm", g, experts.base_dist.cdf(y.unsqueeze(1)))
    assert_close(evaluation.predict(fit, x).cdf(y), below.detach(), **CLOSE)


@each_story
def test_what_is_said_of_a_row_does_not_depend_on_the_others(fitted, x, y, name):
    """For VaDE's gate, too: all rows share their points. One row is enough."""
    fit = fitted(name)
    whole, one = evaluation.predict(fit, x), evaluation.predict(fit, x[3:4])
    assert_close(one.mean, whole.mean[3:4], **CLOSE)
    assert_close(one.log_prob(y[3:4]), whole.log_prob(y)[3:4], **CLOSE)


@each_story
def test_all_that_is_mixed_is_listed(fitted, x, name):
    prediction = evaluation.predict(fitted(name), x)
    weights, means, variances = prediction.components()
    assert weights.shape == (N, K, 1)
    assert means.shape == variances.shape == (N, K, M)
    assert_close((weights * means).sum(1), prediction.mean, **CLOSE)
    assert_close((weights * variances).sum(1), prediction.within, **CLOSE)


@pytest.mark.parametrize("name", ["me", "deepmoe", "hierarchicalme", "gmmmoe", "dvmoe"])
def test_an_exact_gate_makes_a_prediction_without_randomness(fitted, x, name):
    fit = fitted(name)
    _, error = evaluation.gate(fit, x, return_error=True)
    assert_close(error, torch.zeros(N, K), **EXACT)
    first, second = (evaluation.predict(fit, x, seed=seed) for seed in (1, 2))
    assert len(first.distributions) == 1
    assert_close(first.weights, second.weights, **EXACT)
    assert_close(first.variance, second.variance, **EXACT)


def test_the_gate_of_a_vade_is_as_exact_as_asked_for(fitted, x):
    """What experts say is exact: only weights depend on the seed."""
    fit = fitted("vademoe")
    first, second, finer = (
        evaluation.predict(fit, x, seed=seed, num_samples=num_samples)
        for seed, num_samples in ((1, 16), (2, 16), (1, 1024))
    )
    assert_close(first.experts, second.experts, **EXACT)
    assert not torch.equal(first.gate, second.gate)
    for prediction, seed, num_samples in ((first, 1, 16), (finer, 1, 1024)):
        g = evaluation.gate(fit, x, seed=seed, num_samples=num_samples)
        assert_close(prediction.gate, g, rtol=1e-12, atol=0)


def test_predicting_needs_no_gradient_and_leaves_the_generator_alone(fitted, x):
    fit, state = fitted("vademoe"), torch.get_rng_state()
    prediction = evaluation.predict(fit, x)
    assert not prediction.mean.requires_grad
    assert_close(torch.get_rng_state(), state, **EXACT)
    assert len(pyro.get_param_store()) == 0


def test_rows_may_bring_targets_that_are_not_looked_at(fitted, x, y):
    fit = fitted("gmmmoe")
    expected = evaluation.predict(fit, x).mean
    for rows in ((x, y), Rows(x, y), Rows(x, torch.zeros(N, M)), x.numpy()):
        assert_close(evaluation.predict(fit, rows).mean, expected, **EXACT)


def test_fewer_rows_than_components_are_enough_for_a_story_that_is_not_to_learn(x, y, scatter):
    story = scatter(ME(D, M, K))
    expected = evaluation.predict(as_it_is(story.model, story.guide, x, y), x[:2]).mean
    fit = as_it_is(story.model, story.guide, x[:2], y[:2])
    assert_close(evaluation.predict(fit, x[:2]).mean, expected, **CLOSE)
    with pytest.raises(DataError, match="as many rows as components, 4; got 2"):
        pyro_moe.fit(
            story.model, story.guide, (x[:2], y[:2]), epochs=0, prior="none", progress=False
        )


# Targets of every kind


@pytest.mark.parametrize("name", ["me", "vademoe", "dvmoe"])
def test_one_target_may_be_a_column_or_none(fitted, x, y, name):
    """Shapes (N,) and (N, 1), in what is fitted and in what is asked."""
    make = {
        "me": lambda: ME(D, 1, K),
        "vademoe": lambda: VaDEMoE(D, 1, K, L, hidden=(5,)),
        "dvmoe": lambda: DVMoE(D, 1, K, L, hidden=(5,)),
    }[name]
    story, target = make(), y[:, 0]
    flat, column = (
        evaluation.predict(as_it_is(story.model, story.guide, x, each), x)
        for each in (target, target[:, None])
    )
    assert flat.mean.shape == flat.quantile(0.5).shape == (N, 1)
    assert_close(flat.mean, column.mean, **EXACT)
    for read in (flat.log_prob, flat.cdf):
        assert_close(read(target), read(target[:, None]), **EXACT)
        assert_close(read(target), read(target.tolist()), **EXACT)
        assert_close(read(target), read(target.numpy()), **EXACT)


COUNTS = {
    "poisson": lambda: torch.arange(N * M).reshape(N, M) % 7,
    "bernoulli": lambda: torch.arange(N * M).reshape(N, M) % 3 % 2,
}


@pytest.mark.parametrize("name", ["me", "hierarchicalme", "gmmmoe", "vademoe", "dvmoe"])
@pytest.mark.parametrize("experts", COUNTS)
def test_quantiles_of_counts_are_the_least_whole_numbers_that_are_enough(fitted, x, name, experts):
    fit = fitted(name, COUNTS[experts](), experts=experts)
    prediction = evaluation.predict(fit, x)
    for q in LEVELS:
        quantile = prediction.quantile(q)
        assert_close(quantile, quantile.round(), **EXACT)
        assert (prediction.cdf(quantile) >= q).all()
        assert (prediction.cdf(quantile - 1.0) < q).all()


def test_probabilities_of_counts_sum_to_their_distribution_function(fitted, x):
    prediction = evaluation.predict(fitted("dvmoe", COUNTS["poisson"](), experts="poisson"), x)
    counts = torch.arange(4.0)
    pairs = [torch.stack([a, b]).expand(N, 2) for a in counts for b in counts]
    joint = sum(prediction.log_prob(pair).exp() for pair in pairs)
    g, rate = prediction.gate, prediction.distributions[0].base_dist.rate
    below = torch.special.gammaincc(torch.tensor(4.0), rate)  # each expert's columns: independent
    assert_close(joint, (g * below.prod(-1)).sum(-1), **CLOSE)
    expected = (g.unsqueeze(-1) * below).sum(1)
    assert_close(prediction.cdf(torch.full((N, M), 3.0)), expected, **CLOSE)


@pytest.mark.parametrize("name", ["me", "hierarchicalme", "gmmmoe", "vademoe", "dvmoe"])
def test_of_classes_the_mean_is_their_probabilities(fitted, x, name):
    classes = torch.arange(N) % M
    prediction = evaluation.predict(fitted(name, classes, experts="categorical"), x)
    probs = prediction.mean
    assert probs.shape == (N, M)
    assert_close(probs.sum(-1), torch.ones(N), **CLOSE)
    assert_close(prediction.log_prob(classes), probs[range(N), classes].log(), **CLOSE)
    assert_close(prediction.variance, probs * (1 - probs), **CLOSE)
    with pytest.raises(DataError, match="a target whose values have an order; got classes"):
        prediction.quantile(0.5)
    with pytest.raises(DataError, match="a distribution function; got Categorical"):
        prediction.cdf(classes)


def test_heavy_tails_are_in_the_variance_and_in_the_quantiles(fitted, x):
    fit = fitted("dvmoe", experts="student-t")
    prediction = evaluation.predict(fit, x)
    g, experts = prediction.gate, fit.story.expert_distributions(x).base_dist
    scale, df = experts.scale.detach(), experts.df.detach()
    within = (g.unsqueeze(-1) * scale**2 * df / (df - 2)).sum(1)
    assert_close(prediction.within, within, **CLOSE)
    for q in LEVELS:
        assert_close(prediction.cdf(prediction.quantile(q)), torch.full((N, M), q), **CLOSE)


MOVES = {
    "me by em": (ME, {"loss": "em"}),
    "gmmmoe by em": (GMMMoE, {"loss": "em"}),
    "gmmmoe": (GMMMoE, {}),
    "deepmoe": (DeepMoE, {}),
    "student-t": (
        lambda *sizes: DeepMoE(*sizes, experts="student-t"),
        {"initialize": "random"},
    ),
    "dvmoe": (lambda *sizes: DVMoE(*sizes, L), {}),
    "vademoe from a clustering": (
        lambda *sizes: VaDEMoE(*sizes, L),
        {"initialize": (torch.eye(K)[torch.arange(5 * N) % K])},
    ),
}


@pytest.mark.filterwarnings("ignore::pyro_moe.EmptyComponentWarning")
@pytest.mark.parametrize("case", MOVES)
def test_predictions_are_in_the_units_of_the_target(case):
    story, choices = MOVES[case]
    story = story(D, M, K)
    x, y = torch.randn(5 * N, D).double(), torch.randn(5 * N, M).double()
    shift, scale = torch.tensor([100.0, -0.3]), torch.tensor([30.0, 0.01])
    before, after = (
        evaluation.predict(
            pyro_moe.fit(
                story.model,
                story.guide,
                (x, each),
                epochs=2,
                prior="none",
                progress=False,
                **choices,
            ),
            x,
        )
        for each in (y, shift + scale * y)
    )
    # Least squares that the rows of a component do not determine are rounded to 1e-5
    same = {"rtol": 1e-4, "atol": 1e-6}
    assert_close(after.gate, before.gate, **same)
    assert_close(after.mean, shift + scale * before.mean, **same)
    assert_close(after.variance, scale**2 * before.variance, **same)
    assert_close(after.quantile(0.9), shift + scale * before.quantile(0.9), **same)
    assert_close(after.log_prob(shift + scale * y), before.log_prob(y) - scale.log().sum(), **same)


# Models written by hand


LEVEL = torch.tensor([-2.0, 0.0, 3.0], dtype=torch.float64)  # of three regimes


def nothing(*columns):
    pass


def c_from_x(x, y=None):
    weight = pyro.param("guide_weight", torch.eye(D))
    with pyro.plate("data", len(x)):
        pyro.sample("c", dist.OneHotCategorical(logits=x @ weight))


def regimes(x, y=None):
    """Lines of one slope and three levels, the regime chosen by x."""
    level, slope = pyro.param("level", LEVEL.clone()), pyro.param("slope", torch.tensor(0.5))
    scale = pyro.param("scale", torch.tensor(0.7), constraint=dist.constraints.positive)
    weight = pyro.param("weight", torch.eye(D))
    with pyro.plate("data", len(x)):
        c = pyro.sample("c", dist.OneHotCategorical(logits=x @ weight))
        pyro.sample("y", dist.Normal(c @ level + slope * x[:, 0], scale), obs=y)


@pytest.mark.parametrize("guide", [nothing, c_from_x])
@pytest.mark.parametrize("epochs", [0, 3])
@pytest.mark.filterwarnings("ignore:expected at least:pyro_moe.EmptyComponentWarning")
def test_a_target_may_depend_on_c_directly(x, guide, epochs):
    """Without c in the guide, its probabilities are the model's."""
    y = LEVEL[x.argmax(-1)] + 0.5 * x[:, 0] + 0.5 * torch.randn(N)
    start = {"initialize": "keep", "epochs": epochs, "prior": "none", "progress": False}
    fit = pyro_moe.fit(regimes, guide, (x, y), **start)
    prediction = evaluation.predict(fit, x)
    learned = fit.parameters()
    level, slope, scale = learned["level"], learned["slope"], learned["scale"].exp()
    logits = x @ learned["weight" if guide is nothing else "guide_weight"]
    g, means = logits.softmax(-1), level + slope * x[:, :1]
    assert_close(prediction.gate, g, **CLOSE)
    assert_close(evaluation.gate(fit, x), g, **CLOSE)
    assert_close(prediction.experts, means.unsqueeze(-1), **CLOSE)
    mean = (g * means).sum(-1)
    assert_close(prediction.mean, mean.unsqueeze(-1), **CLOSE)
    variance = scale**2 + (g * (means - mean[:, None]) ** 2).sum(-1)
    assert_close(prediction.variance, variance.unsqueeze(-1), **CLOSE)
    expected = (g.log() + dist.Normal(means, scale).log_prob(y[:, None])).logsumexp(-1)
    assert_close(prediction.log_prob(y), expected, **CLOSE)
    assert_close(prediction.cdf(prediction.quantile(0.3)), torch.full((N, 1), 0.3), **CLOSE)
    scores = evaluation.regression_scores(prediction, y)
    assert scores["error"] == pytest.approx((y - mean).square().mean().item())
    assert scores["log_likelihood"] == pytest.approx(expected.mean().item())


def torchs_mixture(x, y=None):
    """A mixture of x, and beside it torch's own mixture for y, gated by x."""
    loc, weight = pyro.param("loc", torch.eye(D)), pyro.param("weight", -torch.eye(D))
    with pyro.plate("data", len(x)):
        c = pyro.sample("c", dist.OneHotCategorical(torch.ones(3)))
        pyro.sample("x", dist.Normal(c @ loc, 1.0).to_event(1), obs=x)
        which = dist.Categorical(logits=x @ weight)
        lines = dist.Normal(LEVEL + x[:, :1], 0.5)
        pyro.sample("y", dist.MixtureSameFamily(which, lines), obs=y)


@pytest.mark.filterwarnings("ignore:expected at least:pyro_moe.EmptyComponentWarning")
def test_a_target_may_be_torchs_mixture(x, y):
    start = {"initialize": "keep", "epochs": 2, "prior": "none", "progress": False}
    fit = pyro_moe.fit(torchs_mixture, nothing, (x, y[:, 0]), **start)
    learned = fit.parameters()
    prediction = evaluation.predict(fit, x)
    g, means = (x @ learned["weight"]).softmax(-1), LEVEL + x[:, :1]
    assert_close(prediction.gate, g, **CLOSE)  # what answers for y, and not the c of x
    of_x = dist.Normal(learned["loc"], 1.0).to_event(1).log_prob(x.unsqueeze(1)).softmax(-1)
    assert_close(evaluation.gate(fit, x), of_x, **CLOSE)
    expected = dist.MixtureSameFamily(dist.Categorical(g), dist.Normal(means, 0.5))
    assert_close(prediction.mean[:, 0], expected.mean, **CLOSE)
    assert_close(prediction.variance[:, 0], expected.variance, **CLOSE)
    assert_close(prediction.log_prob(y[:, 0]), expected.log_prob(y[:, 0]), **CLOSE)
    assert_close(prediction.cdf(y[:, 0])[:, 0], expected.cdf(y[:, 0]), **CLOSE)
    scores = evaluation.regression_scores(prediction, y[:, 0])
    assert scores["log_likelihood"] == pytest.approx(expected.log_prob(y[:, 0]).mean().item())


def test_experts_may_be_shared_by_the_values_of_c(x, y):
    """Each regime mixes the same three lines by shares of its own, which are no choice of one."""
    shares = torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.8, 0.1], [0.3, 0.3, 0.4]])

    def model(x, y=None):
        with pyro.plate("data", len(x)):
            c = pyro.sample("c", dist.OneHotCategorical(logits=x))
            lines = dist.Normal(LEVEL + x[:, :1], 0.5)
            pyro.sample("y", Mixture((c @ shares).log(), lines), obs=y)

    prediction = evaluation.predict(as_it_is(model, nothing, x, y[:, 0]), x)
    flat = dist.MixtureSameFamily(
        dist.Categorical(x.softmax(-1) @ shares), dist.Normal(LEVEL + x[:, :1], 0.5)
    )
    assert prediction.gate.shape == (N, 3)
    assert_close(prediction.mean[:, 0], flat.mean, **CLOSE)
    assert_close(prediction.variance[:, 0], flat.variance, **CLOSE)
    assert_close(prediction.log_prob(y[:, 0]), flat.log_prob(y[:, 0]), **CLOSE)
    assert_close(prediction.cdf(y[:, 0])[:, 0], flat.cdf(y[:, 0]), **CLOSE)


def test_a_target_without_c_is_one_experts(x, y):
    def model(x, y=None):
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(x[:, :2], 0.5).to_event(1), obs=y)

    fit = as_it_is(model, nothing, x, y)
    prediction = evaluation.predict(fit, x)
    assert_close(prediction.gate, torch.ones(N, 1), **EXACT)
    assert_close(prediction.mean, x[:, :2], **EXACT)
    assert_close(prediction.variance, torch.full((N, 2), 0.25), **EXACT)
    expected = dist.Normal(x[:, :2], 0.5).log_prob(y).sum(-1)
    assert_close(prediction.log_prob(y), expected, **CLOSE)
    with pytest.raises(SiteError, match="a site 'c' in the guide or the model"):
        evaluation.gate(fit, x)


# Other latent variables


def slope_with_prior(x, y=None):
    slope = pyro.sample("slope", dist.Normal(torch.zeros(D), 2.0).to_event(1))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(x @ slope, 0.3), obs=y)


def slope_normal(x, y=None):
    loc = pyro.param("loc", torch.tensor([1.0, -1.0, 0.5]))
    scale = pyro.param("scale", torch.full((D,), 0.4), constraint=dist.constraints.positive)
    pyro.sample("slope", dist.Normal(loc, scale).to_event(1))


def z_with_prior(x, y=None):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(D), 1.0).to_event(1))
        pyro.sample("y", dist.Normal(z @ torch.tensor([1.0, -1.0, 0.5]), 0.3), obs=y)


def z_from_x(x, y=None):
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(x, 0.4).to_event(1))


@pytest.mark.parametrize(
    ("model", "guide", "spread"),
    [
        (slope_with_prior, slope_normal, lambda x: 0.16 * x.square().sum(-1)),
        (z_with_prior, z_from_x, lambda x: torch.full((N,), 0.16 * 2.25)),
    ],
    ids=["a slope with a prior", "a z for each row"],
)
def test_predictions_average_over_what_the_guide_leaves_open(x, y, model, guide, spread):
    """For a normal y of normal latents, in closed form."""
    fit = as_it_is(model, guide, x, y[:, 0])
    prediction = evaluation.predict(fit, x, num_samples=1024)
    draws = 1024
    assert len(prediction.distributions) == draws
    assert_close(prediction.within, torch.full((N, 1), 0.09), **CLOSE)
    mean, between = x @ torch.tensor([1.0, -1.0, 0.5]), spread(x)
    target = mean + 0.5 * y[:, 0].sign()  # where draws are many
    error = (between / draws).sqrt()
    assert ((prediction.mean[:, 0] - mean).abs() < 4.5 * error).all()
    error_of_variance = between * (2.0 / draws) ** 0.5
    assert ((prediction.between[:, 0] - between).abs() < 4.5 * error_of_variance).all()
    exact = dist.Normal(mean, (0.09 + between).sqrt())
    densities = torch.stack([p.log_prob(target[:, None])[:, 0] for p in prediction.distributions])
    error = densities.exp().std(0) / draws**0.5
    density = prediction.log_prob(target).exp()
    assert ((density - exact.log_prob(target).exp()).abs() < 4.5 * error).all()
    assert_close(prediction.cdf(prediction.quantile(0.8)), torch.full((N, 1), 0.8), **CLOSE)


def test_the_seed_decides_the_draws(x, y):
    fit = as_it_is(slope_with_prior, slope_normal, x, y[:, 0])
    first, same, other = (evaluation.predict(fit, x, seed=seed).mean for seed in (1, 1, 2))
    assert_close(first, same, **EXACT)
    assert not torch.equal(first, other)


def test_experts_with_priors_have_a_gate_that_does_not_vary(x, y):
    """c by x, the levels of the regimes with a posterior of their own."""

    def model(x, y=None):
        level = pyro.sample("level", dist.Normal(LEVEL, 1.0).to_event(1))
        with pyro.plate("data", len(x)):
            c = pyro.sample("c", dist.OneHotCategorical(logits=x))
            pyro.sample("y", dist.Normal(c @ level, 0.3), obs=y)

    def guide(x, y=None):
        pyro.sample("level", dist.Normal(LEVEL, 0.2).to_event(1))
        with pyro.plate("data", len(x)):
            pyro.sample("c", dist.OneHotCategorical(logits=x))

    fit = as_it_is(model, guide, x, y[:, 0])
    prediction = evaluation.predict(fit, x, num_samples=512)
    g = x.softmax(-1)
    assert_close(prediction.gate, g, **CLOSE)
    error = 0.2 / 512**0.5
    assert ((prediction.experts[..., 0] - LEVEL).abs() < 4.5 * error).all()
    assert_close(prediction.mean, (g.unsqueeze(-1) * prediction.experts).sum(1), **CLOSE)


# What cannot be


def test_a_story_without_a_target_is_told_so(x):
    story = DMVAE(D, L, K, hidden=(5,))
    fit = pyro_moe.fit(story.model, story.guide, x, epochs=0, initialize="keep", progress=False)
    with pytest.raises(SiteError) as caught:
        evaluation.predict(fit, x)
    assert str(caught.value) == "expected a site 'y' in the model; got sites ['c', 'x', 'z']"


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (torch.zeros(N), r"expected y of shape \(12, 2\); got \(12,\)"),
        (torch.zeros(N, 3), r"expected y of shape \(12, 2\); got \(12, 3\)"),
        (torch.zeros(N + 1, M), r"as many rows in y as in x, 12; got shape \(13, 2\)"),
        (torch.full((N, M), math.nan), "expected finite values in y; got nan in row 0"),
    ],
)
@pytest.mark.parametrize("read", ["log_prob", "cdf"])
def test_targets_of_another_shape_are_an_error(fitted, x, target, message, read):
    with pytest.raises(DataError, match=message):
        getattr(evaluation.predict(fitted("me"), x), read)(target)


@pytest.mark.parametrize("q", [0.0, 1.0, -0.1, math.nan])
def test_a_level_that_is_no_probability_is_an_error(fitted, x, q):
    with pytest.raises(ValueError, match=f"expected q between 0 and 1; got {q}"):
        evaluation.predict(fitted("me"), x).quantile(q)


def test_rows_of_another_width_are_an_error(fitted):
    with pytest.raises(DataError, match="expected x with 3 columns, as fitted; got 2"):
        evaluation.predict(fitted("me"), torch.zeros(5, 2))


# Draws of the target


MANY = 1000


def moments_agree(prediction):
    """Whether draws have the mean and variance of each row's prediction, to five errors."""
    draws = prediction.sample(MANY, seed=1).reshape(MANY, len(prediction), -1)
    error = (prediction.variance / MANY).sqrt()
    mean = ((draws.mean(0) - prediction.mean).abs() <= 5 * error + 1e-12).all()
    squared = (draws - prediction.mean).square()
    error = squared.std(0) / MANY**0.5
    return bool(mean and ((squared.mean(0) - prediction.variance).abs() <= 5 * error).all())


@each_story
def test_draws_have_the_moments_of_the_prediction(fitted, x, name):
    prediction = evaluation.predict(fitted(name), x)
    assert prediction.sample(3).shape == (3, N, M)
    assert moments_agree(prediction)


def test_draws_with_other_weights_have_other_moments(fitted, x):
    prediction = evaluation.predict(fitted("me"), x)
    flipped = replace(prediction, log_weights=prediction.log_weights.flip(-1))
    draws = flipped.sample(MANY, seed=1)
    error = (prediction.variance / MANY).sqrt()
    assert ((draws.mean(0) - prediction.mean).abs() > 6 * error).any()


@pytest.mark.parametrize("leading", [False, True])
@pytest.mark.parametrize("num_draws", [1, 2, 5])
def test_draws_of_several_latent_draws_have_the_moments_of_all(leading, num_draws):
    shape = (K, N) if leading else (N, K)
    experts = tuple(
        dist.Normal(3 * torch.randn(*shape, M), torch.rand(*shape, M) + 0.1).to_event(1)
        for _ in range(num_draws)
    )
    weights = torch.randn(num_draws, N, K).softmax(-1)
    assert moments_agree(evaluation.Prediction(weights.log(), experts, leading))


def test_all_rows_of_one_draw_share_their_latent_draw():
    """Of three latent draws, whose experts are a hundred apart, each in its turn."""
    experts = tuple(dist.Normal(torch.full((N, 1), 100.0 * s), 1.0) for s in range(3))
    draws = evaluation.Prediction(torch.zeros(3, N, 1), experts).sample(7)
    assert draws.shape == (7, N)
    assert (draws / 100).round().tolist() == [[float(i % 3)] * N for i in range(7)]


def test_draws_of_classes_have_their_probabilities():
    classes = 3
    p = dist.Categorical(logits=torch.randn(N, K, classes))
    prediction = evaluation.Prediction(torch.randn(1, N, K).log_softmax(-1), (p,))
    draws = prediction.sample(MANY)
    assert draws.shape == (MANY, N)
    shares = torch.nn.functional.one_hot(draws.long(), classes).double().mean(0)
    error = (prediction.mean * (1 - prediction.mean) / MANY).sqrt()
    assert ((shares - prediction.mean).abs() < 5 * error).all()


def test_an_expert_of_no_weight_is_never_drawn():
    p = dist.Normal(torch.tensor([0.0, 100.0]).expand(N, 2), 1.0)
    weights = torch.tensor([1.0, 0.0]).expand(1, N, 2)
    assert evaluation.Prediction(weights.log(), (p,)).sample(500).max() < 50


def test_the_seed_decides_the_draws_of_the_target(fitted, x):
    prediction = evaluation.predict(fitted("me"), x)
    first, again, other = (prediction.sample(4, seed=seed) for seed in (0, 0, 1))
    assert_close(first, again, **EXACT)
    assert (first != other).all()


@pytest.mark.parametrize("df", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("q", [0.001, 0.3, 0.95])
def test_quantiles_of_tails_too_heavy_for_a_variance(df, q):
    loc = torch.tensor([[-5.0, 1000.0], [0.0, 1.0]], dtype=torch.float64)
    p = dist.StudentT(df, loc, 1.0).to_event(0)
    prediction = Prediction(torch.tensor([[[0.3, 0.7], [1.0, 0.0]]]).double().log(), (p,))
    value = prediction.quantile(q)
    assert_close(prediction.cdf(value[:, 0]), torch.full_like(value, q), rtol=1e-6, atol=0)
    alone = scipy.stats.t(df, 0.0, 1.0).ppf(q)
    assert value[1].item() == pytest.approx(alone, rel=1e-6)


@pytest.mark.parametrize("q", [0.3, 0.95])
def test_a_quantile_of_narrow_experts_that_are_far_apart(q):
    means = torch.tensor([[-1e22, 0.0]]).double()
    shares = torch.tensor([[[0.1, 0.9]]]).double()
    p = Prediction(shares.log(), (dist.Normal(means, 1.0),))
    value = p.quantile(q).reshape(-1)
    expected = torch.tensor([(q - 0.1) / 0.9]).double()
    assert_close(dist.Normal(0.0, 1.0).cdf(value), expected)


def test_named_targets_are_matched_by_name():
    x = torch.randn(N, D)
    y = pd.DataFrame({"a": torch.randn(N).numpy(), "b": 100.0 + torch.randn(N).numpy()})
    story = ME(D, 2, 1)
    fit = pyro_moe.fit(story.model, story.guide, (x, y), epochs=2, prior="weak", progress=False)
    p, turned = evaluation.predict(fit, x), y[["b", "a"]].assign(c=0.0)
    for ask in (p.log_prob, p.cdf, p.posterior, partial(evaluation.regression_scores, p)):
        with pytest.warns(DataWarning, match="got also 'c', left out"):
            assert_close(ask(turned), ask(y), **EXACT)
    with pytest.raises(DataError, match="expected 'b' among the columns of y, as fitted; got 'a'"):
        p.log_prob(y[["a"]])
