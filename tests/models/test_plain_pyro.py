"""`pyro.infer.SVI` with `Trace_ELBO` trains every story, with no code of ours."""

import math

import pyro
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO
from torch.testing import assert_close

import pyro_moe
from pyro_moe import evaluation
from pyro_moe.distributions import PRIOR_TEMPERATURE, TEMPERATURE
from pyro_moe.inference.objectives import objective
from pyro_moe.models import (
    DMVAE,
    GMM,
    ME,
    VAE,
    BayesianExperts,
    DeepMoE,
    DVMoE,
    GMMMoE,
    HierarchicalME,
    VaDE,
    VaDEMoE,
)

N, D, K, NOISE = 200, 2, 2, 0.3
SMALL = {"hidden": (16,)}
OF_X = {
    "gmm": lambda: GMM(D, K),
    "vae": lambda: VAE(D, 2, **SMALL),
    "vade": lambda: VaDE(D, 2, K, **SMALL),
    "dmvae": lambda: DMVAE(D, 2, K, **SMALL),
}
OF_Y = {
    "me": lambda: ME(D, 1, K),
    "deepmoe": lambda: DeepMoE(D, 1, K, **SMALL),
    "hierarchicalme": lambda: HierarchicalME(D, 1, (K, 2)),
    "bayesian": lambda: BayesianExperts(ME(D, 1, K)),
    "gmmmoe": lambda: GMMMoE(D, 1, K),
    "vademoe": lambda: VaDEMoE(D, 1, K, 2, **SMALL),
    "dvmoe": lambda: DVMoE(D, 1, K, 2, **SMALL),
}
STORIES = OF_X | OF_Y
SLOPES = torch.tensor([[-1.0, 1.0], [2.0, 0.0]])
CENTERS = torch.tensor([[-4.0, 0.0], [4.0, 0.0]])


def rows(seed):
    """Two clusters of unit variance, and in each an affine target with noise."""
    generator = torch.Generator().manual_seed(seed)
    c = torch.arange(N) % K
    x = CENTERS[c] + torch.randn(N, D, generator=generator)
    y = (SLOPES[c] * x).sum(-1) + NOISE * torch.randn(N, generator=generator)
    return x, y


def made(name, seed=0):
    torch.manual_seed(seed)
    story, data = STORIES[name](), rows(0)[: 1 if name in OF_X else 2]
    story.adapt(*data)
    return story, data


@pytest.mark.parametrize("name", STORIES)
def test_the_relaxed_objective_is_that_of_plain_pyro(name, loss_and_gradients):
    story, data = made(name)
    plain = loss_and_gradients(Trace_ELBO(), story.model, story.guide, story, *data)
    elbo, treat = objective("relaxed")
    treated = treat(story.model, story.guide, TEMPERATURE, False)
    assert_close(loss_and_gradients(elbo, *treated, story, *data), plain, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", sorted(set(STORIES) - {"vae", "bayesian"}))
def test_the_temperatures_are_buffers_of_the_story(name):
    buffers = dict(STORIES[name]().named_buffers())
    assert buffers["temperature"].item() == pytest.approx(TEMPERATURE)
    assert buffers["prior_temperature"].item() == pytest.approx(PRIOR_TEMPERATURE)
    assert buffers["prior_temperature"] < buffers["temperature"]


def log_density_of_x(x):
    each = torch.distributions.Normal(CENTERS, 1.0).log_prob(x.unsqueeze(1)).sum(-1)
    return each.logsumexp(-1) - math.log(K)


@pytest.mark.parametrize("name", STORIES)
def test_plain_pyro_comes_near_the_true_density(name):
    """Of new rows, in nats: of y given x, or the bound on that of x for stories of x alone."""
    story, data = made(name)
    svi = SVI(story.model, story.guide, pyro.optim.Adam({"lr": 0.02}), Trace_ELBO())
    for step in range(500 if name == "bayesian" else 250):
        assert math.isfinite(svi.step(*data)), step
    fit = pyro_moe.fit(story.model, story.guide, data, initialize="keep", epochs=0, progress=False)
    x, y = rows(1)
    if name in OF_X:
        found, true = evaluation.elbo(fit, x, num_samples=32), log_density_of_x(x)
    else:
        found = evaluation.predict(fit, x).log_prob(y)
        true = torch.distributions.Normal(0.0, NOISE).log_prob(torch.zeros(N)) - 0.5
    of_one_normal = 0.7 if name == "vae" else 0.0  # whose prior has no clusters
    assert found.mean() > true.mean() - 0.5 - of_one_normal
