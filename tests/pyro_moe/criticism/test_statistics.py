"""Test statistics are the numbers that their names say, by hand."""

from dataclasses import replace

import numpy as np
import pytest
import scipy.stats
import torch
from torch.testing import assert_close

from pyro_moe.criticism.statistics import (
    COMPONENT_FEATURE_STATISTICS,
    FEATURE_STATISTICS,
    TARGET_STATISTICS,
    Sample,
    class_statistics,
    correlation,
    cramer_von_mises,
    distance_from,
)

pytestmark = pytest.mark.usefixtures("double")
N, D, M = 40, 3, 2
CLOSE = {"rtol": 1e-9, "atol": 1e-11}
BY_HAND = {
    "mean": lambda v: v.mean(0),
    "standard deviation": lambda v: v.std(0, ddof=1),
    "10 % quantile": lambda v: np.quantile(v, 0.1, axis=0),
    "90 % quantile": lambda v: np.quantile(v, 0.9, axis=0),
    "smallest": lambda v: v.min(0),
    "largest": lambda v: v.max(0),
}
each_column_statistic = pytest.mark.parametrize("name", BY_HAND)


@pytest.fixture
def sample():
    return Sample(torch.randn(N, D), torch.randn(N, M), torch.randn(N, M), torch.randn(N))


@each_column_statistic
def test_statistics_of_columns_are_those_of_numpy(sample, name):
    for statistics, values in ((FEATURE_STATISTICS, sample.x), (TARGET_STATISTICS, sample.y)):
        expected = torch.as_tensor(BY_HAND[name](values.numpy()))
        assert_close(statistics[name](sample), expected, **CLOSE)


@each_column_statistic
def test_targets_may_be_one_column_of_whole_numbers(name):
    y = torch.arange(N) % 7
    sample = Sample(torch.randn(N, D), y, None, torch.randn(N))
    expected = torch.as_tensor(BY_HAND[name](y.double().unsqueeze(-1).numpy()))
    assert_close(TARGET_STATISTICS[name](sample), expected, **CLOSE)


def test_statistics_of_scores_are_of_each_column_and_each_pair(sample):
    scores, x = sample.scores.numpy(), sample.x.numpy()

    def correlations(values):
        pairs = [np.corrcoef(values[:, m], x[:, d])[0, 1] for m in range(M) for d in range(D)]
        return torch.tensor(pairs)

    expected = {
        "mean of scores": torch.as_tensor(scores.mean(0)),
        "standard deviation of scores": torch.as_tensor(scores.std(0, ddof=1)),
        "skewness of scores": torch.as_tensor(scipy.stats.skew(scores)),
        "log kurtosis of scores": torch.as_tensor(
            np.log(scipy.stats.kurtosis(scores, fisher=False))
        ),
        "largest score": torch.as_tensor(np.abs(scores).max(0)),
        "correlation of scores with": correlations(scores),
        "correlation of squared scores with": correlations(scores**2),
    }
    for name, value in expected.items():
        assert_close(TARGET_STATISTICS[name](sample), value, **CLOSE)


def test_shapes_of_columns_are_those_of_scipy(sample):
    for statistics in (FEATURE_STATISTICS, COMPONENT_FEATURE_STATISTICS):
        x = sample.x.numpy()
        assert_close(statistics["skewness"](sample), torch.as_tensor(scipy.stats.skew(x)), **CLOSE)
        expected = np.log(scipy.stats.kurtosis(x, fisher=False))
        assert_close(statistics["log kurtosis"](sample), torch.as_tensor(expected), **CLOSE)


def test_the_mean_log_density_is_that(sample):
    for statistic in (TARGET_STATISTICS["mean log density"], FEATURE_STATISTICS["mean ELBO"]):
        assert statistic(sample).item() == pytest.approx(sample.log_density.mean().item())


def test_correlations_of_columns_are_each_pair_once(sample):
    upper = np.corrcoef(sample.x.T.numpy())[np.triu_indices(D, 1)]
    assert_close(correlation(sample), torch.as_tensor(upper), **CLOSE)


def test_what_does_not_vary_has_no_correlation(sample):
    sample.scores[:, 0] = 3.0
    assert TARGET_STATISTICS["correlation of scores with"](sample).isnan().tolist() == [
        *(True,) * D,
        *(False,) * D,
    ]


def test_shares_of_classes_count_those_without_rows():
    sample = Sample(torch.zeros(5, 1), torch.tensor([0, 2, 2, 2, 0]), None, torch.arange(5.0))
    statistics = class_statistics(4)
    assert statistics["share"](sample).tolist() == [0.4, 0.0, 0.6, 0.0]
    assert statistics["mean log density"](sample).item() == 2.0


def test_some_rows_of_a_sample_are_those_rows_of_all_its_parts(sample):
    rows = torch.tensor([3, 1, 7])
    some = sample.take(rows)
    assert len(some) == 3
    for name in ("x", "y", "scores", "log_density"):
        assert_close(getattr(some, name), getattr(sample, name)[rows], rtol=0, atol=0)
    features = Sample(sample.x, None, None, sample.log_density).take(slice(2))
    assert (len(features), features.y, features.scores) == (2, None, None)


def test_the_distance_of_a_distribution_is_that_of_scipy(sample):
    u = torch.rand(N, M)
    expected = [scipy.stats.cramervonmises(column, "uniform").statistic for column in u.T.numpy()]
    assert_close(cramer_von_mises(u), torch.tensor(expected), **CLOSE)
    scores = replace(sample, scores=torch.special.ndtri(u))
    assert_close(TARGET_STATISTICS["distance of distributions"](scores), cramer_von_mises(u))


def test_features_are_ranked_among_reference_rows(sample):
    reference = torch.randn(500, D)
    u = (reference.unsqueeze(1) < sample.x).double().mean(0)  # no ties
    assert_close(distance_from(reference)(sample), cramer_von_mises(u), **CLOSE)


def test_ties_with_reference_rows_count_half():
    reference = torch.tensor([[0.0], [1.0]]).repeat(50, 1)
    sample = Sample(torch.zeros(2, 1), None, None, torch.zeros(2))
    assert_close(distance_from(reference)(sample), cramer_von_mises(torch.full((2, 1), 0.25)))
