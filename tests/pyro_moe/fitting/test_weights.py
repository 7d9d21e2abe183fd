"""Whole weights of rows are as many copies of the rows, in any story and objective."""

import copy

import pytest
import torch
from pyro import poutine
from torch.testing import assert_close

import pyro_moe
from pyro_moe import evaluation, models
from pyro_moe.fitting.annotations import expanded
from pyro_moe.inference.em import EM
from pyro_moe.inference.errors import DataError
from pyro_moe.inference.handlers import Annotate, Annotations, AtTheMean, annotated
from pyro_moe.inference.initialize import corrected
from pyro_moe.inference.objectives import AssignedELBO, objective
from pyro_moe.inference.prior import FLAT, Prior

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
    """A story, another like it, copies of the rows, and the rows and their weights."""
    story, (x, y, weights) = STORIES[name]().double(), rows
    columns = (x,) if name in ("gmm", "dmvae", "vae") else (x, y)
    copies = tuple(column.repeat_interleave(weights, 0) for column in columns)
    return story, copy.deepcopy(story), copies, (columns, weights.double())


@pytest.mark.parametrize("name", STORIES)
def test_the_marginal_objective_is_that_of_copies(name, rows):
    story, other, copies, (columns, weights) = of(name, rows)
    prior = Prior(rows=3.0, ridge=0.0)
    size = float(weights.sum())
    elbo, _ = objective("marginal", prior=prior, num_rows=round(size))
    weighted, _ = objective("marginal", prior=prior, num_rows=N, mean_weight=size / N)
    programs = [annotated(each, ("weights",)) for each in (other.model, other.guide)]
    losses = []
    with AtTheMean():  # z is drawn for each row
        losses.append(elbo.differentiable_loss(story.model, story.guide, *copies))
        losses.append(weighted.differentiable_loss(*programs, *columns, weights))
    for loss in losses:
        loss.backward()
    assert_close(losses[1], losses[0])
    for one, two in zip(story.parameters(), other.parameters(), strict=True):
        if one.grad is not None:
            assert_close(two.grad, one.grad, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["me", "gmmmoe", "dvmoe"])
def test_the_assigned_phase_is_that_of_copies(name, rows):
    story, other, copies, (columns, weights) = of(name, rows)
    prior = Prior(rows=3.0, ridge=0.0)
    size, r = float(weights.sum()), torch.rand(N, K).double().softmax(-1)
    known = r.repeat_interleave(rows[2], 0)
    one = AssignedELBO(prior=prior, num_rows=round(size))
    two = AssignedELBO(prior=prior, num_rows=N, mean_weight=size / N)
    labeled = [annotated(each, ("labels",)) for each in (story.model, story.guide)]
    both = [annotated(each, ("weights", "labels")) for each in (other.model, other.guide)]
    with AtTheMean():  # z is drawn for each row
        loss = one.differentiable_loss(*labeled, *copies, known)
        assert_close(two.differentiable_loss(*both, *columns, weights, r), loss)


@pytest.mark.parametrize("prior", [FLAT, Prior(rows=3.0)])
@pytest.mark.parametrize("name", ["me", "gmmmoe"])
def test_the_correction_of_a_clustering_is_that_of_copies(name, prior, rows):
    story, other, copies, (columns, weights) = of(name, rows)
    r = torch.rand(N, K, generator=torch.Generator().manual_seed(1)).double().softmax(-1)
    about = Annotations(weights=weights)
    one = EM(story.model, story.guide, copies, 1, 0, prior)
    two = EM(other.model, other.guide, columns, 1, 0, prior, annotations=about)
    expected = corrected(one, r.repeat_interleave(rows[2], 0), copies[0], iterations=3)
    found = corrected(two, r, columns[0], iterations=3)
    assert_close(found.repeat_interleave(rows[2], 0), expected, rtol=1e-4, atol=1e-4)
    for a, b in zip(story.parameters(), other.parameters(), strict=True):
        assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_one_linear_model_is_that_of_copies(rows):
    story, other, copies, (columns, weights) = of("me", rows)
    options = {"initialize": "keep", "epochs": 0, "progress": False}
    one = pyro_moe.fit(story.model, story.guide, copies, **options)
    two = pyro_moe.fit(other.model, other.guide, columns, weights=weights, **options)
    lines = [evaluation.linear_baseline(fit, columns) for fit in (one, two)]
    assert_close(lines[1], lines[0])


