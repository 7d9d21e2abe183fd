"""The Laplace approximation has the standard errors of textbooks, and predictions carry them."""

import math

import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch.testing import assert_close

import pyro_moe
from pyro_moe import ConvergenceWarning, SiteError, evaluation, laplace, models
from pyro_moe.fitting.posterior.hmc import log_density
from pyro_moe.fitting.posterior.story import PRIOR_SCALE, in_double, prior_scales

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


def test_weights_of_a_sample_have_the_errors_of_weighted_least_squares_by_the_sandwich(rows):
    w = torch.arange(N, dtype=torch.float64) % 5 + 0.5
    fit = fitted(models.ME(2, 1, 1), rows, weights=w, weight_type="sampling")
    experts, errors = fit.story.experts, laplace(fit).story.standard_errors()
    u = experts.network.inputs(rows[0])
    y = experts.units(rows[1])
    w = w / w.mean()
    bread = torch.linalg.inv(u.T @ (w[:, None] * u))
    coefficients = bread @ u.T @ (w[:, None] * y)
    each = u * w[:, None] * (y - u @ coefficients)
    expected = (bread @ each.T @ each @ bread).diagonal().sqrt()
    assert_close(errors["experts.network.weight"].flatten(), expected[:2], rtol=1e-2, atol=0)
    assert_close(errors["experts.network.bias"].flatten(), expected[2:], rtol=1e-2, atol=0)


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


def test_a_binary_expert_has_the_errors_of_penalized_logistic_regression():
    """At the maximum with the prior N(0, 2.5²) of intercept and weights in standard units."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(N, 2, generator=generator, dtype=torch.float64)
    y = torch.bernoulli((x[:, 0] - 0.5).sigmoid(), generator=generator).long()
    fit = fitted(models.ME(2, 1, 1, experts="bernoulli"), (x, y.double().unsqueeze(-1)))
    inputs = fit.story.experts.network.inputs(x)
    scales = 2.5 * torch.tensor([2**0.5, 2**0.5, 1.0]).double()  # V = √2 w
    regression = LogisticRegression(C=1.0, tol=1e-10, fit_intercept=False).fit(inputs * scales, y)
    p = regression.predict_proba(inputs * scales)
    information = inputs.T @ (inputs * torch.as_tensor(p.prod(1, keepdims=True)))
    expected = torch.linalg.inv(information + scales.pow(-2).diag()).diagonal().sqrt()
    story = laplace(fit).story
    errors, found = story.standard_errors(), story.named(story.loc)
    names = ("experts.network.weight", "experts.network.bias")
    loc = torch.cat([found[name].flatten() for name in names])
    assert_close(loc, scales * torch.as_tensor(regression.coef_[0]), rtol=1e-3, atol=1e-3)
    assert_close(torch.cat([errors[n].flatten() for n in names]), expected, rtol=1e-3, atol=0)


def test_the_prior_of_log_odds_is_that_of_logistic_regression():
    """Of two components or classes; all other parameters have a deviation of 10."""
    for experts, expected in (("normal", 10.0), ("bernoulli", 2.5), ("categorical", 12.5**0.5 / 2)):
        story = models.ME(3, 2, 2, experts=experts, gate_columns=(1,))
        parts = prior_scales(story).split([p.numel() for p in story.parameters()])
        scales = dict(zip(dict(story.named_parameters()), parts, strict=True))
        assert_close(scales["gate.maps.weight"], torch.full((2,), 12.5**0.5 / 2).double())
        assert_close(scales["gate.maps.bias"], torch.full((2,), 12.5**0.5 / 2).double())
        bias = scales["experts.network.bias"]
        assert_close(bias, torch.full_like(bias, expected))
        factor = 1.0 if experts == "normal" else 3**0.5  # V = √D w
        weight = scales["experts.network.weight"]
        assert_close(weight, torch.full_like(weight, factor * expected))


def test_the_center_is_the_maximum_with_the_prior():
    """From a gate that separates the components, whose odds have no limit in the fit."""
    x = torch.linspace(-1, 1, 40, dtype=torch.float64).unsqueeze(-1)
    noise = torch.randn(40, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    y = torch.where(x > 0, 5.0 - x, x) + 0.1 * noise
    labels = torch.nn.functional.one_hot((x[:, 0] > 0).long(), 2).double()
    story = models.ME(1, 1, 2)
    fit = pyro_moe.fit(
        story.model, story.guide, (x, y), initialize=labels, prior="weak", progress=False
    )
    center = laplace(fit).story
    density = log_density(*in_double(fit), 2)
    loc = center.loc.double()
    value, slope = density(torch.stack([loc, loc]))
    assert (slope.abs() * center.covariance.diagonal().sqrt().double() < 0.01).all()
    before = torch.cat([p.detach().flatten() for p in fit.story.parameters()]).double()
    assert value[0] > density(torch.stack([before, before]))[0][0] + 0.1
    weights = center.named(center.loc)["gate.maps.weight"].flatten()
    assert (weights[1] - weights[0]).abs() < 7.5  # three deviations


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
