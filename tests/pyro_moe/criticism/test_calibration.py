"""The probability integral transform is uniform for a right prediction, and for no other."""

import math

import pyro.distributions as dist
import pytest
import scipy.stats
import torch
from torch.testing import assert_close

from pyro_moe import DataError
from pyro_moe.criticism import calibration, normal_scores, probability_integral_transform
from pyro_moe.distributions.joint import Joint
from pyro_moe.distributions.mixture import Stacked
from pyro_moe.evaluation import Prediction

pytestmark = pytest.mark.usefixtures("double")
N, K = 2000, 3
CLOSE = {"rtol": 1e-9, "atol": 1e-12}


def uneven_weights():
    return torch.softmax(torch.randn(1, N, K), -1)


def columns(p):
    return p.to_event(1)


FAMILIES = {
    "normal": lambda: columns(dist.Normal(3 * torch.randn(N, K, 2), 0.3 + torch.rand(N, K, 2))),
    "student-t": lambda: columns(
        dist.StudentT(1 + 5 * torch.rand(N, K, 1), torch.randn(N, K, 1), 1.0)
    ),
    "correlated": lambda: dist.MultivariateNormal(
        torch.randn(N, K, 2), torch.tensor([[1.0, 0.8], [0.8, 2.0]])
    ),
    "poisson": lambda: columns(dist.Poisson(3 * torch.rand(N, K, 1))),
    "bernoulli": lambda: columns(dist.Bernoulli(torch.rand(N, K, 2))),
    "a number and a count": lambda: Joint(
        [
            columns(dist.Normal(torch.randn(N, K, 1), 1.0)),
            columns(dist.Poisson(torch.rand(N, K, 1))),
        ]
    ),
    "stacked": lambda: Stacked(
        [dist.Normal(torch.randn(N), 1.0), dist.Laplace(torch.randn(N), 2.0)]
    ),
}
each_family = pytest.mark.parametrize("name", FAMILIES)


@pytest.fixture
def predicted():
    """A function from the name of a family to a mixture of its distributions, a row each."""

    def make(name):
        p = FAMILIES[name]()
        weights = uneven_weights()[..., : p.batch_shape[-1]]
        return Prediction((weights / weights.sum(-1, keepdim=True)).log(), (p,))

    return make


def is_uniform(u):
    """Whether each column might be, to a false alarm in a thousand."""
    return all(scipy.stats.kstest(column, "uniform").pvalue > 1e-3 for column in u.T.numpy())


@each_family
def test_of_what_was_predicted_it_is_uniform(predicted, name):
    prediction = predicted(name)
    u = probability_integral_transform(prediction, prediction.sample(1, seed=1)[0])
    assert u.min() >= 0
    assert u.max() <= 1
    assert is_uniform(u)


@each_family
def test_of_what_was_not_predicted_it_is_not(predicted, name):
    prediction = predicted(name)
    y = predicted(name).sample(1, seed=1)[0]  # at other rows
    assert not is_uniform(probability_integral_transform(prediction, y))


def test_of_normals_it_is_their_distribution_function():
    loc, scale, y = torch.randn(N, 1), torch.rand(N, 1) + 0.1, torch.randn(N, 1)
    p = columns(dist.Normal(loc.unsqueeze(1), scale.unsqueeze(1)))
    u = probability_integral_transform(Prediction(torch.zeros(1, N, 1), (p,)), y)
    assert_close(u, 0.5 * torch.erfc((loc - y) / (scale * math.sqrt(2))), **CLOSE)


def test_of_counts_it_lies_within_the_step_of_their_distribution_function(predicted):
    prediction = predicted("poisson")
    y = prediction.sample(1)[0]
    low, high = prediction.cdf(y - 1), prediction.cdf(y)
    first, again, other = (
        probability_integral_transform(prediction, y, seed=seed) for seed in (0, 0, 1)
    )
    for u in (first, other):
        assert ((low <= u) & (u <= high)).all()
    assert torch.equal(first, again)
    assert (first != other).all()


def test_where_in_the_step_is_uniform(predicted):
    prediction = predicted("bernoulli")
    y = prediction.sample(1)[0]
    low, high = prediction.cdf(y - 1), prediction.cdf(y)
    assert is_uniform((probability_integral_transform(prediction, y) - low) / (high - low))


def test_of_classes_there_is_none():
    prediction = Prediction(torch.zeros(1, 4, 1), (dist.Categorical(torch.ones(4, 1, 3)),))
    with pytest.raises(DataError, match="expected"):
        probability_integral_transform(prediction, torch.zeros(4))


def test_scores_are_standard_normal_quantiles():
    u = torch.rand(N, 2)
    assert_close(normal_scores(u), torch.as_tensor(scipy.stats.norm.ppf(u.numpy())), **CLOSE)
    ends = normal_scores(torch.tensor([0.0, 0.5, 1.0]))
    assert_close(
        ends, torch.tensor([-4.753424308822899, 0.0, 4.753424308822899]), rtol=0, atol=1e-9
    )


def test_coverage_is_a_count():
    u = torch.tensor([[0.5, 0.4], [0.26, 0.9], [0.05, 0.74], [0.99, 0.2]])
    table = calibration(u, num_levels=3)
    assert table["level"].tolist() == [0.25, 0.5, 0.75]
    # |u - 1/2| is 0, 0.1, 0.24, 0.4, 0.45, 0.24, 0.49, 0.3
    assert table["coverage"].tolist() == [2 / 8, 4 / 8, 5 / 8]
    errors = [math.sqrt(a * (1 - a) / 4) for a in (0.25, 0.5, 0.75)]
    assert table["standard_error"].tolist() == pytest.approx(errors)


def test_coverage_is_the_level_of_a_right_prediction_and_more_of_one_too_wide():
    y = torch.randn(N, 1)
    tables = {
        scale: calibration(
            probability_integral_transform(
                Prediction(
                    torch.zeros(1, N, 1), (columns(dist.Normal(torch.zeros(N, 1, 1), scale)),)
                ),
                y,
            )
        )
        for scale in (1.0, 1.5)
    }
    z = {
        scale: ((t["coverage"] - t["level"]) / t["standard_error"]).to_numpy()
        for scale, t in tables.items()
    }
    assert len(z[1.0]) == 19
    assert abs(z[1.0]).max() < 4
    assert z[1.5].min() > 2
    assert z[1.5].max() > 10
