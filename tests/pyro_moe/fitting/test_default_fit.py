"""What `fit` does without arguments: its objective, its length, and its end."""

import itertools
import math

import pytest
import torch
from torch.testing import assert_close

import pyro_moe
from pyro_moe import ConvergenceWarning
from pyro_moe.fitting import entry, plan
from pyro_moe.inference.em import EM
from pyro_moe.inference.svi import SVI
from pyro_moe.models import DMVAE, GMM, ME, VAE

EXACT = {"rtol": 0, "atol": 0}


def fit(story, data, **choices):
    choices = {"prior": "weak", "progress": False} | choices
    return pyro_moe.fit(story.model, story.guide, data, **choices)


def interrupt(*args):
    raise KeyboardInterrupt


@pytest.fixture
def table():
    """Two lines that cross, and the sign of x tells which."""
    x = torch.linspace(-1, 1, 60).unsqueeze(-1)
    return x, torch.where(x < 0, 2 * x + 1, -3 * x) + 0.1 * torch.randn(60, 1)


# The objective


def test_a_table_is_fitted_by_em_from_several_starts(table):
    fitted = fit(ME(1, 1, 2), table)
    assert isinstance(fitted.run, EM)
    assert fitted.run.converged
    assert {p.dtype for p in fitted.parameters().values()} == {torch.float64}
    said = {key: fitted.settings[key] for key in ("loss", "epochs", "restarts", "validation")}
    assert said == {"loss": "em", "epochs": 1000, "restarts": 12, "validation": 0.0}
    objective = [record["objective"] for record in fitted.history]
    assert all(after > before - 1e-9 for before, after in itertools.pairwise(objective))


@pytest.mark.parametrize(
    "choices",
    [{"batch_size": 30}, {"learning_rate": 0.01}, {"temperature": 0.5}, {"patience": 9}],
    ids=str,
)
def test_arguments_of_gradients_ask_for_gradients(table, choices):
    fitted = fit(ME(1, 1, 2), table, epochs=1, **choices)
    assert isinstance(fitted.run, SVI)
    assert fitted.settings["loss"] == "marginal"


def test_a_story_with_networks_has_gradients():
    fitted = fit(DMVAE(2, 1, 2, hidden=(4,)), torch.randn(30, 2), callback=interrupt)
    assert isinstance(fitted.run, SVI)
    assert fitted.settings["loss"] == "marginal"


def test_em_that_does_not_converge_in_its_own_iterations_says_so(table, monkeypatch):
    monkeypatch.setattr(plan, "ITERATIONS", 2)
    with pytest.warns(ConvergenceWarning, match="expected EM to converge in 2 iterations") as seen:
        fit(ME(1, 1, 2), table, restarts=1)
    assert seen[0].filename == __file__
    fit(ME(1, 1, 2), table, epochs=2)  # as many as were asked for: no warning
    monkeypatch.setattr(plan, "ITERATIONS", 5)
    fit(ME(1, 1, 1), table, tolerance=math.inf)  # converged: no warning


# The length


@pytest.mark.parametrize(("num_rows", "epochs"), [(256, 4000), (274, 2000), (2560, 400)])
def test_training_has_exactly_4000_steps(num_rows, epochs):
    fitted = fit(
        GMM(2, 2),
        torch.randn(num_rows, 2),
        initialize="random",
        learning_rate=interrupt,
        validation=0.0,
    )
    assert fitted.settings["epochs"] == epochs
    assert fitted.settings["initial_epochs"] == 0


@pytest.mark.parametrize("num_rows", [30, 274, 1000, 5000])
@pytest.mark.parametrize("validation", [0.0, None])
def test_initial_phases_belong_to_the_4000_steps(num_rows, validation):
    fitted = fit(
        DMVAE(2, 1, 2, hidden=(4,)),
        torch.randn(num_rows, 2),
        learning_rate=interrupt,
        validation=validation,
    )
    initial = fitted.settings["initial_epochs"]
    kept, size = len(fitted.run.data[0]), fitted.settings["batch_size"]
    steps = math.ceil(kept / size) * (initial + math.ceil(initial / 5) + fitted.settings["epochs"])
    assert 3900 <= steps <= 4000
    assert initial > 0


def test_large_tables_have_five_epochs():
    x = torch.randn(300, 1)
    fitted = fit(GMM(1, 1), x, batch_size=1, initialize="random", callback=interrupt)
    assert fitted.settings["epochs"] == 16  # 4,000 steps, with a sixth of the rows held out
    fitted = fit(
        GMM(1, 1), x.repeat(4, 1), batch_size=1, initialize="random", learning_rate=interrupt
    )
    assert fitted.settings["epochs"] == 5


# The end


