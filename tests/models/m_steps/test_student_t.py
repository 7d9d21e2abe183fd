"""Reweighted least squares reach the maximum of the Student-t likelihood, and never go down."""

import numpy as np
import pytest
import torch
from scipy import stats
from scipy.optimize import minimize

from pyro_moe.models.m_steps import blocks
from pyro_moe.models.m_steps.student_t import StudentTMaps, log_density_of_df, student_t_step

LIMITS = {"least_df": 0.5, "least_scale": 1e-3}


def problem(number=120, seed=0):
    """Two maps to two targets, with weights, in double precision."""
    generator = torch.Generator().manual_seed(seed)
    u = torch.randn(number, 1, generator=generator).double()
    noise = torch.as_tensor(stats.t(3.0).rvs((number, 2), random_state=seed))
    targets = torch.cat([1.0 + 2.0 * u, 3.0 - u], 1) + 0.5 * noise
    weights = torch.rand(number, 2, generator=generator).double()
    return u, targets, weights


def start():
    zeros = torch.zeros(2, 2, 2).double()
    return StudentTMaps(zeros, torch.ones(2, 2).double(), torch.full((2, 1), 1.7).double())


def likelihood(maps, u, targets, weights):
    """The weighted log-likelihood of each map, by SciPy's density."""
    loc = u.numpy()[:, :, None] * maps.coefficients[..., 0].flatten().numpy()
    loc = (loc.squeeze(1) + maps.coefficients[..., 1].flatten().numpy()).reshape(-1, 2, 2)
    df = 0.5 + maps.log_excess_df.exp().numpy()
    each = stats.t(df, loc, maps.scale.numpy()).logpdf(targets.numpy()[:, None])
    return (weights.numpy() * each.sum(-1)).sum(0)


def test_each_step_increases_the_likelihood():
    data, maps = problem(), start()
    values = [likelihood(maps, *data)]
    for _ in range(8):
        maps = student_t_step(*data, maps, **LIMITS)
        values.append(likelihood(maps, *data))
    assert (np.diff(values, axis=0) > -1e-9).all()


def test_many_steps_reach_the_maximum_that_scipy_finds():
    (u, targets, weights), maps = problem(), start()
    for _ in range(100):
        maps = student_t_step(u, targets, weights, maps, **LIMITS)

    def loss(p):
        trial = StudentTMaps(
            torch.as_tensor(p[:4]).view(1, 2, 2).expand(2, 2, 2),
            torch.as_tensor(p[4:6]).exp().expand(2, 2),
            torch.as_tensor(p[6:]).expand(2, 1),
        )
        return -likelihood(trial, u, targets, weights)[0]

    found = minimize(loss, [2.0, 1.0, -1.0, 3.0, -0.7, -0.7, 0.9], method="BFGS")
    assert likelihood(maps, u, targets, weights)[0] == pytest.approx(-found.fun, abs=1e-6)
    np.testing.assert_allclose(maps.coefficients[0].flatten(), found.x[:4], atol=1e-4)
    np.testing.assert_allclose(maps.log_excess_df[0], found.x[6:], atol=1e-3)


def test_normal_residuals_have_least_squares_and_the_largest_degrees_of_freedom():
    u, _, weights = problem()
    generator = torch.Generator().manual_seed(1)
    targets = u + torch.rand(len(u), 1, generator=generator).double()  # lighter tails
    maps = StudentTMaps(*(part[:, :1] for part in vars(start()).values()))
    for _ in range(60):
        maps = student_t_step(u, targets, weights, maps, **LIMITS)
    assert maps.log_excess_df.tolist() == [[10.0], [10.0]]
    w = weights[:, 0].sqrt().numpy()
    line = np.polyfit(u[:, 0].numpy(), targets[:, 0].numpy(), 1, w=w)
    np.testing.assert_allclose(maps.coefficients[0, 0], line, rtol=1e-3)


def test_it_is_the_same_in_blocks(monkeypatch):
    data = problem()
    whole = student_t_step(*data, start(), **LIMITS)
    monkeypatch.setattr(blocks, "ROWS", 7)
    parts = student_t_step(*data, start(), **LIMITS)
    for one, other in zip(vars(whole).values(), vars(parts).values(), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("df", [0.6, 2.0, 30.0, 2e4])
def test_the_derivatives_are_those_of_the_density(df):
    df = torch.tensor(df, dtype=torch.float64, requires_grad=True)
    delta = torch.tensor([0.0, 0.3, 5.0, 400.0]).double()
    value, first, second = log_density_of_df(df, delta)
    expected = stats.t(df.item()).logpdf(delta.sqrt().numpy()) + 0.5 * np.log(np.pi)
    np.testing.assert_allclose(value.detach(), expected, rtol=1e-9)
    slope = torch.autograd.grad(value.sum(), df, create_graph=True)[0]
    torch.testing.assert_close(slope, first.sum(), rtol=1e-6, atol=1e-12)
    bend = torch.autograd.grad(slope, df)[0]
    torch.testing.assert_close(bend, second.sum().detach(), rtol=1e-4, atol=1e-12)
