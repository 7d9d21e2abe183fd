"""Draws by Hamiltonian Monte Carlo have the moments of known posteriors."""

import math
import sys

import pytest
import torch
from torch import nn

import pyro_moe
from pyro_moe import ConvergenceWarning, evaluation, hmc, models
from pyro_moe.fitting.posterior.hmc import (
    Sampled,
    log_density,
    potential_scale_reduction,
    sampled,
)
from pyro_moe.fitting.posterior.story import in_double, prior_scales
from pyro_moe.inference.prior import Prior

N = 12


def fitted(story, data, **options):
    options = {"prior": "none", "progress": False, **options}
    return pyro_moe.fit(story.model, story.guide, data, **options)


@pytest.fixture(scope="module")
def line():
    """A fit of one line to few rows, and its draws."""
    generator = torch.Generator().manual_seed(0)
    x = torch.linspace(-1, 1, N, dtype=torch.float64).unsqueeze(-1)
    y = 2 * x + torch.randn(N, 1, generator=generator, dtype=torch.float64)
    fit = fitted(models.ME(1, 1, 1), (x, y))
    return fit, hmc(fit, num_samples=1600, num_steps=400)


def test_weights_of_a_sample_have_no_likelihood():
    x = torch.linspace(-1, 1, N).unsqueeze(-1)
    weights = torch.rand(N, generator=torch.Generator().manual_seed(0))
    fit = fitted(models.ME(1, 1, 1), (x, 2 * x), weights=weights, weight_type="sampling")
    with pytest.raises(ValueError, match="got sampling weights, which have no likelihood: use lap"):
        hmc(fit)


def test_a_line_has_the_posterior_of_few_rows(line):
    """Under flat priors of the coefficients and of log σ they are Student's t, and σ⁻² gamma."""
    fit, drawn = line
    samples = drawn.story.samples()
    x, y = fit.training_rows
    inputs = fit.story.experts.network.inputs(x)
    target = (y - y.mean()) / y.std(correction=0)
    center = torch.linalg.lstsq(inputs, target).solution
    squares = (target - inputs @ center).square().sum()
    freedom = N - 2
    covariance = torch.linalg.inv(inputs.T @ inputs) * squares / (freedom - 2)
    slope = samples["experts.network.weight"].flatten()
    deviation = covariance[0, 0].sqrt().item()
    effective = 300  # draws of one chain depend on each other
    assert abs(slope.mean().item() - center[0].item()) < 5 * deviation / effective**0.5
    assert slope.std().item() == pytest.approx(deviation, rel=5 * (2 / effective) ** 0.5)
    precision = (-2 * samples["experts.log_scale"].double()).exp().flatten() * squares
    spread = (2 * freedom) ** 0.5
    assert abs(precision.mean().item() - freedom) < 5 * spread / effective**0.5


def test_chains_agree(line):
    assert (line[1].story.r_hat < 1.05).all()


def test_predictions_average_over_the_draws(line):
    fit, drawn = line
    x = fit.training_rows[0]
    wide, narrow = evaluation.predict(drawn, x), evaluation.predict(fit, x)
    assert (wide.variance > narrow.variance).all()
    assert torch.isfinite(evaluation.elbo(drawn, fit.training_rows)).all()


def test_the_states_of_a_normal_target():
    """Correlated deviations of very different sizes, in a metric that is not theirs."""
    root = torch.tensor([[1.0, 0.0], [9.0, 4.0]], dtype=torch.float64)
    precision = torch.linalg.inv(root @ root.T)

    def target(theta):
        slope = -theta @ precision
        return 0.5 * (theta * slope).sum(-1), slope

    with torch.random.fork_rng():
        torch.manual_seed(0)
        loc, start = torch.zeros(2).double(), torch.zeros(64, 2).double()
        metric = torch.diag(torch.tensor([1.0, 10.0], dtype=torch.float64))
        chains = sampled(target, start, loc, metric, 400)
    found = chains.flatten(0, 1).T.cov()
    assert torch.allclose(found, root @ root.T, rtol=0.15)
    assert (potential_scale_reduction(chains) < 1.05).all()


def test_posteriors_of_tables_from_the_prior_are_together_the_prior():
    """Simulation-based calibration of logistic regressions, a table for each chain."""
    number, scale = 2000, 1.5
    generator = torch.Generator().manual_seed(0)
    x = torch.tensor([[1.0, value] for value in (-2.0, -1.0, 0.0, 1.0, 2.0)]).double()
    truth = scale * torch.randn(number, 2, generator=generator, dtype=torch.float64)
    y = torch.bernoulli((truth @ x.T).sigmoid(), generator=generator)

    def target(theta):
        logits = theta @ x.T
        value = (y * logits - torch.nn.functional.softplus(logits)).sum(-1)
        slope = (y - logits.sigmoid()) @ x - theta / scale**2
        return value - 0.5 * (theta / scale).square().sum(-1), slope

    with torch.random.fork_rng():
        torch.manual_seed(0)
        center = torch.zeros(2).double()
        last = sampled(target, truth, center, torch.eye(2).double(), 60)[-1]
    assert (last.mean(0).abs() < 4 * scale / number**0.5).all()
    assert (last.std(0) / scale - 1).abs().max() < 4 / (2 * number) ** 0.5
    away = (last - truth).square().mean(0) / scale**2
    assert (away > 0.2).all()  # the chains have left the truth


