"""The choice of the prior for few rows."""

import pytest
import torch

import pyro_moe
from pyro_moe.fitting.choice import chosen_prior
from pyro_moe.inference.prior import WEAK
from pyro_moe.models import ME, DeepMoE


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


class ComparedError(Exception):
    """Priors are compared."""


@pytest.fixture
def compared(monkeypatch):
    """Raise an error where priors would be compared."""

    def scores(*arguments):
        raise ComparedError

    monkeypatch.setattr("pyro_moe.fitting.choice._scores", scores)


def test_many_rows_are_not_compared(compared):
    """More than 2,000, or more than fifty for each of the K (D + 2) coefficients."""
    assert chosen(ME(50, 1, 2), noise(2001, 50)) == WEAK
    assert chosen(ME(51, 1, 2), noise(100, 51)) == WEAK
    assert chosen(ME(2, 1, 2), noise(401, 2)) == WEAK
    for story, rows in ((ME(50, 1, 2), noise(2000, 50)), (ME(2, 1, 2), noise(400, 2))):
        with pytest.raises(ComparedError):
            chosen(story, rows)


@pytest.mark.parametrize(
    "choices", [{"loss": "relaxed"}, {"learns": False}, {"num_components": None}], ids=str
)
def test_what_has_no_prior_is_not_compared(choices, compared):
    assert chosen(ME(6, 1, 2), noise(40, 6), **choices) == WEAK


def test_a_given_prior_is_not_compared(compared):
    story = ME(6, 1, 2)
    choices = {"epochs": 1, "progress": False}
    given = pyro_moe.Prior(rows=2.0, null_rows=1.0)
    fitted = pyro_moe.fit(story.model, story.guide, noise(40, 6), prior=given, **choices)
    assert fitted.run.prior == given


def test_an_edited_model_is_not_compared(compared):
    """It may keep an M-step that belongs to another model."""
    story, seen = ME(6, 1, 2), []

    def model(x, y=None):
        seen.append(x)
        story.model(x, y)

    data = noise(40, 6)
    assert chosen_prior(model, story.guide, data, 2, "marginal", True, 0) == WEAK
    assert not seen


class Edited(ME):
    """An ME with a model of its own."""

    def model(self, x, y=None):
        """The same, but written anew."""
        return super().model(x, y)


def test_em_is_not_chosen_for_an_edited_model():
    story, (x, y) = Edited(2, 1, 2), noise(40, 2)
    fitted = pyro_moe.fit(story.model, story.guide, (x, y), epochs=1, progress=False)
    assert fitted.settings["loss"] == "marginal"
    original = ME(2, 1, 2)
    fitted = pyro_moe.fit(
        original.model, original.guide, (x, y), epochs=1, prior="weak", progress=False
    )
    assert fitted.settings["loss"] == "em"


@pytest.mark.parametrize(
    ("make", "num_rows", "expected"),
    [
        (lambda: DeepMoE(2, 1, 2, hidden=(3,)), 2000, 1.0),
        (lambda: DeepMoE(2, 1, 2, hidden=(3,)), 2001, 0.0),
        (lambda: ME(2, 1, 2), 30, 0.0),
    ],
)
def test_few_rows_have_a_prior_of_the_weights_of_networks(make, num_rows, expected):
    story = make()
    data = torch.randn(num_rows, 2), torch.randn(num_rows, 1)
    fitted = pyro_moe.fit(story.model, story.guide, data, loss="marginal", epochs=0, progress=False)
    assert fitted.settings["prior"]["networks"] == expected
