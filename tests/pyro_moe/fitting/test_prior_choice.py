"""The choice of the prior for few rows."""

import pyro
import pyro.distributions as dist
import pytest
import torch

import pyro_moe
from pyro_moe.fitting.choice import chosen_prior
from pyro_moe.inference.prior import WEAK
from pyro_moe.models import ME


def chosen(story, columns, *, num_components=2, loss="em", learns=True):
    return chosen_prior(story.model, story.guide, columns, num_components, loss, learns, 0)


def noise(num_rows, x_dim):
    return torch.randn(num_rows, x_dim), torch.randn(num_rows, 1)


def test_separated_regimes_keep_the_weak_prior():
    x = torch.rand(200, 1) * 2 - 1
    y = torch.where(x < 0, 5 * x, 3 - 5 * x) + 0.1 * torch.randn(200, 1)
    assert chosen(ME(1, 1, 2), (x, y)) == WEAK


def test_noise_has_a_strong_prior():
    data = noise(40, 6)
    story = ME(6, 1, 2)
    fitted = pyro_moe.fit(story.model, story.guide, data, epochs=2, progress=False)
    assert fitted.run.prior.rows >= 10
    assert fitted.settings["prior"] == vars(fitted.run.prior)


class Untouched:
    """A story that must not be run."""

    def model(self, *columns):
        raise AssertionError

    def guide(self, *columns):
        raise AssertionError


def test_many_rows_are_not_compared():
    """More than 2,000, or more than fifty for each of the K (D + 2) coefficients."""
    assert chosen(Untouched(), noise(2001, 50)) == WEAK
    assert chosen(Untouched(), noise(401, 2)) == WEAK
    for compared in (noise(2000, 50), noise(400, 2)):
        with pytest.raises(AssertionError):
            chosen(Untouched(), compared)


@pytest.mark.parametrize(
    "choices", [{"loss": "relaxed"}, {"learns": False}, {"num_components": None}], ids=str
)
def test_what_has_no_prior_is_not_compared(choices):
    assert chosen(Untouched(), noise(40, 6), **choices) == WEAK


def test_a_given_prior_is_not_compared(monkeypatch):
    monkeypatch.setattr("pyro_moe.fitting.entry.chosen_prior", Untouched().model)
    story = ME(6, 1, 2)
    choices = {"epochs": 1, "progress": False}
    given = pyro_moe.Prior(rows=2.0, null_rows=1.0)
    fitted = pyro_moe.fit(story.model, story.guide, noise(40, 6), prior=given, **choices)
    assert fitted.run.prior == given


def test_a_story_in_single_precision_is_compared_in_it():
    """The constants of plain functions have no other type."""
    constant, seen = torch.ones(2), []

    def model(x):
        loc = pyro.param("loc", torch.zeros(2))
        seen.append(x.dtype)
        with pyro.plate("data", len(x)):
            pyro.sample(
                "x", dist.Normal(x @ torch.diag(constant) * 0 + loc, 1.0).to_event(1), obs=x
            )

    assert chosen_prior(model, lambda x: None, (torch.randn(40, 2),), 2, "em", True, 0) == WEAK
    assert set(seen) == {torch.float32}
