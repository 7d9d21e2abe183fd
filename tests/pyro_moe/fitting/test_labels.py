"""Rows whose component is known: all, some or none, as labels or as probabilities."""

import numpy as np
import pytest
import torch
from torch.testing import assert_close

import pyro_moe
from pyro_moe import evaluation, models
from pyro_moe.inference.em import EM
from pyro_moe.inference.errors import DataError, SiteError
from pyro_moe.inference.handlers import Annotations, annotated
from pyro_moe.inference.objectives import objective
from pyro_moe.inference.prior import FLAT

N, K = 60, 2
STORIES = {
    "me": lambda: models.ME(2, 1, K),
    "gmmmoe": lambda: models.GMMMoE(2, 1, K, shrinkage=0.0),
    "gmm": lambda: models.GMM(2, K),
    "vademoe": lambda: models.VaDEMoE(2, 1, K, 2, hidden=(4,)),
    "dmvae": lambda: models.DMVAE(2, 2, K, hidden=(4,)),
}
BY_EM = ("me", "gmmmoe", "gmm")
QUIET = {"progress": False, "prior": "none"}


@pytest.fixture
def rows():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(N, 2, generator=generator).double()
    c = (x[:, 0] + torch.randn(N, generator=generator) > 0).long()
    y = torch.where(c == 1, 2 * x[:, 0], 1 - x[:, 1]).unsqueeze(-1)
    return x, y + 0.3 * torch.randn(N, 1, generator=generator).double(), c


def of(name, rows):
    x, y, c = rows
    return STORIES[name]().double(), (x,) if name in ("gmm", "dmvae") else (x, y), c


def joint(name, story, columns):
    """Log p(d, c=k) by hand, shape (N, K)."""
    x = columns[0]
    if name == "me":
        log_c = story.gate(x).logits.log_softmax(-1)
    else:
        mixture = story.mixture
        log_c = mixture.logits.log_softmax(-1) + mixture.normals.log_prob(x.unsqueeze(1))
    if name == "gmm":
        return log_c
    return log_c + story.experts(x).log_prob(columns[1].unsqueeze(1))


def some(c):
    labels = c.double().clone()
    labels[::3] = torch.nan
    return labels


@pytest.mark.parametrize("name", BY_EM)
@pytest.mark.parametrize("loss", ["em", "marginal"])
def test_the_term_of_a_labeled_row_is_that_of_its_component(name, loss, rows):
    story, columns, c = of(name, rows)
    story.adapt(*columns)
    labels = some(c)
    one_hot = torch.eye(K).double()[c].masked_fill(labels.isnan().unsqueeze(-1), torch.nan)
    each = joint(name, story, columns).detach()
    expected = torch.where(labels.isnan(), each.logsumexp(-1), each[torch.arange(N), c])
    about = Annotations(labels=one_hot)
    if loss == "em":
        run = EM(story.model, story.guide, columns, 1, 0, FLAT, annotations=about)
        assert_close(run.log_likelihoods().detach(), expected)
        assert_close(run.e_step()[0][~labels.isnan()], one_hot[~labels.isnan()])
        assert_close(run.e_step()[0][labels.isnan()], each.softmax(-1)[labels.isnan()])
    else:
        programs = [annotated(each, ("labels",)) for each in (story.model, story.guide)]
        assert -objective(loss)[0].loss(*programs, *columns, one_hot) == pytest.approx(
            expected.sum().item()
        )


@pytest.mark.parametrize("name", BY_EM)
def test_the_term_of_probabilities_is_the_bound_at_them(name, rows):
    story, columns, _ = of(name, rows)
    story.adapt(*columns)
    r = torch.rand(N, K, generator=torch.Generator().manual_seed(1)).double().softmax(-1)
    each = joint(name, story, columns).detach()
    run = EM(story.model, story.guide, columns, 1, 0, FLAT, annotations=Annotations(labels=r))
    assert_close(run.log_likelihoods().detach(), (r * (each - r.log())).sum(-1))
    run.annotations = Annotations(labels=each.softmax(-1))  # at the posterior it is exact
    assert_close(run.log_likelihoods().detach(), each.logsumexp(-1))


