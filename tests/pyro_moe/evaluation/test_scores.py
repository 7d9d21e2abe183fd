"""Scores of predictions are their definitions, by hand and by numerical integration."""

import numpy as np
import pandas as pd
import pyro.distributions as dist
import pytest
import torch
from scipy import integrate, stats
from torch.testing import assert_close

from pyro_moe import DataError, evaluation
from pyro_moe.distributions.mixture import Stacked
from pyro_moe.evaluation.prediction import Prediction
from pyro_moe.evaluation.scores import continuous_ranked_probability_score

pytestmark = pytest.mark.usefixtures("double")
S, N, K, M = 2, 6, 3, 2
CLOSE = {"rtol": 1e-9, "atol": 1e-11}


def gates(num_draws=S, num_rows=N):
    return torch.randn(num_draws, num_rows, K).softmax(-1)


def normals(num_draws=S):
    """A prediction by mixtures of normals, and scipy's distribution of each part (S, N, K, M)."""
    loc, scale = 3 * torch.randn(num_draws, N, K, M), torch.rand(num_draws, N, K, M) + 0.2
    pairs = zip(loc, scale, strict=True)
    distributions = tuple(dist.Normal(*pair).to_event(1) for pair in pairs)
    return Prediction(gates(num_draws).log(), distributions), stats.norm(loc, scale)


def full_normals():
    loc, tril = torch.randn(S, N, K, M), torch.randn(S, N, K, M, M).tril()
    tril.diagonal(dim1=-2, dim2=-1).abs_().add_(0.3)
    deviation = (tril @ tril.mT).diagonal(dim1=-2, dim2=-1).sqrt()
    pairs = zip(loc, tril, strict=True)
    distributions = tuple(dist.MultivariateNormal(a, scale_tril=b) for a, b in pairs)
    return Prediction(gates().log(), distributions), stats.norm(loc, deviation)


def normals_by_component():
    """The same layout as where c is enumerated: K leads."""
    prediction, expected = normals()
    turned = tuple(
        dist.Normal(p.base_dist.loc.transpose(0, 1), p.base_dist.scale.transpose(0, 1)).to_event(1)
        for p in prediction.distributions
    )
    return Prediction(prediction.log_weights, turned, leading=True), expected


def students():
    df, loc, scale = 5.0 + torch.rand(K, M), torch.randn(N, K, M), torch.rand(N, K, M) + 0.2
    p = dist.StudentT(df, loc, scale).to_event(1)
    return Prediction(gates(1).log(), (p,)), stats.t(df, loc, scale)


def counts():
    rate = 6 * torch.rand(N, K, M) + 0.5
    return Prediction(gates(1).log(), (dist.Poisson(rate).to_event(1),)), stats.poisson(rate)


def answers():
    probs = torch.rand(N, K, M)
    return Prediction(gates(1).log(), (dist.Bernoulli(probs).to_event(1),)), stats.bernoulli(probs)


@pytest.fixture
def y():
    return torch.randn(N, M)


def mixed(prediction, values):
    """What is true of each part, shape (S, N, K, M), averaged by the weights: (N, M)."""
    return (prediction.weights.unsqueeze(-1).numpy() * values).sum(2).mean(0)


# Regression


def test_regression_scores_are_their_definitions(y):
    prediction, parts = normals()
    levels = (0.5, 0.9)
    scores = evaluation.regression_scores(prediction, y, levels=levels)
    assert set(scores) == {"error", "rmse", "log_likelihood", "crps", "coverage"}
    squared = (y.numpy() - mixed(prediction, parts.mean())) ** 2
    assert scores["error"] == pytest.approx(squared.sum(1).mean())
    assert scores["rmse"] == pytest.approx(np.sqrt(squared.mean()))
    density = parts.pdf(y.numpy()[:, None]).prod(-1)
    joint = (prediction.weights.numpy() * density).sum(-1).mean(0)
    assert scores["log_likelihood"] == pytest.approx(np.log(joint).mean())
    below = mixed(prediction, parts.cdf(y.numpy()[:, None]))  # F(y) is in the middle share
    for level in levels:
        share = (np.abs(below - 0.5) < level / 2).mean()
        assert scores["coverage"][level] == pytest.approx(share)
    expected = continuous_ranked_probability_score(prediction, y).mean().item()
    assert scores["crps"] == pytest.approx(expected)


