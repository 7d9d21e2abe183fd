"""`predict` takes a story's ``forward`` only where it is the distribution that the model has."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch.testing import assert_close

import pyro_moe
from pyro_moe import evaluation
from pyro_moe.distributions import Mixture
from pyro_moe.evaluation.prediction import draws, entry
from pyro_moe.models import ME, DeepMoE, DVMoE, VaDEMoE

pytestmark = pytest.mark.usefixtures("double")
N, D, K = 300, 2, 3


class Shifted(ME):
    """An edited model with the ``forward`` of another class."""

    def model(self, x, y=None):
        pyro.module("moe", self)
        p = self(x)
        with pyro.plate("data", len(x)):
            experts = dist.Normal(p.component_distribution.mean + 1.0, 0.5).to_event(1)
            pyro.sample("y", Mixture(p.log_weights, experts), obs=y)

    def guide(self, x, y=None):
        pass


class Forgotten(Shifted):
    """An edited model beside a ``forward`` that was not edited with it."""

    def model(self, x, y=None):
        super().model(x, y)

    def forward(self, x):
        return super().forward(x)


@pytest.fixture
def fitted(scatter):
    def fit(story):
        x = torch.randn(N, D)
        choices = {"epochs": 0, "initialize": "keep", "progress": False}
        scatter(story)
        return pyro_moe.fit(story.model, story.guide, (x, x[:, :1]), **choices), x

    return fit


@pytest.fixture
def rows_of_model(monkeypatch):
    """How many rows the model was run on."""
    counted, run = [], entry._draw_of_batch

    def watched(fit, batch):
        counted.append(len(batch[0]))
        return run(fit, batch)

    monkeypatch.setattr(entry, "_draw_of_batch", watched)
    return counted


def expected_of(fit, x):
    with torch.no_grad():
        return fit.story(x)


@pytest.mark.parametrize(
    ("kind", "options"),
    [(ME, {}), (DeepMoE, {"hidden": (4,)}), (DVMoE, {"z_dim": 2, "hidden": (4,)})],
)
def test_a_story_predicts_by_its_forward(fitted, rows_of_model, kind, options):
    fit, x = fitted(kind(x_dim=D, y_dim=1, num_components=K, **options))
    found, expected = evaluation.predict(fit, x), expected_of(fit, x)
    assert max(rows_of_model) < N
    assert_close(found.mean, expected.mean, rtol=1e-12, atol=1e-12)
    assert_close(found.variance, expected.variance, rtol=1e-12, atol=1e-12)
    assert_close(found.gate, expected.mixture_distribution.probs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", [Shifted, Forgotten])
def test_an_edited_model_predicts_by_the_model(fitted, kind):
    fit, x = fitted(kind(D, 1, K))
    found, other = evaluation.predict(fit, x), expected_of(fit, x)
    assert_close(found.mean, other.mean + 1.0, rtol=1e-12, atol=1e-12)
    assert_close(found.within, torch.full_like(found.within, 0.25))


def test_blocks_do_not_matter(fitted, monkeypatch):
    for story in (ME(D, 1, K), Shifted(D, 1, K)):
        fit, x = fitted(story)
        whole = evaluation.predict(fit, x)
        with monkeypatch.context() as patch:
            patch.setattr(draws, "ROWS", 7)
            parts = evaluation.predict(fit, x)
        assert_close(parts.mean, whole.mean, rtol=1e-12, atol=1e-12)
        assert_close(parts.log_weights, whole.log_weights, rtol=1e-12, atol=1e-12)


def test_targets_are_drawn_where_later_sites_depend_on_them(fitted):
    """A prediction that depends on the drawn targets is the average over draws."""

    class Late(ME):
        def model(self, x, y=None):
            pyro.module("moe", self)
            with pyro.plate("data", len(x)):
                first = pyro.sample("first", dist.Normal(x[:, :1], 1.0).to_event(1))
                pyro.sample("y", dist.Normal(first, 0.1).to_event(1), obs=y)

        def guide(self, x, y=None):
            with pyro.plate("data", len(x)):
                pyro.sample("first", dist.Normal(x[:, :1], 1.0).to_event(1))

    fit, x = fitted(Late(D, 1, K))
    found = evaluation.predict(fit, x, num_samples=512)
    assert len(found.log_weights) == 512
    assert (found.mean - x[:, :1]).abs().max() < 5.0 / 512**0.5
    assert_close(found.within, torch.full_like(found.within, 0.01))


def test_a_gate_that_is_an_expectation_is_that_of_more_points(fitted):
    fit, x = fitted(VaDEMoE(D, 1, K, 2, hidden=(4,)))
    few, many = (evaluation.predict(fit, x, num_samples=s, seed=s).gate for s in (64, 2048))
    assert (few - many).abs().max() < 0.02
    assert_close(few.sum(-1), torch.ones(N))
