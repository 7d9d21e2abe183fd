"""Predictions do not depend on the units of the data, nor on how rows and columns are arranged.

Differences are in predictive standard deviations. EM converges to the same optimum from every
start, so that all changes are tried. Gradients depend on the order of rows and columns through
their random numbers, so that only units and types are tried.
"""

import pytest
import torch

import pyro_moe
from pyro_moe import evaluation, models

N, D = 100, 2
SHALLOW = {
    "me": lambda d: models.ME(d, 1, 2),
    "gmmmoe": lambda d: models.GMMMoE(d, 1, 2),
}
DEEP = {
    "me": lambda: models.ME(D, 1, 2),
    "gmmmoe": lambda: models.GMMMoE(D, 1, 2),
    "hierarchical": lambda: models.HierarchicalME(D, 1, (2, 2)),
    "student-t": lambda: models.ME(D, 1, 2, experts="student-t"),
    "deepmoe": lambda: models.DeepMoE(D, 1, 2, hidden=(8,)),
    "dvmoe": lambda: models.DVMoE(D, 1, 2, 1, hidden=(8,)),
    "vademoe": lambda: models.VaDEMoE(D, 1, 2, 1, hidden=(8,)),
}


@pytest.fixture(scope="module")
def rows():
    generator = torch.Generator().manual_seed(3)
    side = (torch.arange(N) % 2 * 2.0 - 1.0).unsqueeze(-1)
    x = torch.randn(N, D, generator=generator).double() + side * torch.tensor([1.0, 0.0])
    y = side[:, 0] * (1.0 + 0.7 * x[:, 1]) + 0.2 * torch.randn(N, generator=generator)
    return x, y


EM = {"prior": "weak", "restarts": 4}


def predicted(story, x, y, **options):
    fit = pyro_moe.fit(story.model, story.guide, (x, y), progress=False, **options)
    prediction = evaluation.predict(fit, x, num_samples=8)
    return prediction.mean[:, 0].double(), prediction.variance[:, 0].double().sqrt()


def assert_same(left, right, tolerance):
    (mean, deviation), (other, of_other) = left, right
    assert ((mean - other).abs() / deviation).max() < tolerance
    assert (deviation / of_other - 1.0).abs().max() < tolerance


@pytest.mark.parametrize("name", SHALLOW)
@pytest.mark.parametrize("change", ["units", "tiny", "far", "rows", "columns", "type"])
def test_em_ends_in_the_same_predictions(name, change, rows):
    x, y = rows
    story = SHALLOW[name](D)
    expected = predicted(story, x, y, **EM)
    if change in ("units", "tiny", "far"):
        a, b, c, d = {
            "units": (torch.tensor([1e5, 1e-3]), 7.0, -3e4, 1e3),
            "tiny": (torch.tensor([1e-20, 1e18]), 0.0, 1e-24, 0.0),
            "far": (torch.tensor([1.0, 50.0]), 4e9, 1.0, 4e9),
        }[change]
        mean, deviation = predicted(story, a * x + b, c * y + d, **EM)
        assert_same(((mean - d) / c, deviation / abs(c)), expected, 2e-3)
    elif change == "rows":
        order = torch.randperm(N, generator=torch.Generator().manual_seed(1))
        back = order.argsort()
        got = predicted(story, x[order], y[order], **EM)
        assert_same(tuple(part[back] for part in got), expected, 2e-3)
    elif change == "columns":
        assert_same(predicted(story, x.flip(1), y, **EM), expected, 2e-3)
    else:
        assert_same(predicted(story, x.float(), y.float(), **EM), expected, 2e-3)


def test_a_duplicated_column_changes_no_prediction_of_an_me(rows):
    x, y = rows
    expected = predicted(models.ME(D, 1, 2), x, y, **EM)
    doubled = torch.cat([x, x[:, :1]], -1)
    assert_same(predicted(models.ME(D + 1, 1, 2), doubled, y, **EM), expected, 2e-2)


@pytest.mark.parametrize("name", DEEP)
@pytest.mark.parametrize("change", ["units", "type"])
def test_gradients_end_in_the_same_predictions(name, change, rows):
    x, y = (part.float() for part in rows)
    options = {"epochs": 4, "initial_epochs": 2, "prior": "weak", "loss": "marginal"}
    story = DEEP[name]().double()  # without rounding errors, which training would amplify
    expected = predicted(story, x, y, **options)
    if change == "type":
        assert_same(predicted(story, x.double(), y.double(), **options), expected, 1e-9)
    else:
        a, b, c, d = torch.tensor([1e5, 1e-3]).double(), 7.0, 3e4, 1e3
        mean, deviation = predicted(story, a * x.double() + b, c * y.double() + d, **options)
        assert_same(((mean - d) / c, deviation / c), expected, 1e-6)


@pytest.mark.parametrize("loss", ["em", "marginal"])
def test_the_density_of_a_mixture_has_the_units_of_its_data(loss, rows):
    x, _ = rows
    story = models.GMM(D, 2)
    bounds = []
    for unit in (1.0, 1000.0):
        options = {"epochs": 30, "loss": loss, "prior": "weak", "progress": False}
        fit = pyro_moe.fit(story.model, story.guide, unit * x, **options)
        bounds.append(evaluation.elbo(fit, unit * x).mean() + D * torch.tensor(unit).log())
    assert abs(bounds[0] - bounds[1]) < 1e-3
