"""Checkpoints: a fit that was killed goes on, and ends as one that was never stopped."""

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_moe import fit
from pyro_moe.fitting import checkpoint as module
from pyro_moe.fitting import plan
from pyro_moe.models import DMVAE, GMM, ME, DVMoE


class Killed(BaseException):
    """Ends a fit like SIGKILL: nothing handles it."""


@pytest.fixture(autouse=True)
def short(monkeypatch):
    monkeypatch.setattr(module, "SECONDS", 0.0)  # a state after each epoch
    monkeypatch.setattr(plan, "STEPS", 24)


def model(x):
    loc = pyro.param("loc", torch.zeros(2))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(loc, 1.0).to_event(1), obs=x)


def guide(x):
    pyro.param("unused", torch.ones(()), constraint=dist.constraints.positive)


def rows():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(40, 2, generator=generator) + 5.0 * (torch.arange(40) % 2).unsqueeze(-1)
    return x, x[:, :1] + 0.1 * torch.randn(40, 1, generator=generator)


def programs(story):
    return (story.model, story.guide)


X, Y = rows()
CASES = {
    "em": (programs(ME(2, 1, 2)), (X, Y), {"restarts": 1, "prior": "weak"}),
    "gradients": (programs(GMM(2, 2)), X, {"loss": "marginal", "restarts": 2, "prior": "weak"}),
    "phases": (programs(DMVAE(2, 1, 2, hidden=(4,))), X, {"patience": 3, "prior": "weak"}),
    "targets": (programs(DVMoE(2, 1, 2, 1, hidden=(4,))), (X, Y), {"prior": "weak"}),
    "relaxed": (programs(DMVAE(2, 1, 2, hidden=(4,))), X, {"loss": "relaxed", "epochs": 4}),
    "functions": ((model, guide), X, {}),
}


def equal(one, other):
    a, b = one.parameters(), other.parameters()
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)
    drop = {"seconds"}
    pairs = zip(one.history, other.history, strict=True)
    assert all(
        {k: r[k] for k in r if k not in drop} == {k: s[k] for k in s if k not in drop}
        for r, s in pairs
    )
    assert one.held_out_elbo == other.held_out_elbo


@pytest.mark.parametrize("name", CASES)
def test_a_fit_that_was_killed_goes_on_to_the_same_result(name, tmp_path):
    (one, other), data, options = CASES[name]
    options = {**options, "progress": False}
    epochs: list[int] = []
    expected = fit(one, other, data, callback=lambda each: epochs.append(1), **options)
    number = len(epochs)
    assert number > 3
    for moment in (number // 3, number):
        folder = tmp_path / str(moment)
        left = [moment]

        def kill(fitted, left=left):
            left[0] -= 1
            if left[0] <= 0:
                raise Killed

        with pytest.raises(Killed):
            fit(one, other, data, checkpoint=folder, callback=kill, **options)
        equal(fit(one, other, data, resume=folder, **options), expected)
