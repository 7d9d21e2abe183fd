"""Counts of 1e5 to 1e9, whose densities cancel in single precision."""

import numpy as np
import pyro
import pytest
import torch
from pyro.infer import Trace_ELBO, TraceEnum_ELBO
from scipy import stats
from scipy.special import softmax

import pyro_moe
from pyro_moe import evaluation, models
from pyro_moe.distributions import in_double
from pyro_moe.inference.traces import enumerated_traces, log_assignment
from pyro_moe.models import GMMMoE, PoissonExperts

BASES = (1e5, 1e6, 1e7)
ONE_IS_ENOUGH = pytest.mark.filterwarnings("ignore::pyro_moe.inference.EmptyComponentWarning")


def counts(base, *, seed=0, number=300):
    generator = np.random.default_rng(seed)
    x = generator.uniform(-1, 1, (number, 1))
    return torch.as_tensor(x), torch.as_tensor(generator.poisson(base * np.exp(0.3 * x)))


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("base", BASES)
def test_the_log_mass_is_scipys(base, whole):
    x, y = counts(base)
    story = models.ME(1, 1, 1, experts="poisson").float()
    fit = pyro_moe.fit(
        story.model, story.guide, (x, y if whole else y.double()), loss="em", progress=False
    )
    prediction = evaluation.predict(fit, x)
    expected = stats.poisson.logpmf(y, prediction.mean)[:, 0]
    np.testing.assert_allclose(prediction.log_prob(y), expected, rtol=0, atol=1e-3)
    assert prediction.variance.numpy() == pytest.approx(prediction.mean.numpy())
    np.testing.assert_allclose(
        evaluation.elbo(fit, (x, y)), expected, rtol=0, atol=1e-3 if base < 1e7 else 0.02
    )


@ONE_IS_ENOUGH
@pytest.mark.parametrize("base", BASES)
def test_responsibilities_are_scipys(base):
    x, y = counts(base)
    story = models.ME(1, 1, 2, experts="poisson").float()
    fit = pyro_moe.fit(
        story.model,
        story.guide,
        (x, y),
        epochs=1,
        progress=False,
        initialize="random",
        prior="weak",
    )
    with torch.no_grad():
        low = fit.story.experts.network.bias[0]
        fit.story.experts.network.bias[1].copy_(low + base**-0.5)  # one deviation apart
        fit.story.experts.network.weight[1].copy_(fit.story.experts.network.weight[0])
        _, guide = enumerated_traces(fit.model, fit.guide, *fit.data)
        rate = in_double(fit.story.experts(fit.data[0])).base_dist.rate[..., 0]
        gate = fit.story.gate(fit.data[0]).logits
    expected = softmax(gate.double().numpy() + stats.poisson.logpmf(y, rate), axis=-1)
    np.testing.assert_allclose(log_assignment(guide).exp().T, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("offset", [0.0, 11.5, 20.7, 30.0])
def test_the_limit_of_the_rate_is_beyond_the_mean_count(offset):
    experts = PoissonExperts(torch.nn.Linear(1, 1), 1).float()
    experts.adapt(torch.zeros(2, 1), torch.full((2, 1), np.exp(offset)).float())
    torch.nn.init.constant_(experts.network.weight, 1.0)
    torch.nn.init.zeros_(experts.network.bias)
    with torch.no_grad():
        p = experts(torch.tensor([[-200.0], [0.0], [5.0], [19.0], [200.0]]))
        rate = in_double(p).base_dist.rate
    expected = [-20.0, offset, offset + 5, offset + 19, offset + 20]
    np.testing.assert_allclose(rate[:, 0].log(), expected, rtol=0, atol=1e-5)


@ONE_IS_ENOUGH
@pytest.mark.parametrize(
    "loss",
    ["marginal", "relaxed", "categorical-kl", "em", TraceEnum_ELBO(), Trace_ELBO()],
    ids=lambda loss: loss if isinstance(loss, str) else type(loss).__name__,
)
@pytest.mark.parametrize("make", [models.ME, GMMMoE])
def test_every_objective_trains_on_large_counts(make, loss):
    x, y = counts(1e6)
    story = make(1, 1, 2, experts="poisson").float()
    fit = pyro_moe.fit(
        story.model,
        story.guide,
        (x, y),
        epochs=3,
        loss=loss,
        progress=False,
        restarts=2,
        prior="weak",
    )
    assert fit.stopped is None
    assert all(np.isfinite(record["elbo"]) for record in fit.history)
    expected = torch.float64 if loss == "em" else torch.float32
    assert all(p.dtype == expected for p in fit.parameters().values())


def test_a_plain_story_of_pyros_poisson_is_as_exact():
    rate = torch.tensor([[1e6]], dtype=torch.float32)

    def model(x, y=None):
        with pyro.plate("data", len(x)):
            p = pyro.distributions.Poisson(rate.expand(len(x), 1)).to_event(1)
            models.observe_target(p, y)

    x, y = counts(1e6)
    fit = pyro_moe.fit(model, lambda x, y=None: None, (x, y), epochs=0, initialize="keep")
    expected = stats.poisson.logpmf(y[:, 0], 1e6)
    np.testing.assert_allclose(evaluation.elbo(fit, (x, y)), expected, rtol=1e-9)
    np.testing.assert_allclose(evaluation.predict(fit, x).log_prob(y), expected, rtol=1e-9)


@pytest.mark.parametrize("base", [0.05, 30.0, 1e9, 1e12])
def test_em_ends_at_the_estimates_of_newtons_method(base):
    x, y = counts(base)
    story = models.ME(1, 1, 1, experts="poisson").float()
    choices = {"loss": "em", "prior": "weak", "progress": False}
    fit = pyro_moe.fit(story.model, story.guide, (x, y), **choices)
    design = np.column_stack([np.ones(len(x)), x])
    spread = x.std(correction=0).item()
    penalty = np.diag([0.0, fit.story.experts.ridge * spread**2])  # of slopes in standard units
    expected = np.array([np.log(y.double().mean().item()), 0.0])
    for _ in range(30):
        rate = np.exp(design @ expected)
        gradient = design.T @ (y[:, 0].numpy() - rate) - penalty @ expected
        curvature = design.T @ (rate[:, None] * design) + penalty
        expected = expected + np.linalg.solve(curvature, gradient)
    errors = np.sqrt(np.diag(np.linalg.inv(curvature)))
    slope, intercept = fit.story.experts.linear_predictor(1)[0, 0].tolist()
    assert abs(intercept - expected[0]) < 1e-3 * errors[0]
    assert abs(slope - expected[1]) < 1e-3 * errors[1]
