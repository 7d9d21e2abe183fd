"""A story edited by hand goes through fit, gate, scores and figures unchanged."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from matplotlib.figure import Figure
from pyro import poutine
from torch.testing import assert_close

import pyro_moe
from pyro_moe import Rows, datasets, evaluation, models, plots
from pyro_moe.inference import MarginalELBO
from pyro_moe.inference.context import reproducible

K = 5
story = models.DMVAE(x_dim=2, z_dim=2, num_components=K)
EXACT = {"rtol": 0, "atol": 0}


def model(x):
    """The model of `DMVAE`, copied, with heavy tails in its last line."""
    pyro.module("story", story)
    with pyro.plate("data", len(x)):
        c = pyro.sample("c", dist.OneHotCategorical(logits=story.prior.logits))
        z = pyro.sample(
            "z", dist.MultivariateNormal(c @ story.prior.loc, scale_tril=story.prior.cholesky(c))
        )
        normal = story.decoder(z).base_dist
        pyro.sample("x", dist.StudentT(3.0, normal.loc, normal.scale).to_event(1), obs=x)


@pytest.fixture(scope="module")
def rows():
    return datasets.spiral(train_rows=60, test_rows=20, seed=0)


@pytest.fixture(scope="module")
def before():
    return {name: value.clone() for name, value in story.state_dict().items()}


@pytest.fixture(scope="module")
def fit(rows, before):
    return pyro_moe.fit(
        model, story.guide, rows[0].x, epochs=2, seed=0, prior="none", progress=False
    )


def test_x_is_student_t_given_z(fit, rows):
    site = poutine.trace(fit.model).get_trace(rows[1].x).nodes["x"]
    assert isinstance(site["fn"].base_dist, dist.StudentT)
    assert (site["fn"].base_dist.df == 3.0).all()
    assert site["is_observed"]


def test_the_callers_story_stays_as_it_was(fit, before):
    assert_close(dict(story.state_dict()), before, **EXACT)
    learned = fit.parameters()
    assert set(learned) == set(dict(story.named_parameters()))
    assert not torch.equal(learned["decoder.network.0.weight"], before["decoder.network.0.weight"])


def test_model_and_guide_learn_one_story(fit, rows):
    """The copied model and the copied guide refer to the same copy."""
    x = rows[1].x
    expected = fit.guide.__wrapped__.__self__
    assert_close(evaluation.encode(fit, x), expected.encoder(x).mean.detach(), **EXACT)
    means = expected.decoder(evaluation.encode(fit, x)).mean.detach()
    assert_close(evaluation.reconstruct(fit, x), means, **EXACT)


def test_the_gate_is_amortized(fit, rows):
    g, error = evaluation.gate(fit, rows[1].x, return_error=True)
    assert g.shape == (len(rows[1]), K)
    assert_close(g.sum(-1), torch.ones(len(g)))
    assert (error == 0).all()


def test_scores_are_shares(fit, rows):
    g = evaluation.gate(fit, rows[1].x)
    scores = evaluation.clustering_scores(g, rows[1].labels)
    assert set(scores) == {"accuracy", "nmi", "ari"}
    assert 1 / K <= scores["accuracy"] <= 1


def test_the_elbo_of_rows_is_the_objective(fit, rows):
    x = rows[1].x
    with reproducible(7), torch.no_grad():
        expected = -MarginalELBO().loss(fit.model, fit.guide, x) / len(x)
    mine = evaluation.elbo(fit, x, num_samples=1, seed=7)
    assert mine.shape == (len(x),)
    assert mine.mean().item() == pytest.approx(expected, rel=1e-5)


def test_the_importance_weighted_bound_is_above_the_elbo(fit, rows):
    """In each row, for the same samples, by Jensen's inequality."""
    x = rows[1].x
    bound = evaluation.importance_weighted_bound(fit, x, num_samples=32, seed=5)
    assert bound.shape == (len(x),)
    assert (bound > evaluation.elbo(fit, x, num_samples=32, seed=5)).all()


@pytest.mark.parametrize("component", [None, 0, K - 1])
def test_samples_are_rows(fit, component):
    x = evaluation.sample(fit, 7, component=component)
    assert x.shape == (7, 2)
    assert x.isfinite().all()


def test_samples_without_noise_are_means(fit):
    """Heavy tails are in the noise alone: the same z and c, drawn first, give both."""
    noisy, smooth = (evaluation.sample(fit, 4000, noise=noise, seed=3) for noise in (True, False))
    story = fit.guide.__wrapped__.__self__
    scale = (story.units.scale * story.decoder.log_scale.exp()).detach()
    residual = ((noisy - smooth) / scale).flatten()
    share = dist.StudentT(3.0).rsample((200_000,)).abs().gt(3.0).double().mean()
    error = (share * (1 - share) / len(residual)).sqrt()
    assert (residual.abs().gt(3.0).double().mean() - share).abs() < 4.5 * error


def test_every_picture_is_drawn(fit, rows):
    shown = Rows(rows[1].x, labels=rows[1].labels)
    figures = plots.pictures(fit, shown)
    names = {"history", "latent_map", "reconstructions", "generated", "gate_map"}
    assert set(figures) == names
    assert all(isinstance(figure, Figure) for figure in figures.values())
