"""The Laplace approximation has the standard errors of textbooks, and predictions carry them."""

import math

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch.testing import assert_close

import pyro_moe
from pyro_moe import ConvergenceWarning, SiteError, evaluation, laplace, models
from pyro_moe.fitting.posterior.story import PRIOR_SCALE

N = 80
FIXED = PRIOR_SCALE**-2


@pytest.fixture
def rows():
    """Rows with two columns that nearly determine each other, and a target."""
    generator = torch.Generator().manual_seed(0)
    x = 10.0 * torch.rand(N, 1, generator=generator, dtype=torch.float64)
    noise = 2.0 * torch.randn(N, 1, generator=generator, dtype=torch.float64)
    return torch.cat([x, x.square()], 1), 15.0 + 10.0 * x - x.square() + noise


def fitted(story, data, **options):
    options = {"prior": "none", "progress": False, **options}
    return pyro_moe.fit(story.model, story.guide, data, **options)


def test_one_normal_expert_has_the_errors_of_least_squares(rows):
    fit = fitted(models.ME(2, 1, 1), rows)
    experts, errors = fit.story.experts, laplace(fit).story.standard_errors()
    inputs = experts.network.inputs(rows[0])
    sigma = experts(rows[0]).base_dist.scale[0, 0] / experts.units.scale
    information = inputs.T @ inputs / sigma**2 + FIXED * torch.eye(3)
    expected = torch.linalg.inv(information).diagonal().sqrt()
    assert_close(errors["experts.network.weight"].flatten(), expected[:2], rtol=1e-3, atol=0)
    assert_close(errors["experts.network.bias"].flatten(), expected[2:], rtol=1e-3, atol=0)
    assert errors["experts.log_scale"].item() == pytest.approx((2 * N) ** -0.5, rel=0.01)


def test_predictions_carry_the_errors(rows):
    x, y = rows
    fit = laplace(fitted(models.ME(2, 1, 1), rows))
    inputs = fit.story.programs.story.experts.network.inputs(x)
    names, covariance = fit.story.names, fit.story.covariance
    sizes = [math.prod(shape) for shape in fit.story.shapes]
    first = sum(sizes[: names.index("experts.network.weight")])
    block = covariance[first : first + 3, first : first + 3]
    expected = (inputs @ block * inputs).sum(-1).sqrt() * y.std(correction=0)
    draws = 1024
    prediction = evaluation.predict(fit, x, num_samples=draws)
    found = torch.stack([p.mean for p in prediction.distributions]).std(0).flatten()
    assert ((found / expected - 1).abs() < 5 / (2 * draws) ** 0.5).all()


def test_a_softmax_expert_has_the_errors_of_logistic_regression():
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(N, 2, generator=generator, dtype=torch.float64)
    y = torch.bernoulli((x[:, 0] - 0.5).sigmoid(), generator=generator).long()
    fit = fitted(models.ME(2, 1, 1, experts="bernoulli"), (x, y.double().unsqueeze(-1)))
    inputs = fit.story.experts.network.inputs(x)
    p = LogisticRegression(C=np.inf, tol=1e-10).fit(inputs[:, :2], y).predict_proba(inputs[:, :2])
    information = inputs.T @ (inputs * torch.as_tensor(p.prod(1, keepdims=True)))
    expected = torch.linalg.inv(information + FIXED * torch.eye(3)).diagonal().sqrt()
    errors = laplace(fit).story.standard_errors()
    found = torch.cat([errors[f"experts.network.{name}"].flatten() for name in ("weight", "bias")])
    assert_close(found, expected, rtol=1e-3, atol=0)


def test_a_fit_with_its_posterior_is_a_fit(rows):
    fit = fitted(models.GMMMoE(2, 1, 2), rows, prior="weak", epochs=20, seed=1)
    with_posterior = laplace(fit)
    assert with_posterior.history == fit.history
    assert all(map(torch.equal, fit.parameters().values(), fitted_again(fit, rows)))
    gate = evaluation.gate(with_posterior, rows[0])
    assert_close(gate.sum(-1), torch.ones(N, dtype=gate.dtype))
    assert evaluation.predict(with_posterior, rows[0]).log_prob(rows[1]).isfinite().all()


def fitted_again(fit, rows):
    again = fitted(models.GMMMoE(2, 1, 2), rows, prior="weak", epochs=20, seed=1)
    return again.parameters().values()


def test_parameters_that_are_no_maximum_are_named(rows):
    story = models.ME(2, 1, 2)
    fit = fitted(story, rows, epochs=0, initialize="keep", loss="em")
    with pytest.warns(ConvergenceWarning, match="expected parameters at a maximum"):
        laplace(fit)


def test_other_latent_variables_and_large_networks_are_errors(rows):
    deep = fitted(models.DMVAE(2, 1, 2, hidden=(4,)), rows[0], epochs=1, initialize="random")
    with pytest.raises(SiteError, match="expected no latent site besides 'c'"):
        laplace(deep)
    large = fitted(models.DeepMoE(2, 1, 2), rows, epochs=1)
    with pytest.raises(ValueError, match="expected at most 2,000 parameters; got "):
        laplace(large)


@pytest.mark.parametrize("state", [torch.no_grad, torch.inference_mode])
def test_a_posterior_does_not_depend_on_the_state_of_autograd(rows, state):
    fit = fitted(models.ME(2, 1, 1), rows)
    options = {"num_samples": 8, "num_chains": 4, "num_steps": 40}
    expected = laplace(fit).story.covariance, pyro_moe.hmc(fit, **options).story.draws
    with state():
        found = laplace(fit).story.covariance, pyro_moe.hmc(fit, **options).story.draws
    for one, other in zip(found, expected, strict=True):
        assert_close(one, other, rtol=0, atol=0)