def test_the_density_is_that_of_the_fit_with_the_prior_of_the_parameters():
    """Also where the prior of the fit has rows without an effect, whose order is random."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(N, 1, generator=generator, dtype=torch.float64)
    y = x + torch.randn(N, 1, generator=generator, dtype=torch.float64)
    fit = fitted(models.ME(1, 1, 2), (x, y), prior=Prior(1.0, 4.0), epochs=3)
    story, run = in_double(fit)
    theta = torch.cat([p.detach().flatten() for p in story.parameters()])
    p = torch.distributions.Normal(0.0, prior_scales(story))
    expected = run.log_posterior() + (p.log_prob(theta) - p.log_prob(0.0 * theta)).sum()
    density = log_density(*in_double(fit), 3)
    for _ in range(2):
        value, _ = density(theta.expand(3, -1).contiguous())
        assert torch.allclose(value, expected.expand(3), rtol=1e-10)


def test_the_density_of_the_draws_is_that_of_scipy():
    stats = pytest.importorskip("scipy.stats")
    story = models.ME(1, 1, 1)
    number = sum(p.numel() for p in story.parameters())
    draws = torch.randn(50, number, generator=torch.Generator().manual_seed(1))
    q = Sampled(story, draws, torch.ones(number)).q()
    point, root = draws[:3] + 0.1, q.root.double().numpy()
    each = [stats.multivariate_normal(d.numpy(), root @ root.T).pdf(point) for d in draws]
    expected = torch.as_tensor(sum(each) / 50).log().float()
    assert torch.allclose(q.log_prob(point), expected, atol=1e-3)
    many = q.expand((4,)).rsample((2000,))
    assert many.shape == (2000, 4, number)
    error = (q.variance / many[..., 0].numel()).sqrt()
    assert ((many.mean((0, 1)) - q.mean).abs() < 5 * error).all()
    assert torch.allclose(many.var((0, 1)), q.variance, rtol=0.15)


def test_separate_chains_have_a_large_r_hat():
    chains = torch.randn(100, 2, 1, generator=torch.Generator().manual_seed(0))
    apart = chains + torch.tensor([0.0, 4.0]).reshape(1, 2, 1)
    assert potential_scale_reduction(chains).item() < 1.05
    between = apart.mean(0).var(0)
    expected = math.sqrt(0.99 + (between / apart.var(0).mean(0)).item())
    assert potential_scale_reduction(apart).item() == pytest.approx(expected, rel=1e-5)


def test_chains_that_differ_are_told(line, monkeypatch):
    monkeypatch.setattr(sys.modules[Sampled.__module__], "LEAPFROGS", 1)  # hardly a step
    with pytest.warns(ConvergenceWarning, match="expected chains that agree; got R̂ = "):
        hmc(line[0], num_samples=8, num_chains=8, num_steps=8)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_samples": 0}, "expected num_samples of at least 2; got 0"),
        ({"num_chains": 0}, "expected num_chains of at least 2; got 0"),
        ({"num_steps": 3}, "expected num_steps of at least 4; got 3"),
        ({"num_steps": 4}, "expected num_samples of at most 64, half of all steps; got 512"),
    ],
)
def test_numbers_are_checked(line, options, message):
    with pytest.raises(ValueError, match=message):
        hmc(line[0], **options)


def test_rows_with_weights_count_more():
    generator = torch.Generator().manual_seed(0)
    x = torch.linspace(-1, 1, N, dtype=torch.float64).unsqueeze(-1)
    y = 2 * x + torch.randn(N, 1, generator=generator, dtype=torch.float64)
    weights = torch.full((N,), 16.0, dtype=torch.float64)
    fits = [fitted(models.ME(1, 1, 1), (x, y), weights=w) for w in (None, weights)]
    one, many = (hmc(f, num_steps=100).story.standard_errors() for f in fits)
    name = "experts.network.weight"
    # Student's t of 10 degrees of freedom, and nearly normal.
    expected = ((1 / 16) * (N - 4) / N) ** 0.5
    assert (many[name] / one[name]).item() == pytest.approx(expected, rel=0.2)


def test_modules_of_other_kinds_are_refused():
    fit = fitted(models.VAE(2, 1, hidden=(4,)), torch.randn(20, 2), epochs=1)
    assert isinstance(fit.story, nn.Module)
    with pytest.raises(pyro_moe.SiteError, match="expected no latent site besides 'c' for EM"):
        hmc(fit)