@pytest.mark.parametrize("name", BY_EM)
def test_an_iteration_of_em_is_that_of_copies(name, rows):
    story, other, copies, (columns, weights) = of(name, rows)
    prior = Prior(rows=3.0, ridge=0.1)
    one = EM(story.model, story.guide, copies, 1, 0, prior)
    two = EM(
        other.model, other.guide, columns, 1, 0, prior, annotations=Annotations(weights=weights)
    )
    assert_close(two.log_posterior(), one.log_posterior())
    for run in (one, two):
        list(run)
    assert_close(two.log_posterior(), one.log_posterior(), rtol=1e-5, atol=1e-5)
    for a, b in zip(story.parameters(), other.parameters(), strict=True):
        assert_close(a, b, rtol=1e-4, atol=1e-4)  # ridges of rounding are those of the rows


@pytest.mark.parametrize("name", BY_EM)
def test_a_fit_is_that_of_copies(name, rows):
    story, other, copies, (columns, _) = of(name, rows)
    x, _, weights = rows
    labels = (x[:, 0] > 0).long()
    options = {"prior": "none", "tolerance": 1e-9, "progress": False}
    one = pyro_moe.fit(
        story.model, story.guide, copies, initialize=labels.repeat_interleave(weights), **options
    )
    two = pyro_moe.fit(
        other.model, other.guide, columns, weights=weights, initialize=labels, **options
    )
    assert type(two.story) is type(story)
    for parameter, value in one.story.named_buffers():  # units count a row as its copies
        if "units" in parameter:
            assert_close(dict(two.story.named_buffers())[parameter], value, rtol=1e-9, atol=1e-9)
    assert two.num_rows == N
    density = [
        evaluation.elbo(fit, copies if len(copies) > 1 else copies[0]).sum() for fit in (one, two)
    ]
    assert_close(density[1], density[0], rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("name", ["me", "deepmoe", "gmm"])
def test_training_by_gradients_is_that_of_copies(name, rows):
    torch.manual_seed(0)
    story, _, copies, (columns, weights) = of(name, rows)
    story.adapt(*copies)
    other = copy.deepcopy(story)
    options = {"initialize": "keep", "loss": "marginal", "prior": "none", "epochs": 9}
    options |= {"batch_size": 1000, "progress": False}
    one = pyro_moe.fit(story.model, story.guide, copies, **options)
    two = pyro_moe.fit(other.model, other.guide, columns, weights=weights, **options)
    assert_close(two.history[-1]["elbo"], one.history[-1]["elbo"])
    for parameter, value in one.parameters().items():
        assert_close(two.parameters()[parameter], value, rtol=1e-5, atol=1e-6)
        assert not torch.equal(value, dict(story.named_parameters())[parameter])


def test_a_site_outside_of_the_plate_has_no_weight(rows):
    x, y, weights = rows
    story = models.BayesianExperts(models.ME(2, 1, K).double())
    with Annotate(Annotations(weights=weights)):
        trace = poutine.trace(story.model).get_trace(x, y)
    assert trace.nodes["experts.log_scale"]["scale"] == 1.0
    assert_close(trace.nodes["y"]["scale"], weights, check_dtype=False)


def test_rows_stand_as_many_times_as_their_weights_say(rows):
    x, _, weights = rows
    assert_close(expanded((x,), weights)[0], x.repeat_interleave(weights, 0))
    shares = weights / weights.sum()
    (many,) = expanded((x,), shares)
    assert len(many) == 10 * N
    mean = (shares.double().unsqueeze(-1) * x).sum(0)
    assert_close(many.mean(0), mean, rtol=0.0, atol=0.1)


def test_rows_of_weight_zero_do_not_count(rows):
    x, y, _ = rows
    weights = torch.arange(N).remainder(3).clamp_max(1)
    options = {"initialize": (x[:, 0] > 0).long(), "prior": "none", "progress": False}
    story = models.ME(2, 1, K).double()
    one = pyro_moe.fit(story.model, story.guide, (x, y), weights=weights, **options)
    kept = weights == 1
    options["initialize"] = options["initialize"][kept]
    two = pyro_moe.fit(story.model, story.guide, (x[kept], y[kept]), **options)
    density = [evaluation.elbo(fit, (x[kept], y[kept])).sum() for fit in (one, two)]
    assert_close(density[0], density[1], rtol=1e-5, atol=1e-3)
    assert one.history[0]["elbo"] == pytest.approx(two.history[0]["elbo"])


@pytest.mark.parametrize("loss", ["em", "marginal"])
def test_a_weighted_fit_is_resumed(loss, rows, tmp_path):
    x, y, weights = rows
    torch.manual_seed(0)
    story = models.ME(2, 1, K).double()
    options = {"weights": weights, "loss": loss, "epochs": 6, "progress": False, "tolerance": -1.0}
    whole = pyro_moe.fit(story.model, story.guide, (x, y), **options)

    def stop(fit):
        return len(fit.history) == 3

    pyro_moe.fit(story.model, story.guide, (x, y), callback=stop, checkpoint=tmp_path, **options)
    resumed = pyro_moe.fit(story.model, story.guide, (x, y), resume=tmp_path, **options)
    for name, value in whole.parameters().items():
        assert torch.equal(resumed.parameters()[name], value)
    half = pyro_moe.fit(story.model, story.guide, (x, y), callback=stop, **options)
    for name, value in half.resume(progress=False).parameters().items():
        assert torch.equal(whole.parameters()[name], value)
    options["weights"] = weights + 1
    with pytest.raises(DataError, match="expected a checkpoint of this fit"):
        pyro_moe.fit(story.model, story.guide, (x, y), resume=tmp_path, **options)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"weights": torch.ones(3)}, r"expected weights of shape \(30,\); got shape \(3,\)"),
        ({"weights": -torch.ones(N)}, "expected weights of at least 0; got -1 in row 0"),
        ({"weights": torch.zeros(N)}, "expected weights of which one is above 0; got zeros"),
        ({"groups": ["a"] * 7}, r"expected groups of shape \(30,\); got shape \(7,\)"),
        ({"groups": [None] + ["a"] * 29}, "expected a group of each row; got none in row 0"),
    ],
)
def test_what_weights_and_groups_cannot_be(given, message, rows):
    x, y, _ = rows
    story = models.ME(2, 1, K)
    with pytest.raises(DataError, match=message):
        pyro_moe.fit(story.model, story.guide, (x, y), progress=False, **given)


def test_groups_are_those_of_a_mixture_of_experts(rows):
    x, y, _ = rows
    story = models.GMMMoE(2, 1, K)
    with pytest.raises(ValueError, match=r"a gate p\(c\|x\), such as models.ME.*got GMMMoE"):
        pyro_moe.fit(story.model, story.guide, (x, y), groups=[0] * N, loss="em", progress=False)


def test_restored_rows_without_their_weights_are_not_the_training_rows(rows, tmp_path):
    story, _, _, (columns, weights) = of("gmm", rows)
    fit = pyro_moe.fit(story.model, story.guide, columns, weights=weights, progress=False)
    arguments = {"x_dim": 2, "num_components": K}
    pyro_moe.runs.save(fit, tmp_path, story_name="gmm", story_arguments=arguments)
    restored = pyro_moe.runs.fit_of(tmp_path, columns[0])
    assert_close(evaluation.elbo(restored, columns[0]), evaluation.elbo(fit, columns[0]))
    with pytest.raises(DataError, match="restored without its training rows"):
        restored.training_rows  # noqa: B018