def test_the_error_adds_columns_up_and_the_root_mean_square_averages_them(y):
    prediction, _ = normals()
    scores = evaluation.regression_scores(prediction, y)
    assert scores["error"] == pytest.approx(M * scores["rmse"] ** 2)
    assert tuple(scores["coverage"]) == (0.5, 0.8, 0.9, 0.95)


@pytest.mark.parametrize(
    "kind",
    [
        lambda y: y.numpy(),
        lambda y: y.tolist(),
        lambda y: y.float().double(),
        lambda y: pd.DataFrame(y.numpy(), columns=["a", "b"], index=range(7, 7 + N)),
    ],
    ids=["numpy", "list", "tensor", "pandas"],
)
def test_targets_may_be_of_any_kind(y, kind):
    y = y.float().double()
    prediction, _ = normals()
    assert evaluation.regression_scores(prediction, kind(y)) == evaluation.regression_scores(
        prediction, y
    )


def test_a_single_target_may_be_a_series():
    prediction = Prediction(gates(1).log(), (dist.Normal(torch.randn(N, K), 1.0),))
    y = torch.randn(N)
    series = pd.Series(y.numpy(), index=[5, 3, 9, 1, 0, 2])  # rows in their order, not the index's
    expected = evaluation.regression_scores(prediction, y)
    assert evaluation.regression_scores(prediction, series) == expected
    assert evaluation.regression_scores(prediction, y[:, None]) == expected


def integrated(prediction, parts, y, grid):
    """∫ (F(t) - 1{t ≥ y})² dt by the trapezoidal rule on each side of y, shape (N, M)."""
    result = np.zeros((N, M))
    for n in range(N):
        for m in range(M):
            for side, below in ((-1, 0.0), (1, 1.0)):
                t = y[n, m].item() + side * grid.numpy()
                cdf = parts.cdf(t.reshape(-1, *(1,) * parts.mean().ndim))[..., n, :, m]
                weights = prediction.weights[:, n].numpy()
                f = (weights * cdf.reshape(len(t), -1, K)).sum(-1).mean(-1)
                result[n, m] += abs(integrate.trapezoid((f - below) ** 2, t))
    return torch.as_tensor(result)


@pytest.mark.parametrize("make", [normals, full_normals, normals_by_component])
def test_the_ranked_probability_score_of_normals_is_the_integral(y, make):
    prediction, parts = make()
    score = continuous_ranked_probability_score(prediction, y)
    grid = torch.linspace(0, 40, 8001)
    assert_close(score, integrated(prediction, parts, y, grid), rtol=2e-5, atol=1e-7)


def test_the_ranked_probability_score_of_certainty_is_the_distance(y):
    loc = torch.randn(N, K, M)
    one = torch.eye(K)[torch.arange(N) % K].unsqueeze(0)
    prediction = Prediction(one.log(), (dist.Normal(loc, 1e-12).to_event(1),))
    score = continuous_ranked_probability_score(prediction, y)
    chosen = loc[torch.arange(N), torch.arange(N) % K]
    assert_close(score, (y - chosen).abs(), rtol=0, atol=1e-11)


def test_the_ranked_probability_score_of_one_normal_is_gneitings(y):
    """σ [z (2Φ(z) - 1) + 2φ(z) - 1/√π]."""
    loc, scale = torch.randn(N, 1, M), torch.rand(N, 1, M) + 0.5
    prediction = Prediction(torch.zeros(1, N, 1), (dist.Normal(loc, scale).to_event(1),))
    z = ((y - loc[:, 0]) / scale[:, 0]).numpy()
    expected = z * (2 * stats.norm.cdf(z) - 1) + 2 * stats.norm.pdf(z) - 1 / np.sqrt(np.pi)
    score = continuous_ranked_probability_score(prediction, y)
    assert_close(score, scale[:, 0] * torch.as_tensor(expected), **CLOSE)