def test_with_all_labels_em_is_regressions_and_a_multinomial_gate(rows):
    x, y, c = rows
    story = models.ME(2, 1, K).double()
    fitted = pyro_moe.fit(story.model, story.guide, (x, y), labels=c, **QUIET)
    design = torch.cat([x, torch.ones(N, 1).double()], -1)
    for k in range(K):
        beta = torch.linalg.lstsq(design[c == k], y[c == k]).solution
        p = fitted.story.experts(x)
        assert_close(p.mean[:, k], design @ beta, rtol=1e-6, atol=1e-6)
        residuals = y[c == k] - (design @ beta)[c == k]
        scale = residuals.square().mean().sqrt()
        assert_close(p.variance[0, k].sqrt(), scale.reshape(1), rtol=1e-5, atol=1e-6)
    gate = fitted.story.gate(x).probs
    score = design.T @ (torch.eye(K).double()[c] - gate)  # zero at the multinomial estimate
    assert score.abs().max() < 1e-4


def test_with_all_labels_a_gaussian_mixture_is_moments(rows):
    x, _, c = rows
    story = models.GMM(2, K).double()
    fitted = pyro_moe.fit(story.model, story.guide, x, labels=c.numpy(), **QUIET)
    mixture = fitted.story.mixture
    assert_close(mixture.logits.softmax(-1), c.bincount() / N, check_dtype=False)
    for k in range(K):
        assert_close(mixture.normals.mean[k], x[c == k].mean(0))
        covariance = torch.cov(x[c == k].T, correction=0)
        assert_close(mixture.normals.covariance_matrix[k], covariance, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("loss", ["em", "marginal"])
def test_no_known_label_is_no_label(loss, rows):
    x, y, _ = rows
    options = QUIET | {"loss": loss, "epochs": 5}
    fits = []
    for labels in (None, -np.ones(N), [None] * N, np.full((N, K), np.nan)):
        torch.manual_seed(0)
        story = models.ME(2, 1, K).double()
        fits.append(pyro_moe.fit(story.model, story.guide, (x, y), labels=labels, **options))
    for fit in fits[1:]:
        for name, value in fits[0].parameters().items():
            assert_close(fit.parameters()[name], value)


def test_the_objective_does_not_decrease_with_some_labels(rows):
    x, y, c = rows
    story = models.ME(2, 1, K).double()
    fitted = pyro_moe.fit(story.model, story.guide, (x, y), labels=some(c), **QUIET)
    values = [record["objective"] for record in fitted.history]
    assert np.diff(values).min() > -1e-12
    assert (np.diff(values) > 0).any()


@pytest.mark.parametrize("name", BY_EM)
def test_components_keep_the_numbers_of_their_labels(name, rows):
    story, columns, c = of(name, rows)
    fits = [
        pyro_moe.fit(story.model, story.guide, columns, labels=each, **QUIET)
        for each in (some(c), some(1 - c))
    ]
    one, two = (evaluation.gate(fit, columns[0]) for fit in fits)
    assert_close(one, two.flip(-1), rtol=0.0, atol=1e-2)


@pytest.mark.parametrize("name", ["dmvae", "vademoe"])
def test_labels_teach_deep_stories(name, rows):
    story, columns, _ = of(name, rows)
    x = columns[0]
    c = (x[:, 0] * x[:, 1] > 0).long()  # no cluster
    options = QUIET | {"epochs": 60, "initial_epochs": 20, "batch_size": 20, "learning_rate": 0.02}
    fitted = pyro_moe.fit(story.model, story.guide, columns, labels=c, loss="marginal", **options)
    found = evaluation.gate(fitted, x).argmax(-1)
    assert (found == c).double().mean() > 0.8


def test_a_teaching_row_changes_the_gradient_alone(rows):
    story, columns, c = of("dmvae", rows)
    story.adapt(*columns)
    programs = [annotated(each, ("labels",)) for each in (story.model, story.guide)]
    r = torch.eye(K).double()[c]
    losses = []
    for teaches in (False, True):
        torch.manual_seed(0)
        elbo, _ = objective("marginal", teaches=teaches)
        losses.append(elbo.differentiable_loss(*programs, *columns, r))
    assert_close(losses[0], losses[1])
    gradients = [
        torch.autograd.grad(loss, list(story.parameters()), allow_unused=True) for loss in losses
    ]
    changed = {
        name.split(".")[0]
        for (name, _), one, two in zip(story.named_parameters(), *gradients, strict=True)
        if two is not None and (one is None or not torch.allclose(one, two))
    }
    assert len(changed) == 1
    assert "prior" not in changed


def test_rows_of_a_group_share_a_label(rows):
    x, y, _ = rows
    story = models.ME(2, 1, K, gate_columns=()).double()
    groups = torch.arange(N) // 3
    labels = np.full(N, -1)
    labels[4] = 1
    options = {"groups": groups, "progress": False, "epochs": 1}
    fitted = pyro_moe.fit(story.model, story.guide, (x, y), labels=labels, **options)
    known = ~fitted.annotations.labels[:, 0].isnan()
    assert known.nonzero().flatten().tolist() == [3, 4, 5]
    labels[5] = 0
    with pytest.raises(
        DataError, match="one label in each group; got another in row 5 than in row"
    ):
        pyro_moe.fit(story.model, story.guide, (x, y), labels=labels, **options)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.arange(N) % 3, "labels from 0 to 1, -1 where .* not known.* in labels; got 2 in row 2"),
        (np.full(N, 0.5), "got 0.5 in row 0"),
        (np.zeros(N - 1), r"expected labels of shape \(60, 2\); got \(59,\)"),
        (np.full((N, K), 0.6), "probabilities in each row; .* row sums from 1.2 to 1.2"),
        (["a"] * N, "expected numbers in labels; got 'a' in row 0"),
    ],
)
def test_other_labels_are_refused(labels, message, rows):
    x, y, _ = rows
    story = models.ME(2, 1, K)
    with pytest.raises(DataError, match=message):
        pyro_moe.fit(story.model, story.guide, (x, y), labels=labels, progress=False)


