"""Other optimizers than Adam, in every way in which a fit is trained, stopped and continued."""

from functools import partial

import pytest
import torch

import pyro_moe
from pyro_moe import models
from pyro_moe.inference.steps import gradients

X = torch.randn(60, 2, generator=torch.Generator().manual_seed(0))
Y = X[:, :1].abs()


def fitted(**options):
    story = models.DeepMoE(2, 1, 2, hidden=(4,))
    options = {"epochs": 4, "initialize": "random", "progress": False, "prior": "weak", **options}
    return pyro_moe.fit(story.model, story.guide, (X, Y), batch_size=20, **options)


def same(one, other, **tolerance):
    for name, value in one.parameters().items():
        torch.testing.assert_close(other.parameters()[name], value, **tolerance)


def differ(one, other):
    pairs = zip(one.parameters().values(), other.parameters().values(), strict=True)
    return any(not torch.equal(*pair) for pair in pairs)


OPTIMIZERS = {
    "AdamW": partial(torch.optim.AdamW, lr=5e-3, weight_decay=0.1),
    "SGD": partial(torch.optim.SGD, lr=1e-3, momentum=0.9),
    "plain SGD": torch.optim.SGD,
    "Adagrad": torch.optim.Adagrad,
    "NAdam": torch.optim.NAdam,
    "RMSprop": torch.optim.RMSprop,
}


def test_adam_as_an_optimizer_is_the_default():
    adam = partial(torch.optim.Adam, lr=5e-3, fused=True)
    same(fitted(), fitted(optimizer=adam), rtol=0, atol=0)


def test_weight_decay_is_that_of_adamw():
    adamw = partial(torch.optim.AdamW, lr=5e-3, weight_decay=0.3, fused=True)
    decayed = fitted(weight_decay=0.3)
    same(decayed, fitted(optimizer=adamw), rtol=0, atol=0)
    assert differ(decayed, fitted())
    assert decayed.settings["optimizer"] == "AdamW"
    assert decayed.settings["weight_decay"] == 0.3


def test_the_first_step_of_sgd_is_along_the_gradient():
    # the schedule begins at 0.04 of the peak, which is that of the optimizer
    before = fitted(epochs=0, optimizer=torch.optim.SGD).parameters()
    small, large = (
        fitted(epochs=1, optimizer=partial(torch.optim.SGD, lr=rate)) for rate in (1e-9, 2e-9)
    )
    assert small.history[0]["learning_rate"] * 2 == pytest.approx(large.history[0]["learning_rate"])
    double = partial(torch.optim.SGD, lr=1e9)
    given = fitted(epochs=1, optimizer=double, learning_rate=1e-9)
    same(given, small, rtol=0, atol=0)
    assert before.keys() == small.parameters().keys()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_fit_that_was_stopped_goes_on(name, tmp_path):
    optimizer = OPTIMIZERS[name]
    whole = fitted(optimizer=optimizer)
    stop = {"callback": lambda fit: len(fit.history) == 2}
    stopped = fitted(optimizer=optimizer, checkpoint=tmp_path, **stop)
    same(whole, stopped.resume(progress=False), rtol=0, atol=0)
    same(whole, fitted(optimizer=optimizer, resume=tmp_path), rtol=0, atol=0)


@pytest.mark.parametrize("name", ["SGD", "AdamW"])
def test_replayed_steps_are_those_of_the_model(name, monkeypatch):
    direct = fitted(optimizer=OPTIMIZERS[name])
    monkeypatch.setattr(gradients, "WORTHWHILE", 1)
    replayed = fitted(optimizer=OPTIMIZERS[name])
    assert replayed.run.gradients.replayed > 0
    same(direct, replayed, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"optimizer": torch.optim.LBFGS}, "whose steps need their gradients alone; got <class"),
        ({"optimizer": "adam"}, "expected optimizer to be a function of a list of parameters"),
        ({"weight_decay": -1}, "expected weight_decay of at least 0; got -1"),
        (
            {"optimizer": torch.optim.SGD, "weight_decay": 0.1},
            "expected weight_decay as an argument of the optimizer; got optimizer=… and",
        ),
    ],
)
def test_other_arguments_are_errors(options, message):
    with pytest.raises(ValueError, match=message):
        fitted(**options)


def test_an_optimizer_asks_for_gradients():
    story = models.GMM(2, 2)
    fit = pyro_moe.fit(
        story.model, story.guide, X, optimizer=torch.optim.SGD, epochs=1, progress=False
    )
    assert fit.settings["loss"] == "marginal"