@pytest.fixture
def short(monkeypatch):
    """Default fits of 200 steps."""
    monkeypatch.setattr(plan, "STEPS", 200)


OVERFITTING = {"learning_rate": 0.1, "initialize": "random", "prior": "none"}


def test_training_stops_early_and_goes_back_to_the_best_state(short, monkeypatch):
    """Six full covariances for thirty rows of one cluster."""
    monkeypatch.setattr(entry, "finish", lambda fitted, *_: fitted)  # without the last phase
    fitted = fit(GMM(2, 6), torch.randn(30, 2), patience=5, **OVERFITTING)
    scores = [record["held_out_elbo"] for record in fitted.history if "held_out_elbo" in record]
    assert len(fitted.history) < 200 == fitted.settings["epochs"]
    assert len(scores) - 1 - scores.index(max(scores)) == 5
    (held,) = fitted.run.held_out
    assert fitted.held_out_elbo == max(scores)
    assert pyro_moe.evaluation.elbo(fitted, held).mean().item() == pytest.approx(max(scores))


def test_the_last_phase_has_all_rows_and_a_tenth_of_the_epochs(short):
    x = torch.randn(30, 2)
    fitted = fit(GMM(2, 6), x, patience=5, **OVERFITTING)
    phases = [record["phase"] for record in fitted.history]
    number = phases.count("training")
    assert phases == ["training"] * number + ["all rows"] * round(number / 10)
    assert_close(fitted.data[0], x, **EXACT)
    assert_close(fitted.run.data[0], x, **EXACT)
    assert fitted.history[-1]["learning_rate"] < fitted.history[-2]["learning_rate"]


def test_given_epochs_are_all_taken():
    fitted = fit(GMM(2, 6), torch.randn(30, 2), epochs=40, **OVERFITTING)
    assert [record["phase"] for record in fitted.history] == ["training"] * 40
    assert fitted.held_out_elbo is None


def test_initial_phases_have_no_bound_on_held_out_rows(short):
    """It is no measure of an autoencoder without noise and prior."""
    fitted = fit(DMVAE(2, 1, 2, hidden=(4,)), torch.randn(30, 2), learning_rate=0.01, patience=1)
    initial = fitted.settings["initial_epochs"]
    first = [record for record in fitted.history if record["phase"] in ("autoencoder", "assigned")]
    assert len(first) == initial + math.ceil(initial / 5)
    assert not any("held_out_elbo" in record for record in first)


# Interruptions


@pytest.mark.parametrize("where", [("training", 4), ("all rows", 1)])
def test_an_interrupted_default_run_resumes_with_the_same_numbers(where, monkeypatch):
    monkeypatch.setattr(plan, "STEPS", 30)
    x, story = torch.randn(30, 2), VAE(2, 1, hidden=(4,))

    def callback(fitted):
        record = fitted.history[-1]
        if (record["phase"], record["epoch"]) == where:
            raise KeyboardInterrupt

    stopped = fit(story, x, callback=callback)
    assert stopped.interrupted
    assert (stopped.history[-1]["phase"], stopped.history[-1]["epoch"]) == where
    the_same(stopped.resume(progress=False), fit(story, x))


def test_a_run_that_was_stopped_amid_its_first_epoch_with_all_rows_resumes(monkeypatch):
    monkeypatch.setattr(plan, "STEPS", 30)
    x, story, once = torch.randn(30, 2), VAE(2, 1, hidden=(4,)), [True]
    finish = entry.finish

    def stopping(fitted, *shown):
        with monkeypatch.context() as patch:
            patch.setattr(SVI, "step", interrupt if once else SVI.step)
            once.clear()
            return finish(fitted, *shown)

    monkeypatch.setattr(entry, "finish", stopping)
    stopped = fit(story, x)
    assert stopped.interrupted
    assert [record["phase"] for record in stopped.history] == ["training"] * 30
    the_same(stopped.resume(progress=False), fit(story, x))


def test_an_interrupted_default_run_of_em_resumes_with_the_same_numbers():
    noise = torch.randn(40, 1), torch.randn(40, 1)  # EM converges slowly
    stopped = fit(ME(1, 1, 3), noise, restarts=3, callback=interrupt)
    through = fit(ME(1, 1, 3), noise, restarts=3)
    assert stopped.interrupted
    assert len(stopped.history) < len(through.history)
    the_same(stopped.resume(progress=False), through)


def the_same(first, second):
    assert first.stopped is None
    assert_close(first.parameters(), second.parameters(), **EXACT)
    assert first.held_out_elbo == second.held_out_elbo
    without = [
        [{key: value for key, value in record.items() if key != "seconds"} for record in each]
        for each in (first.history, second.history)
    ]
    assert without[0] == without[1]