def test_by_quantiles_the_ranked_probability_score_of_normals_is_close():
    """Stacked experts are not known to be normal: the same distributions by fifty quantiles."""
    prediction, _ = normals(1)
    p, y = prediction.distributions[0].base_dist, torch.randn(N, M)
    stacked = Stacked([dist.Normal(p.loc[:, k], p.scale[:, k]).to_event(1) for k in range(K)])
    by_quantiles = continuous_ranked_probability_score(
        Prediction(prediction.log_weights, (stacked,)), y
    )
    exact = continuous_ranked_probability_score(prediction, y)
    assert not torch.equal(by_quantiles, exact)
    assert_close(by_quantiles, exact, rtol=0.02, atol=0)


def test_by_quantiles_the_ranked_probability_score_of_heavy_tails_is_close(y):
    prediction, parts = students()
    score = continuous_ranked_probability_score(prediction, y)
    grid = torch.linspace(0, 60, 4001)
    assert_close(score, integrated(prediction, parts, y, grid), rtol=0.03, atol=0)


@pytest.mark.parametrize(("make", "most"), [(counts, 40), (answers, 2)])
def test_by_quantiles_the_ranked_probability_score_of_counts_is_close(make, most):
    """The integral is a sum over whole numbers.

    At a step of F, a quantile is off by one over at most a hundredth of q, evenly so: by
    2 * 0.01 / √3 at the most in the score, independently at each of some ten steps.
    """
    prediction, parts = make()
    y = torch.arange(N * M).reshape(N, M) % most % 5
    t = np.arange(most).reshape(-1, 1, 1, 1)
    weights = prediction.weights[0].unsqueeze(-1).numpy()
    below = (weights * parts.cdf(t)).sum(2)
    expected = ((below - (np.arange(most)[:, None, None] >= y.numpy())) ** 2).sum(0)
    score = continuous_ranked_probability_score(prediction, y)
    assert_close(score, torch.as_tensor(expected), rtol=0, atol=3.5 * 0.0116)


def test_the_right_distribution_has_the_best_scores_on_average():
    """Both scores are proper: moved or stretched by a half, a prediction has worse ones."""
    num_rows = 2000
    p = dist.Normal(torch.randn(num_rows, K), 0.5)
    weights = gates(1, num_rows)
    y = p.sample()[torch.arange(num_rows), weights[0].multinomial(1)[:, 0]]
    right = Prediction(weights.log(), (p,))
    others = [dist.Normal(p.loc + 0.25, 0.5), dist.Normal(p.loc, 0.75), dist.Normal(p.loc, 0.33)]
    crps, density = continuous_ranked_probability_score(right, y)[:, 0], right.log_prob(y)
    for other in (Prediction(weights.log(), (q,)) for q in others):
        for loss in (
            continuous_ranked_probability_score(other, y)[:, 0] - crps,
            density - other.log_prob(y),
        ):
            assert loss.mean() > 3 * loss.std() / num_rows**0.5


SIMULATED = {
    "normal": lambda loc: dist.Normal(loc, torch.tensor([0.3, 1.0, 2.0])),
    "student-t": lambda loc: dist.StudentT(torch.tensor([3.0, 5.0, 9.0]), loc, 1.0),
    "poisson": lambda loc: dist.Poisson(loc.exp()),
}


@pytest.mark.parametrize("family", SIMULATED)
def test_intervals_cover_what_they_say_of_simulated_targets(family):
    """Of counts more, by what the whole numbers at both ends have beyond the level."""
    num_rows, levels = 3000, (0.5, 0.9)
    weights, p = gates(1, num_rows), SIMULATED[family](2 * torch.randn(num_rows, K))
    y = p.sample()[torch.arange(num_rows), weights[0].multinomial(1)[:, 0]]
    prediction = Prediction(weights.log(), (p,))
    for level in levels:
        low, high = (prediction.quantile(0.5 + side * level / 2) for side in (-1, 1))
        expected = torch.full((num_rows, 1), level)
        if family == "poisson":
            expected = prediction.cdf(high) - prediction.cdf(low - 1)
            assert (expected >= level).all()
        share = ((low <= y[:, None]) & (y[:, None] <= high)).double().mean().item()
        error = (expected * (1 - expected)).mean().sqrt().item() / num_rows**0.5
        assert abs(share - expected.mean().item()) < 3 * error


