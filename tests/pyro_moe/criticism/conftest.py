"""Small fits that the tests of criticism share, each made once."""

import functools
import warnings

import pytest
import torch

import pyro_moe
from pyro_moe import EmptyComponentWarning, Rows, models

N, K = 80, 2
SIZES = {"x_dim": 2, "num_components": K}
SMALL = {"hidden": (4,)}
EM = {"loss": "em", "epochs": 5}
SHORT = {"epochs": 2, "initialize": "random"}


@pytest.fixture(scope="session")
def data():
    """N rows in two clusters, an affine target in each, counts, yes or no, and classes."""
    generator = torch.Generator().manual_seed(0)
    c = torch.arange(N) % K
    x = torch.randn(N, 2, generator=generator).double()
    x[:, 0] += 4.0 * (2.0 * c - 1.0)
    noise = 0.3 * torch.randn(N, generator=generator).double()
    y = torch.where(c == 0, x.sum(-1), 3.0 - x[:, 0]) + noise
    return {
        "x": (x,),
        "y": (x, y.unsqueeze(-1)),
        "pair": (x, torch.stack([y, y + x[:, 1]], -1)),
        "counts": (x, torch.poisson((0.3 * y).exp(), generator=generator).long()),
        "binary": (x, (y > 0).long()),
        "classes": (x, (c + (y > 0)).long()),
        "missing": (x, torch.where(torch.arange(N) % 4 == 0, torch.nan, y).unsqueeze(-1)),
    }


STORIES = {
    "gmm": (lambda: models.GMM(**SIZES), "x", EM),
    "vae": (lambda: models.VAE(2, 1, **SMALL), "x", SHORT),
    "vade": (lambda: models.VaDE(**SIZES, z_dim=2, **SMALL), "x", {**SHORT, "epochs": 20}),
    "dmvae": (lambda: models.DMVAE(**SIZES, z_dim=2, **SMALL), "x", {**SHORT, "epochs": 20}),
    "me": (lambda: models.ME(**SIZES, y_dim=1), "y", EM),
    "me, two targets": (lambda: models.ME(**SIZES, y_dim=2), "pair", EM),
    "me, classes": (lambda: models.ME(**SIZES, y_dim=3, experts="categorical"), "classes", SHORT),
    "me, counts": (lambda: models.ME(**SIZES, y_dim=1, experts="poisson"), "counts", SHORT),
    "me, yes or no": (lambda: models.ME(**SIZES, y_dim=1, experts="bernoulli"), "binary", SHORT),
    "me, student-t": (lambda: models.ME(**SIZES, y_dim=1, experts="student-t"), "y", SHORT),
    "me, missing targets": (
        lambda: models.ME(**SIZES, y_dim=1),
        "missing",
        {**EM, "missing_targets": True},
    ),
    "deepmoe": (lambda: models.DeepMoE(**SIZES, y_dim=1, **SMALL), "y", SHORT),
    "hierarchicalme": (lambda: models.HierarchicalME(2, 1, (2, 2)), "y", SHORT),
    "gmmmoe": (lambda: models.GMMMoE(**SIZES, y_dim=1), "y", EM),
    "vademoe": (lambda: models.VaDEMoE(**SIZES, y_dim=1, z_dim=2, **SMALL), "y", SHORT),
    "dvmoe": (lambda: models.DVMoE(**SIZES, y_dim=1, z_dim=2, **SMALL), "y", SHORT),
    "bayesian": (lambda: models.BayesianExperts(models.ME(**SIZES, y_dim=1)), "y", SHORT),
    "bayesian, classes": (
        lambda: models.BayesianExperts(models.ME(**SIZES, y_dim=3, experts="categorical")),
        "classes",
        SHORT,
    ),
}


@pytest.fixture(scope="session")
def fits(data):
    """A function from the name of a story to a short fit of it."""

    @functools.cache
    def fitted(name):
        make, kind, options = STORIES[name]
        before = torch.get_default_dtype()
        torch.set_default_dtype(torch.float64)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", EmptyComponentWarning)
                torch.manual_seed(0)
                story = make()
                rows = data[kind]
                return pyro_moe.fit(
                    story.model, story.guide, rows, prior="none", progress=False, **options
                )
        finally:
            torch.set_default_dtype(before)

    return fitted


def pytest_generate_tests(metafunc):
    """Tests with an argument ``story`` are run for each."""
    if "story" in metafunc.fixturenames:
        metafunc.parametrize("story", STORIES)


@pytest.fixture(scope="session")
def as_it_is():
    """A function that makes a fit of programs as they are."""

    def make(model, guide, *columns, **options):
        return pyro_moe.fit(
            model, guide, columns, epochs=0, initialize="keep", progress=False, **options
        )

    return make


@pytest.fixture(scope="session")
def rows_of():
    """A function from a fit to the rows that were fitted."""
    return lambda fit, **names: Rows(*fit.data, **names)
