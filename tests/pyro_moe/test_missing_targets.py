"""Rows without a target teach the gate of a story of x, and nothing to its experts."""

import math
from functools import partial

import pytest
import torch
from torch.testing import assert_close

import pyro_moe
from pyro_moe import DataError, Rows, evaluation
from pyro_moe.inference import MarginalELBO
from pyro_moe.models import DMVAE, ME, DeepMoE, DVMoE, GMMMoE, VaDE, VaDEMoE

pytestmark = [
    pytest.mark.usefixtures("double"),
    pytest.mark.filterwarnings("ignore:expected experts:pyro_moe.EmptyComponentWarning"),
]
N, D, L, K, M = 60, 2, 2, 3, 2
CLOSE = {"rtol": 1e-9, "atol": 1e-9}


STORIES = {
    "dvmoe": lambda **more: DVMoE(D, M, K, L, hidden=(8,), **more),
    "vademoe": lambda **more: VaDEMoE(D, M, K, L, hidden=(8,), **more),
    "gmmmoe": lambda **more: GMMMoE(D, M, K, **more),
    "deepmoe": lambda **more: DeepMoE(D, M, K, hidden=(8,), **more),
    "me": lambda **more: ME(D, M, K, **more),
}
FITS = {
    "dvmoe": ("dvmoe", {}),
    "vademoe": ("vademoe", {}),
    "gmmmoe": ("gmmmoe", {}),
    "gmmmoe by em": ("gmmmoe", {"loss": "em"}),
    "deepmoe": ("deepmoe", {}),
    "me by em": ("me", {"loss": "em"}),
}
each_fit = pytest.mark.parametrize("case", FITS)


@pytest.fixture
def labels():
    return torch.arange(N) % K


@pytest.fixture
def x(labels):
    """Three clusters, ten standard deviations apart."""
    centers = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]])
    return centers[labels] + torch.randn(N, D)


@pytest.fixture
def whole(x, labels):
    """An affine map of x in each cluster, without noise."""
    weight, bias = torch.randn(K, M, D), torch.randn(K, M)
    return torch.einsum("nmd,nd->nm", weight[labels], x) + bias[labels]


@pytest.fixture
def y(whole):
    """Known in three rows of ten."""
    known = torch.arange(N) % 10 < 3
    return torch.where(known[:, None], whole, math.nan)


def fitted(case, data, labels, **choices):
    name, settings = FITS[case]
    story = STORIES[name]()
    settings = {
        "epochs": 3,
        "batch_size": 16,
        "initial_epochs": 1,
        "prior": "none",
        "progress": False,
    } | settings
    settings |= {"initialize": torch.eye(K)[labels], "missing_targets": True} | choices
    return pyro_moe.fit(story.model, story.guide, data, **settings)


@each_fit
@pytest.mark.parametrize("choices", [{}, {"batch_size": 2}, {"restarts": 2}], ids=str)
def test_stories_learn_from_rows_some_of_which_lack_a_target(case, x, y, labels, choices):
    """Minibatches may be without any target."""
    if FITS[case][1].get("loss") == "em" and "restarts" in choices:
        choices = choices | {"initialize": "random"}  # equal starts of EM are refused
    fit = fitted(case, (x, y), labels, **choices)
    assert fit.stopped is None
    assert fit.settings["missing_targets"]
    assert all(math.isfinite(record["elbo"]) for record in fit.history)
    assert all(value.isfinite().all() for value in fit.parameters().values())
    prediction = evaluation.predict(fit, (x, y))  # targets are not looked at
    assert_close(prediction.mean, evaluation.predict(fit, x).mean, **CLOSE)
    assert prediction.mean.shape == (N, M)
    assert prediction.variance.isfinite().all()


@each_fit
def test_without_being_told_a_missing_target_is_an_error(case, x, y, labels):
    with pytest.raises(DataError) as caught:
        fitted(case, (x, y), labels, missing_targets=False)
    expected = "expected finite values in y; got nan in row 3 (42 of 60 rows have such values)"
    assert str(caught.value) == expected


def test_a_feature_may_not_be_missing(x, y, labels):
    x[7, 1] = math.nan
    with pytest.raises(DataError, match="expected finite values in x; got nan in row 7"):
        fitted("gmmmoe", (x, y), labels)


def test_an_infinite_target_is_not_a_missing_one(x, y, labels):
    y[0, 0] = math.inf
    with pytest.raises(DataError, match="expected finite values in y; got inf in row 0"):
        fitted("gmmmoe", (x, y), labels)


def test_some_target_has_to_be_known(x, labels):
    with pytest.raises(DataError, match="expected rows with a target; got NaN in every row of y"):
        fitted("gmmmoe", (x, torch.full((N, M), math.nan)), labels)


@each_fit
def test_a_fit_of_whole_rows_is_the_same_with_and_without_being_told(case, x, whole, labels):
    first, second = (
        fitted(case, (x, whole), labels, missing_targets=told) for told in (True, False)
    )
    assert_close(first.parameters(), second.parameters(), rtol=0, atol=0)


# What rows without a target say


@pytest.fixture
def kept(x, scatter):
    """A function from the name of a story to a fit of it as it is, away from its start."""

    def make(name, y):
        story = scatter(STORIES[name](), scale=0.3)
        return pyro_moe.fit(
            story.model,
            story.guide,
            (x, y),
            epochs=0,
            initialize="keep",
            missing_targets=True,
            progress=False,
        )

    return make