def test_the_coverage_is_that_of_simulated_targets():
    num_rows = 1000
    weights, p = gates(1, num_rows), SIMULATED["normal"](2 * torch.randn(num_rows, K))
    y = p.sample()[torch.arange(num_rows), weights[0].multinomial(1)[:, 0]]
    scores = evaluation.regression_scores(Prediction(weights.log(), (p,)), y)
    for level, share in scores["coverage"].items():
        assert abs(share - level) < 3 * (level * (1 - level) / num_rows) ** 0.5


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (torch.zeros(N), r"expected y of shape \(6, 2\); got \(6,\)"),
        (torch.zeros(N - 1, M), r"as many rows in y as in x, 6; got shape \(5, 2\)"),
        (torch.full((N, M), torch.nan), "expected finite values in y; got nan in row 0"),
    ],
)
def test_targets_that_do_not_fit_the_prediction_are_an_error(target, message):
    prediction, _ = normals()
    for score in (evaluation.regression_scores, continuous_ranked_probability_score):
        with pytest.raises(DataError, match=message):
            score(prediction, target)


# Classes

PROBS = torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.2, 0.7]], dtype=torch.float64)  # of two experts
G = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.5, 0.5], [0.25, 0.75]], dtype=torch.float64)


@pytest.fixture
def classes():
    return Prediction(G.log().unsqueeze(0), (dist.Categorical(PROBS.expand(4, 2, 3)),))


def test_classification_scores_of_a_worked_example(classes):
    """Rows 0 and 3 are right; row 2 is 0.4, 0.2, 0.4, where the class is 1."""
    scores = evaluation.classification_scores(classes, [0, 1, 1, 2])
    assert scores["accuracy"] == 0.5
    right = [0.7, 0.2, 0.2, 0.25 * 0.1 + 0.75 * 0.7]
    assert scores["log_loss"] == pytest.approx(-np.log(right).mean())


@pytest.mark.parametrize(
    "kind",
    [
        lambda y: y.numpy(),
        lambda y: y.double(),
        lambda y: y[:, None],
        lambda y: pd.Series(y.numpy(), index=[3, 1, 0, 2]),
    ],
    ids=["numpy", "double", "column", "series"],
)
def test_classes_may_be_of_any_kind(classes, kind):
    y = torch.tensor([0, 1, 1, 2])
    expected = evaluation.classification_scores(classes, y)
    assert evaluation.classification_scores(classes, kind(y)) == expected


def test_every_row_wants_a_class(classes):
    with pytest.raises(DataError, match=r"as many rows in y as in x, 4; got shape \(3,\)"):
        evaluation.classification_scores(classes, [0, 1, 1])


def test_scores_are_of_the_kind_that_was_predicted(classes, y):
    with pytest.raises(DataError, match="expected a prediction of classes; got one of Normal"):
        evaluation.classification_scores(normals()[0], y)
    with pytest.raises(DataError, match="a target whose values have an order; got classes"):
        evaluation.regression_scores(classes, [0, 1, 1, 2])


def test_labels_are_numbers_in_any_container():
    gate = torch.eye(3)[[0, 1, 2, 0]]
    for labels in (torch.tensor([2, 0, 1, 2]), pd.Series([2, 0, 1, 2]), [2, 0, 1, 2]):
        assert evaluation.clustering_scores(gate, labels)["accuracy"] == 1.0
    with pytest.raises(DataError, match=r"expected numbers in labels; got 'flat' in row 0"):
        evaluation.clustering_scores(gate, ["flat", "villa", "flat", "flat"])
