"""Shares of kinds: the check sees that they are not equal, and the posterior is what rows say."""

import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch.testing import assert_close

from pyro_moe import criticism, evaluation
from pyro_moe.inference import MarginalELBO
from pyro_moe.inference.context import reproducible
from pyro_moe.inference.programs import modules


@pytest.fixture(scope="module")
def example(load):
    return load("learned_weights")


@pytest.fixture(scope="module")
def train(example):
    return example.kinds(500, seed=1)


@pytest.fixture(scope="module")
def fits(example, train):
    return example.fitted(train, epochs=150)


@pytest.fixture(scope="module")
def held_out(example):
    return example.kinds(200, seed=2)


def test_kinds_are_not_equally_common(fits, held_out):
    check = criticism.check(fits["uniform"], held_out, num_replicates=100)
    assert "mean" in check.surprises()["statistic"].tolist()


def test_learned_shares_are_those_of_the_rows(fits, held_out):
    assert criticism.check(fits["learned"], held_out, num_replicates=100).surprises().empty


def test_new_rows_are_likelier_with_learned_shares(fits, held_out):
    table = criticism.compare(fits, held_out)
    assert table.index.tolist() == ["learned", "uniform"]
    assert table["difference"].iloc[1] < -3 * table["difference_standard_error"].iloc[1]


def test_the_posterior_is_that_of_counted_rows(fits, train):
    """Kinds hardly overlap, so that it is about the conjugate Dirichlet(1 + n)."""
    q = poutine.trace(fits["learned"].guide).get_trace(train.x).nodes["weights"]["fn"]
    counted = dist.Dirichlet(1.0 + torch.bincount(train.labels).float().sort().values)
    order = q.mean.argsort()
    distance = (q.mean[order] - counted.mean).abs() / counted.variance.sqrt()
    assert (distance < 1.5).all()
    ratio = q.variance[order].sqrt() / counted.variance.sqrt()
    assert ((ratio > 0.7) & (ratio < 1.5)).all()


def test_shares_are_outside_the_plate(fits, train):
    """The bound of all rows is log p(x|w) of each, and once log p(w) - log q(w)."""
    fit = fits["learned"]
    (story,) = modules(fit.programs.model)
    with reproducible(3), torch.no_grad():
        bound = -MarginalELBO().loss(fit.model, fit.guide, train.x)
    with reproducible(3), torch.no_grad():
        site = poutine.trace(fit.guide).get_trace(train.x).nodes["weights"]
        shares = site["value"]
        each = story.mixture.normals.log_prob(train.x.unsqueeze(1))
        expected = (each + shares.log()).logsumexp(-1).sum()
        expected += dist.Dirichlet(torch.ones(3)).log_prob(shares) - site["fn"].log_prob(shares)
    assert bound == pytest.approx(expected.item(), rel=1e-5)


def test_data_sets_differ_in_their_shares_as_the_posterior_has_it(fits):
    """Replicates carry what is not known of the shares: their counts spread beyond a binomial."""
    fit = fits["learned"]
    q = poutine.trace(fit.guide).get_trace(fit.data[0]).nodes["weights"]["fn"]
    common = int(q.mean.argmax())
    (story,) = modules(fit.programs.model)
    center = story.mixture.normals.mean.detach()
    draws = torch.stack([evaluation.sample(fit, 400, seed=seed) for seed in range(300)])
    nearest = torch.cdist(draws, center.expand(300, 3, 2)).argmin(-1)
    shares = (nearest == common).double().mean(-1)
    p = q.mean[common]
    expected = (p * (1 - p) / 400 + (1 - 1 / 400) * q.variance[common]).sqrt().item()
    assert shares.std().item() == pytest.approx(expected, rel=4 / (2 * 300) ** 0.5)
    assert shares.std().item() > 1.2 * (p * (1 - p) / 400).sqrt().item()


def held_out_are_three_clusters(example):
    rows = example.kinds(20_000, seed=0)
    shares = torch.bincount(rows.labels) / len(rows)
    expected = torch.tensor([0.70, 0.22, 0.08])
    assert ((shares - expected).abs() < 4.5 * (expected * (1 - expected) / len(rows)).sqrt()).all()
    spread = torch.stack([rows.x[rows.labels == k].var(0) for k in range(3)])
    assert_close(spread, torch.ones(3, 2), rtol=0.16, atol=0)