def test_the_bound_of_a_row_without_a_target_is_the_likelihood_of_x(kept, x, y, whole):
    fit = kept("gmmmoe", y)
    bounds = evaluation.elbo(fit, (x, y), num_samples=1)
    with torch.no_grad():
        joint = fit.story.mixture.log_joint(x)
        with_target = joint + fit.story.experts(x).log_prob(whole.unsqueeze(1))
    known = ~y.isnan().any(-1)
    expected = torch.where(known, with_target.logsumexp(-1), joint.logsumexp(-1))
    assert_close(bounds, expected, **CLOSE)


@pytest.mark.parametrize(("name", "inner"), [("dvmoe", DMVAE), ("vademoe", VaDE)])
def test_the_bound_of_a_row_without_a_target_is_that_of_the_story_of_x(kept, x, y, name, inner):
    """At the same samples of z; where the target is known it is another."""
    fit = kept(name, y)
    programs = (partial(program, fit.story) for program in (inner.model, inner.guide))
    of_x = pyro_moe.fit(*programs, x, epochs=0, initialize="keep", progress=False)
    known = ~y.isnan().any(-1)
    bounds, expected = evaluation.elbo(fit, (x, y)), evaluation.elbo(of_x, x)
    assert_close(bounds[~known], expected[~known], **CLOSE)
    assert ((bounds - expected)[known].abs() > 1e-3).all()


@pytest.mark.parametrize("name", ["deepmoe", "me"])
def test_a_gate_without_a_story_of_x_has_nothing_to_say_of_such_rows(kept, x, y, name):
    bounds = evaluation.elbo(kept(name, y), (x, y))
    known = ~y.isnan().any(-1)
    assert_close(bounds[~known], torch.zeros(int((~known).sum())), rtol=0, atol=1e-12)
    assert (bounds[known].abs() > 1e-3).all()


@pytest.mark.parametrize("name", STORIES)
def test_rows_without_a_target_teach_experts_nothing(
    name, x, y, whole, scatter, loss_and_gradients
):
    """Nor do they turn a gradient into NaN where others have a target."""
    story = scatter(STORIES[name](), scale=0.3)
    missing = torch.full((N, M), math.nan)
    _, gradients = loss_and_gradients(MarginalELBO(), story.model, story.guide, story, x, missing)
    experts = {key: each for key, each in gradients.items() if key.startswith("experts.")}
    assert experts
    assert all((each == 0).all() for each in experts.values())
    _, some = loss_and_gradients(MarginalELBO(), story.model, story.guide, story, x, y)
    assert all(each.isfinite().all() for each in some.values())
    assert any((some[key] != 0).any() for key in experts)


@pytest.mark.parametrize("name", STORIES)
def test_a_row_that_lacks_one_of_its_targets_lacks_all(kept, x, y, name):
    """Experts give the columns of y a joint density."""
    half = y.clone()
    half[~y.isnan().any(-1), 1] = math.nan
    assert half.isnan().any(-1).all()
    assert not half.isnan().all()
    fit = kept(name, y)
    without = evaluation.elbo(fit, (x, torch.full((N, M), math.nan)))
    assert_close(evaluation.elbo(fit, (x, half)), without, **CLOSE)


def test_a_few_targets_are_enough_where_clusters_are_clear(x, y, whole, labels):
    """Six known targets for each affine map of two features, and no noise."""
    story = GMMMoE(D, M, K)
    fit = pyro_moe.fit(
        story.model,
        story.guide,
        (x, y),
        loss="em",
        epochs=50,
        missing_targets=True,
        prior="none",
        progress=False,
    )
    prediction = evaluation.predict(fit, x)
    unseen = y.isnan().any(-1)
    scores = evaluation.regression_scores(prediction, whole)
    assert scores["rmse"] < 1e-3 * whole.std().item()
    assert unseen.sum() == 42
    assert evaluation.clustering_scores(prediction.gate, labels)["accuracy"] == 1.0


@pytest.mark.parametrize(
    ("experts", "make"),
    [
        ("categorical", lambda labels: labels % M),
        ("poisson", lambda labels: torch.stack([labels, 2 * labels], 1)),
        ("bernoulli", lambda labels: torch.stack([labels > 0, labels > 1], 1)),
        ("student-t", lambda labels: torch.stack([labels, 2 * labels], 1) + torch.randn(N, M)),
    ],
)
@pytest.mark.parametrize("name", ["dvmoe", "vademoe", "gmmmoe"])
def test_targets_of_every_family_may_be_missing(name, experts, make, x, labels):
    target = make(labels).double()
    target[torch.arange(N) % 10 >= 3] = math.nan
    story = STORIES[name](experts=experts)
    fit = pyro_moe.fit(
        story.model,
        story.guide,
        Rows(x, target),
        epochs=2,
        initialize=torch.eye(K)[labels],
        missing_targets=True,
        prior="none",
        progress=False,
    )
    assert fit.stopped is None
    assert evaluation.elbo(fit, (x, target)).isfinite().all()
    assert evaluation.predict(fit, x).mean.isfinite().all()


def test_a_fit_of_whole_rows_asks_for_whole_rows(x, y, whole):
    story = GMMMoE(D, M, K)
    fit = pyro_moe.fit(
        story.model, story.guide, (x, whole), epochs=0, initialize="keep", progress=False
    )
    with pytest.raises(DataError, match="expected finite values in y; got nan in row 3"):
        evaluation.elbo(fit, (x, y))
