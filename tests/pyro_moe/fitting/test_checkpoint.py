"""Checkpoints: a fit that was killed goes on, and ends as one that was never stopped."""

import os
import signal
import time
import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch.testing import assert_close

from pyro_moe import DataError, DataWarning, fit
from pyro_moe.fitting import checkpoint as module
from pyro_moe.fitting import plan
from pyro_moe.inference.starts import stacked
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


@pytest.fixture
def together(monkeypatch):
    """The numbers of runs that took their steps as one."""
    found: list[int] = []

    class Counted(stacked.Joint):
        def __init__(self, runs):
            super().__init__(runs)
            found.append(len(runs))

    monkeypatch.setattr(stacked, "WORTHWHILE", 1)
    monkeypatch.setattr(stacked, "Joint", Counted)
    return found


@pytest.mark.parametrize("moment", [1, 7, 33])
def test_starts_that_are_trained_together_go_on_together(moment, together, monkeypatch, tmp_path):
    """They may be killed between the first and the last of their states.

    If that happens before all have one, they go on alone, with the same results up to rounding.
    """
    monkeypatch.setattr(plan, "STEPS", 12)
    (one, other), data, options = CASES["phases"]
    options = {**options, "restarts": 3, "patience": None, "progress": False}
    expected = fit(one, other, data, **options)
    assert together == [3] * 3  # in each phase
    keep, left = module.Checkpoint.keep, [moment]

    def killed(self, phase, run):
        left[0] -= 1
        if left[0] < 0:
            raise Killed
        keep(self, phase, run)

    with monkeypatch.context() as context:
        context.setattr(module.Checkpoint, "keep", killed)
        with pytest.raises(Killed):
            fit(one, other, data, checkpoint=tmp_path, **options)
    together.clear()
    found = fit(one, other, data, resume=tmp_path, **options)
    if moment >= 3:
        equal(found, expected)
        assert together[-1] == 3
    assert_close(found.parameters(), expected.parameters())
    assert found.held_out_elbo == pytest.approx(expected.held_out_elbo)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_a_process_that_was_killed_at_any_moment_goes_on(tmp_path):
    (one, other), data, options = CASES["phases"]
    options = {**options, "progress": False}
    started = time.perf_counter()
    expected = fit(one, other, data, checkpoint=tmp_path / "whole", **options)
    seconds = time.perf_counter() - started
    for share in (0.05, 0.3, 0.5, 0.7, 0.9):
        folder = tmp_path / str(share)
        with warnings.catch_warnings():
            # of threads, which those who run tests in several processes have
            warnings.simplefilter("ignore", DeprecationWarning)
            child = os.fork()
        if child == 0:
            try:
                fit(one, other, data, checkpoint=folder, **options)
            finally:
                os._exit(0)
        time.sleep(share * seconds)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DataWarning)  # of a child that was killed at once
            equal(fit(one, other, data, resume=folder, **options), expected)


@pytest.fixture
def stopped(tmp_path):
    """A folder with checkpoints of a fit, and the fit."""
    (one, other), data, _ = CASES["functions"]
    return tmp_path, fit(one, other, data, checkpoint=tmp_path, epochs=6, progress=False)


def resumed(folder, data=X, **options):
    options = {"epochs": 6, "progress": False, **options}
    return fit(*CASES["functions"][0], data, resume=folder, **options)


def test_the_last_two_states_are_kept(stopped):
    folder, _ = stopped
    epochs = sorted(int(path.name.split("-")[2]) for path in folder.iterdir())
    assert epochs == [5, 6]


def test_a_damaged_state_is_passed_over(stopped):
    folder, expected = stopped
    newest = max(folder.iterdir(), key=lambda path: int(path.name.split("-")[2]))
    for content in (newest.read_bytes()[:-9], b"", bytes([newest.read_bytes()[0] ^ 1])):
        newest.write_bytes(content)
        equal(resumed(folder), expected)


def test_checkpoints_of_another_fit_are_refused(stopped):
    folder, _ = stopped
    for options in ({"data": X + 1.0}, {"seed": 1}, {"epochs": 7}, {"learning_rate": 0.1}):
        with pytest.raises(DataError, match="expected a checkpoint of this fit; got "):
            resumed(folder, **options)


def test_a_fit_with_nothing_to_go_on_from_says_so(tmp_path):
    with pytest.warns(DataWarning, match="expected a checkpoint in "):
        resumed(tmp_path / "none")


def test_another_folder_may_take_the_checkpoints(stopped, tmp_path):
    folder, expected = stopped
    other = tmp_path / "other"
    equal(resumed(folder, checkpoint=other), expected)
    assert len(list(other.glob("*.safetensors"))) == 1


def test_a_new_fit_removes_old_checkpoints(stopped):
    folder, _ = stopped
    fit(*CASES["functions"][0], X, checkpoint=folder, epochs=1, progress=False)
    assert [path.name.split("-")[2] for path in folder.iterdir()] == ["1"]


def test_a_checkpoint_that_cannot_be_written_is_a_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="expected a file that can be written; got "):
        fit(*CASES["functions"][0], X, checkpoint=tmp_path / "file", epochs=1, progress=False)
