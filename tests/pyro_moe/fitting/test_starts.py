"""Starts of training by gradients: together if they are small, and otherwise one by one."""

import pytest
import torch
from torch.testing import assert_close

import pyro_moe
from pyro_moe.fitting import starts
from pyro_moe.inference.starts import clustering, stacked
from pyro_moe.models import DMVAE

pytestmark = pytest.mark.usefixtures("double")


@pytest.fixture(autouse=True)
def worthwhile(monkeypatch):
    monkeypatch.setattr(stacked, "WORTHWHILE", 1)


def rows():
    x = torch.randn(60, 2, generator=torch.Generator().manual_seed(0))
    return x + 4.0 * (torch.arange(60) % 2).unsqueeze(-1)


def fit(**choices):
    story = DMVAE(x_dim=2, z_dim=1, num_components=2, hidden=(4,))
    options = {"epochs": 10, "batch_size": 20, "initialize": "random", "prior": "weak"}
    options |= {"restarts": 3, "progress": False}
    return pyro_moe.fit(story.model, story.guide, rows(), **options | choices)


def elbos(history):
    return [record["elbo"] for record in history if record.get("phase", "training") == "training"]


@pytest.mark.parametrize("initialize", ["random", "autoencoder"])
@pytest.mark.parametrize("loss", ["marginal", "categorical-kl"])
def test_starts_together_have_the_results_of_starts_one_by_one(initialize, loss):
    """With a callback, they are trained one by one."""
    together = fit(initialize=initialize, loss=loss)
    single = fit(initialize=initialize, loss=loss, callback=lambda fitted: None)
    assert together.run.seed == single.run.seed
    assert together.held_out_elbo == pytest.approx(single.held_out_elbo, rel=1e-9)
    assert [r["phase"] for r in together.history] == [r["phase"] for r in single.history]
    assert elbos(together.history) == pytest.approx(elbos(single.history), rel=1e-6)
    found, expected = (dict(each.programs.parameters()) for each in (together, single))
    assert_close(found, expected, rtol=1e-6, atol=1e-9)


def test_a_log_tells_of_all_starts_at_once(capsys):
    fit(progress=True)
    lines = capsys.readouterr().err.splitlines()
    done = [f"3 starts: training {number}/10" for number in (2, 4, 6, 8, 10)]
    assert [line.split(",")[0] for line in lines] == [*done, "all rows 1/1"]


def interrupting(after):
    """A learning rate that interrupts the training when it is asked for once more."""
    asked = []

    def rate(done):
        asked.append(done)
        if len(asked) > after:
            raise KeyboardInterrupt
        return 1e-2

    return rate


def test_an_interruption_ends_all_starts():
    fitted = fit(learning_rate=interrupting(after=13))  # three steps and three records an epoch
    assert fitted.stopped == "interrupted after 2 of 10 epochs"
    assert len(fitted.history) == 2
    with pytest.raises(KeyboardInterrupt):
        fitted.uninterrupted()


def test_an_interrupted_start_resumes_with_the_numbers_of_one_that_was_not():
    stopped = fit(learning_rate=interrupting(after=13))
    stopped.run.learning_rate = rate = interrupting(after=1000)
    resumed, fits = stopped.resume(progress=False), {}
    fit(learning_rate=rate, callback=lambda fitted: fits.update({fitted.run.seed: fitted}))
    whole = fits[stopped.run.seed]
    assert resumed.stopped is None
    assert elbos(resumed.history)[2:] == pytest.approx(elbos(whole.history)[2:], rel=1e-6)


def test_an_interrupted_clustering_ends_all_starts(monkeypatch):
    calls, cluster = [], clustering.cluster

    def interrupted(*arguments, **options):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return cluster(*arguments, **options)

    monkeypatch.setattr("pyro_moe.inference.initialize.cluster", interrupted)
    fitted = fit(initialize="autoencoder", initial_epochs=4)
    assert fitted.stopped == "interrupted after 0 of 1 epochs of phase 'assigned'"
    assert [record["phase"] for record in fitted.history] == ["autoencoder"] * 4


@pytest.mark.parametrize("restarts", [1, 2])
def test_an_interruption_of_the_first_preparation_is_told(restarts, monkeypatch):
    def interrupted(*arguments, **options):
        raise KeyboardInterrupt
        yield

    monkeypatch.setattr(starts, "phases", interrupted)
    assert fit(restarts=restarts).stopped == "interrupted after 0 of 10 epochs"