def test_labels_belong_to_components_and_to_an_objective_that_masks(rows):
    x, y, c = rows
    story = models.ME(2, 1, K)
    with pytest.raises(ValueError, match="loss='em' or 'marginal' with labels; got 'relaxed'"):
        pyro_moe.fit(story.model, story.guide, (x, y), labels=c, loss="relaxed", progress=False)
    story = models.VAE(2, 2)
    with pytest.raises(SiteError, match="expected a site 'c' in the model for labels; got none"):
        pyro_moe.fit(story.model, story.guide, x, labels=c, progress=False)


@pytest.mark.parametrize("initialize", ["keep", "labels", "autoencoder"])
def test_equal_starts_of_em_are_refused(initialize, rows):
    x, y, c = rows
    story = models.ME(2, 1, K)
    start = c if initialize == "labels" else initialize
    with pytest.raises(ValueError, match="expected initialize='random' with restarts=3 of EM"):
        pyro_moe.fit(
            story.model, story.guide, (x, y), initialize=start, restarts=3, loss="em", **QUIET
        )


def test_unknown_labels_of_a_start_are_open(rows):
    x, y, c = rows
    story = models.ME(2, 1, K)
    fitted = pyro_moe.fit(story.model, story.guide, (x, y), initialize=some(c), **QUIET)
    other = pyro_moe.fit(story.model, story.guide, (x, y), initialize=c, **QUIET)
    assert fitted.history[-1]["elbo"] == pytest.approx(other.history[-1]["elbo"], abs=1e-4)
