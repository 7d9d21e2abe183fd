"""Experts with priors: exact posteriors give the evidence, and predictions carry their width."""

import math

import pyro.distributions as dist
import pytest
import torch
from torch.testing import assert_close

import pyro_moe
from pyro_moe import evaluation, models
from pyro_moe.inference import MarginalELBO
from pyro_moe.models import ME, BayesianExperts, default_prior

N, NOISE = 30, 0.3


@pytest.fixture
def rows(double):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(N, 1, generator=generator, dtype=torch.float64)
    y = 2.0 * x + 1.0 + 0.5 * torch.randn(N, 1, generator=generator, dtype=torch.float64)
    return x, y


def known_noise(name, parameter):
    """The default prior, but for a noise that is all but known."""
    if name == "log_scale":
        return dist.Normal(torch.full_like(parameter, math.log(NOISE)), 1e-7).to_event(2)
    return default_prior(name, parameter)


def test_the_bound_of_the_exact_posterior_is_the_log_evidence(rows):
    x, y = rows
    story = BayesianExperts(ME(1, 1, 1), prior=known_noise)
    story.adapt(x, y)
    u, t = (x - x.mean()) / x.std(correction=0), (y - y.mean()) / y.std(correction=0)
    noise = NOISE + story.story.experts.inner.min_scale
    precision = 1.0 + N / noise**2  # of weight and bias alike: u has mean zero and unit variance
    with torch.no_grad():
        story.loc["network_weight"].fill_((u * t).sum() / noise**2 / precision)
        story.loc["network_bias"].zero_()
        story.loc["log_scale"].fill_(math.log(NOISE))
        for key in ("network_weight", "network_bias"):
            story.log_scale[key].fill_(-0.5 * math.log(precision))
        story.log_scale["log_scale"].fill_(math.log(1e-7))
    covariance = u @ u.T + 1.0 + noise**2 * torch.eye(N)
    evidence = dist.MultivariateNormal(torch.zeros(N), covariance).log_prob(t.squeeze())
    evidence = evidence - N * y.std(correction=0).log()
    for seed in range(3):  # each draw, not only their mean
        torch.manual_seed(seed)
        loss = MarginalELBO().loss(story.model, story.guide, x, y)
        assert_close(-loss, evidence.item(), rtol=0, atol=1e-4)


def test_a_fit_finds_the_posterior(rows):
    x, y = rows
    story = BayesianExperts(ME(1, 1, 1), prior=known_noise)
    settings = {"epochs": 300, "learning_rate": 0.1, "prior": "none", "progress": False}
    fitted = pyro_moe.fit(story.model, story.guide, (x, y), **settings).story
    u, t = (x - x.mean()) / x.std(correction=0), (y - y.mean()) / y.std(correction=0)
    noise = NOISE + 1e-3
    deviation = (1.0 + N / noise**2) ** -0.5
    found = fitted.log_scale["network_weight"].exp().item()
    assert found == pytest.approx(deviation, rel=0.1)
    expected = (u * t).sum().item() / noise**2 * deviation**2
    assert fitted.loc["network_weight"].item() == pytest.approx(expected, abs=deviation / 2)


def test_predictions_carry_what_is_open_about_the_experts(rows):
    x, y = rows
    story = BayesianExperts(ME(1, 1, 2), initial_scale=0.2)
    fit = pyro_moe.fit(
        story.model, story.guide, (x, y), initialize="keep", epochs=0, progress=False
    )
    prediction = evaluation.predict(fit, x, num_samples=256)
    assert len(prediction.weights) == 256
    means = torch.stack([p.mean for p in prediction.distributions])  # (S, N, K, 1)
    weight, bias = (fit.story.loc[f"network_{name}"] for name in ("weight", "bias"))
    expected = x @ weight[:, :, 0].T + bias.T
    error = 0.2 * (1 + x.square()).sqrt() / 256**0.5
    assert ((means.mean(0).squeeze(-1) - expected).abs() < 5 * error).all()
    spread = means.var(0).squeeze(-1) / (0.04 * (1 + x.square()))
    assert ((spread - 1).abs() < 5 * (2 / 255) ** 0.5).all()


@pytest.mark.parametrize(
    "story",
    [
        ME(2, 1, 2),
        ME(2, 3, 2, experts="categorical"),
        models.GMMMoE(2, 1, 2, experts="student-t"),
        models.DVMoE(2, 1, 2, 1, hidden=(8,)),
        models.VaDEMoE(2, 1, 2, 1, hidden=(8,)),
    ],
    ids=lambda story: type(story).__name__,
)
def test_any_story_takes_priors_and_a_clustered_start(story, rows):
    generator = torch.Generator().manual_seed(1)
    labels = torch.arange(60) % 2
    x = torch.randn(60, 2, generator=generator) + 8.0 * labels.unsqueeze(-1)
    y = labels if story.y_dim == 3 else x[:, :1] * (1.0 - 2.0 * labels.unsqueeze(-1))
    if story.y_dim == 3:
        y = y + (torch.arange(60) % 3 == 0)
    bayesian = BayesianExperts(story)
    fit = pyro_moe.fit(
        bayesian.model,
        bayesian.guide,
        (x, y),
        initialize=torch.nn.functional.one_hot(labels, 2),
        epochs=2,
        initial_epochs=2,
        prior="none",
        progress=False,
    )
    assert evaluation.predict(fit, x, num_samples=8).log_prob(y).isfinite().all()
    assert not any("experts.inner" in name for name in fit.parameters())
    resumed = fit.resume(epochs=3, progress=False)
    assert resumed.story.loc["network_weight"].isfinite().all()


def test_the_posterior_starts_around_the_experts_least_squares(rows):
    x, y = rows
    story, plain = BayesianExperts(ME(1, 1, 1)), ME(1, 1, 1)
    for each in (story, plain):
        each.adapt(x, y)
        each.m_step(torch.ones(N, 1), x, x, y)
    assert_close(story.loc["network_weight"].data, plain.experts.network.weight.data)
    assert_close(story.loc["log_scale"].data, plain.experts.log_scale.data)


def test_a_story_without_experts_is_an_error():
    with pytest.raises(ValueError, match="expected a story with experts; got DMVAE"):
        BayesianExperts(models.DMVAE(2, 1, 2))
