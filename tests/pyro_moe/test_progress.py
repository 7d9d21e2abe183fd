"""What a fit says of how far it is, on a terminal and in a log."""

import io
import sys

import pytest
import torch

import pyro_moe
from pyro_moe import models


class Terminal(io.StringIO):
    def isatty(self):
        return True


class Log:
    """A stderr that some programs put in place of their own, without `isatty`."""

    def __init__(self):
        self.text = ""

    def write(self, text):
        self.text += text

    def flush(self):
        pass


@pytest.fixture(autouse=True)
def _no_notebook(monkeypatch):
    monkeypatch.delitem(sys.modules, "ipykernel", raising=False)


def fit(**choices):
    story = models.DMVAE(x_dim=2, z_dim=1, num_components=2, hidden=(4,))
    x = torch.randn(40, 2, generator=torch.Generator().manual_seed(0))
    defaults = {"epochs": 20, "batch_size": 20, "initialize": "random", "prior": "weak"}
    return pyro_moe.fit(story.model, story.guide, x, **defaults | choices)


def lines_of(text):
    assert "\r" not in text
    return text.splitlines()


def test_a_log_has_a_line_now_and_then(capsys):
    fitted = fit(initialize="autoencoder")
    lines = lines_of(capsys.readouterr().err)
    phases = [line.split(",")[0] for line in lines]
    training = [f"training {done}/20" for done in (4, 8, 12, 16, 20)]
    assert phases == ["autoencoder 20/20", "assigned 4/4", *training]
    assert lines[-1] == f"training 20/20, elbo {fitted.history[-1]['elbo']:.4g}"


@pytest.mark.parametrize("epochs", [1, 2, 7, 101])
def test_a_log_of_any_length_is_short_and_tells_the_end(epochs, capsys):
    fit(epochs=epochs)
    lines = lines_of(capsys.readouterr().err)
    assert min(epochs, 4) <= len(lines) <= 6
    assert lines[-1].startswith(f"training {epochs}/{epochs}, elbo ")


def test_starts_share_the_lines(capsys):
    fit(restarts=5)
    lines = lines_of(capsys.readouterr().err)
    expected = [f"start {start} of 5: training 20/20" for start in range(1, 6)]
    assert [line.split(",")[0] for line in lines] == [*expected, "all rows 2/2"]


def test_a_resumed_fit_says_what_is_left(capsys):
    fitted = fit(epochs=10, prior="none", progress=False)
    fitted.resume(epochs=20)
    done = [line.split(",")[0] for line in lines_of(capsys.readouterr().err)]
    assert done == ["training 12/20", "training 16/20", "training 20/20"]


def test_training_that_converges_early_says_where_it_ended(capsys):
    story = models.GMM(x_dim=2, num_components=1)
    fitted = pyro_moe.fit(
        story.model, story.guide, torch.eye(9, 2), loss="em", epochs=1000, prior="weak"
    )
    (line,) = lines_of(capsys.readouterr().err)
    assert line.startswith(f"training {len(fitted.history)}/1000, elbo ")


def test_an_interrupted_fit_says_where_it_ended(capsys):
    def interrupt(fit):
        if len(fit.history) == 3:
            raise KeyboardInterrupt

    fit(callback=interrupt)
    (line,) = lines_of(capsys.readouterr().err)
    assert line.startswith("training 3/20, elbo ")


def test_a_stderr_that_knows_nothing_of_terminals_is_a_log(monkeypatch):
    log = Log()
    monkeypatch.setattr(sys, "stderr", log)
    fit()
    assert len(lines_of(log.text)) == 5


def test_a_terminal_has_a_bar(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    fit(loss="relaxed")
    *_, last = terminal.getvalue().strip().split("\r")
    assert last.startswith("100%")
    for part in ("20/20", "phase=training", "elbo=", "temperature="):
        assert part in last


def test_a_notebook_has_a_bar(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "ipykernel", sys)
    fit()
    assert "\r" in capsys.readouterr().err


def test_a_quiet_fit_says_nothing(monkeypatch, capsys):
    fit(prior="none", progress=False)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(sys, "stderr", Terminal())
    fit(prior="none", progress=False)
    assert sys.stderr.getvalue() == ""
