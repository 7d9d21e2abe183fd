"""Whole weights of rows are as many copies of the rows, in any story and objective."""

import pytest
import torch
from pyro import poutine
from torch.testing import assert_close

import pyro_moe
from pyro_moe import evaluation, models
from pyro_moe.fitting.weights import unweighted, weighted
from pyro_moe.inference.em import EM
from pyro_moe.inference.handlers import AtTheMean
from pyro_moe.inference.objectives import objective
from pyro_moe.inference.prior import FLAT

N, K = 30, 2
STORIES = {
    "me": lambda: models.ME(2, 1, K),
    "deepmoe": lambda: models.DeepMoE(2, 1, K, hidden=(4,)),
    "hierarchicalme": lambda: models.HierarchicalME(2, 1),
    "gmmmoe": lambda: models.GMMMoE(2, 1, K, shrinkage=0.0),
    "vademoe": lambda: models.VaDEMoE(2, 1, K, 2, hidden=(4,)),
    "dvmoe": lambda: models.DVMoE(2, 1, K, 2, hidden=(4,)),
    "gmm": lambda: models.GMM(2, K),
    "dmvae": lambda: models.DMVAE(2, 2, K, hidden=(4,)),
    "vae": lambda: models.VAE(2, 2, hidden=(4,)),
}
BY_EM = ("me", "gmmmoe", "gmm")


@pytest.fixture
def rows():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(N, 2, generator=generator).double()
    y = torch.where(x[:, :1] > 0, 2 * x[:, :1], -x[:, 1:])
    weights = torch.randint(1, 4, (N,), generator=generator)
    return x, y + 0.1 * torch.randn(N, 1, generator=generator), weights


def of(name, rows):
    """A story, the same with weights, and the data of both."""
    story, (x, y, weights) = STORIES[name]().double(), rows
    columns = (x,) if name in ("gmm", "dmvae", "vae") else (x, y)
    copies = tuple(column.repeat_interleave(weights, 0) for column in columns)
    return story, weighted(story), copies, (*columns, weights.double())


@pytest.mark.parametrize("name", STORIES)
def test_the_marginal_objective_is_that_of_copies(name, rows):
    story, other, copies, data = of(name, rows)
    elbo, _ = objective("marginal")
    losses = []
    for program, columns in ((story, copies), (other, data)):
        with AtTheMean():  # z is drawn for each row
            losses.append(elbo.differentiable_loss(program.model, program.guide, *columns))
        losses[-1].backward()
    assert_close(losses[1], losses[0])
    for one, two in zip(story.parameters(), other.parameters(), strict=True):
        if one.grad is not None:
            assert_close(two.grad, one.grad, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", BY_EM)
def test_an_iteration_of_em_is_that_of_copies(name, rows):
    story, other, copies, data = of(name, rows)
    one, two = (
        EM(part.model, part.guide, columns, 1, 0, FLAT)
        for part, columns in ((story, copies), (other, data))
    )
    assert_close(two.log_posterior(), one.log_posterior())
    for run in (one, two):
        list(run)
    assert_close(two.log_posterior(), one.log_posterior(), rtol=1e-5, atol=1e-5)
    for a, b in zip(story.parameters(), other.parameters(), strict=True):
        assert_close(a, b, rtol=1e-4, atol=1e-4)  # ridges of rounding are those of the rows


@pytest.mark.parametrize("name", BY_EM)
def test_a_fit_is_that_of_copies(name, rows):
    story, other, copies, data = of(name, rows)
    x, _, weights = rows
    labels = (x[:, 0] > 0).long()
    options = {"prior": "none", "tolerance": 1e-9, "progress": False}
    one = pyro_moe.fit(
        story.model, story.guide, copies, initialize=labels.repeat_interleave(weights), **options
    )
    two = pyro_moe.fit(other.model, other.guide, data, initialize=labels, **options)
    two = unweighted(two)
    assert type(two.story) is type(story)
    assert two.num_rows == N
    density = [
        evaluation.elbo(fit, copies if len(copies) > 1 else copies[0]).sum() for fit in (one, two)
    ]
    assert_close(density[1], density[0], rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("name", ["me", "deepmoe", "gmm"])
def test_training_by_gradients_is_that_of_copies(name, rows):
    torch.manual_seed(0)
    story, _, copies, data = of(name, rows)
    story.adapt(*copies)  # units of the weighted rows alone would count each once
    options = {"initialize": "keep", "loss": "marginal", "prior": "none", "epochs": 9}
    options |= {"batch_size": 1000, "progress": False}
    one = pyro_moe.fit(story.model, story.guide, copies, **options)
    other = weighted(story)
    two = unweighted(pyro_moe.fit(other.model, other.guide, data, **options))
    for parameter, value in one.parameters().items():
        assert_close(two.parameters()[parameter], value, rtol=1e-5, atol=1e-6)
        assert not torch.equal(value, dict(story.named_parameters())[parameter])


def test_the_story_of_the_caller_is_as_it_was(rows):
    story = models.ME(2, 1, K)
    other = weighted(story)
    assert type(story) is models.ME
    assert isinstance(other, models.ME)
    other.adapt(*rows)
    assert story.units.loc.abs().max() == 0


def test_a_site_outside_of_the_plate_has_no_weight(rows):
    story = weighted(models.BayesianExperts(models.ME(2, 1, K).double()))
    trace = poutine.trace(story.model).get_trace(*rows)
    assert trace.nodes["experts.log_scale"]["scale"] == 1.0
    assert_close(trace.nodes["y"]["scale"], rows[-1], check_dtype=False)
