"""What belongs to the process is left as it was, whatever it was."""

import inspect
import logging
import os
import random
import signal
import subprocess
import sys
import warnings
from contextlib import contextmanager, nullcontext

import matplotlib
import numpy as np
import pyro
import pytest
import torch

import pyro_moe
from pyro_moe import criticism, evaluation, models, plots
from pyro_moe.cli import main
from pyro_moe.selection import select


def settings():
    """All that a caller may have set, by name."""
    params = matplotlib.rcParams
    loggers = logging.root.manager.loggerDict.values()
    store = pyro.get_param_store()
    return {
        "gradients": torch.is_grad_enabled(),
        "inference mode": torch.is_inference_mode_enabled(),
        "type": torch.get_default_dtype(),
        "device": torch.get_default_device(),
        "threads": torch.get_num_threads(),
        "anomalies": torch.is_anomaly_enabled(),
        "determinism": torch.are_deterministic_algorithms_enabled(),
        "generator of torch": torch.get_rng_state().tolist(),
        "generator of numpy": str(np.random.get_state()),  # noqa: NPY002
        "generator of python": random.getstate(),
        "errors of numpy": np.geterr(),
        "parameters": {name: id(value) for name, value in store.get_state()["params"].items()},
        "handlers": list(pyro.poutine.runtime._PYRO_STACK),
        "validation": pyro.distributions.is_validation_enabled(),
        "validation by torch": torch.distributions.Distribution._validate_args,
        "warnings": list(warnings.filters),
        "showwarning": warnings.showwarning,
        # reading the backend by its key would choose one
        "backend": dict.__getitem__(params, "backend"),
        "figures": {key: params[key] for key in params if key != "backend"},
        "log level": (logging.root.level, list(logging.root.handlers), logging.root.disabled),
        "log levels": {
            each.name: each.level
            for each in loggers
            if isinstance(each, logging.Logger) and each.level != logging.NOTSET
        },
        "excepthook": sys.excepthook,
        "displayhook": sys.displayhook,
        "signals": [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)],
        "environment": dict(os.environ),
        "path": list(sys.path),
        "folder": os.getcwd(),
    }


@contextmanager
def nothing_changes():
    before = settings()
    yield
    after = settings()
    assert {name for name in before if before[name] != after[name]} == set()


STORY = models.GMMMoE(2, 1, 2)
X = torch.randn(40, 2, generator=torch.Generator().manual_seed(0))
Y = X[:, :1] + 0.1 * torch.randn(40, 1, generator=torch.Generator().manual_seed(1))


def table():
    return X, Y


def fitted(loss="em", **options):
    story = STORY
    options = {"epochs": 2, "progress": False, "prior": "weak", **options}
    return pyro_moe.fit(story.model, story.guide, table(), loss=loss, **options)


@pytest.fixture(scope="module")
def fit():
    return fitted()


def program(fit, folder):
    rows = folder / "table.csv"
    np.savetxt(rows, np.hstack(table()), delimiter=",", header="a,b,c", comments="")
    run = ["--epochs", "2", "--quiet", "--prior", "weak", "--out", str(folder / "run")]
    assert main(["fit", "gmmmoe", "--data", str(rows), "--target", "c", *run]) == 0
    assert main(["fit", "no such story", "--data", str(rows)]) == 2


CALLS = {
    "fit by em": lambda fit, folder: fitted(),
    "fit by gradients": lambda fit, folder: fitted("marginal"),
    "fit, relaxed": lambda fit, folder: fitted("relaxed"),
    "resume": lambda fit, folder: fit.resume(epochs=3, progress=False),
    "select": lambda fit, folder: select(
        lambda k: models.GMM(2, k),
        table()[0],
        num_components=[1, 2],
        loss="em",
        epochs=2,
        prior="weak",
        progress=False,
    ),
    "predict": lambda fit, folder: evaluation.predict(fit, table()[0]).quantile(0.1),
    "gate": lambda fit, folder: evaluation.gate(fit, table()[0]),
    "elbo": lambda fit, folder: evaluation.elbo(fit, table()),
    "bound": lambda fit, folder: evaluation.importance_weighted_bound(fit, table()),
    "sample": lambda fit, folder: evaluation.sample(fit, 5),
    "novelty": lambda fit, folder: evaluation.novelty(fit, table()[0]),
    "impute": lambda fit, folder: evaluation.impute(
        fit, table()[0].where(table()[0] > 0, torch.nan), num_samples=2, num_rounds=1
    ),
    "baseline": lambda fit, folder: evaluation.linear_baseline(fit, table()),
    "health": lambda fit, folder: criticism.health(fit),
    "check": lambda fit, folder: criticism.check(fit, table(), num_replicates=20),
    "report": lambda fit, folder: fit.report(folder / "report.html", num_replicates=20),
    "pictures": lambda fit, folder: plots.pictures(fit, pyro_moe.Rows(*table())),
    "program": program,
}


def undone(set_it, value, before):
    @contextmanager
    def context():
        set_it(value)
        try:
            yield
        finally:
            set_it(before)

    return context


STATES = {
    "as it is": nullcontext,
    "no gradients": torch.no_grad,
    "inference": torch.inference_mode,
    "double": undone(torch.set_default_dtype, torch.float64, torch.float32),
    "half": undone(torch.set_default_dtype, torch.float16, torch.float32),
    "device": undone(torch.set_default_device, "cpu", None),
    "no validation": undone(pyro.enable_validation, False, True),
    "validation by torch": undone(
        torch.distributions.Distribution.set_default_validate_args, False, True
    ),
}


@pytest.mark.parametrize("call", CALLS)
def test_a_call_leaves_the_process_as_it_was(fit, tmp_path, call):
    pyro.param("mine", torch.tensor(1.0))
    random.seed(3)
    with nothing_changes():
        CALLS[call](fit, tmp_path)


OFTEN = ("fit by em", "fit by gradients", "fit, relaxed", "predict", "elbo", "impute")


@pytest.mark.parametrize("call", ["report", "pictures", "program"])
def test_pages_and_pictures_can_be_made_anywhere(fit, tmp_path, call):
    with torch.inference_mode(), STATES["half"](), nothing_changes():
        CALLS[call](fit, tmp_path)


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("call", OFTEN)
def test_a_call_does_not_depend_on_what_the_process_has_set(fit, tmp_path, state, call):
    expected = numbers(CALLS[call](fit, tmp_path))
    with STATES[state](), nothing_changes():
        got = numbers(CALLS[call](fit, tmp_path))
    assert got == expected


# What sets filters and variables when it is imported, with or without pyro_moe.
LIBRARIES = (
    "torch, pyro, matplotlib.figure, pandas, pooch, safetensors, scipy.stats, sklearn.datasets"
)
ALONE = f"""
import logging, os, random, signal, sys, warnings
import {LIBRARIES}
import sklearn.cluster, sklearn.linear_model, sklearn.manifold, sklearn.mixture, tqdm
import matplotlib, numpy as np, pyro, torch
{inspect.getsource(settings)}
def changed():
    return [name for name, value in settings().items() if value != before[name]]
before = settings()
import pyro_moe
assert not changed(), ("import", changed())
x = torch.randn(40, 2, generator=torch.Generator().manual_seed(0))
with torch.random.fork_rng(()):
    story = pyro_moe.models.GMMMoE(2, 1, 2)
for loss in ("em", "marginal"):
    options = {{"loss": loss, "epochs": 2, "prior": "weak", "progress": False}}
    fit = pyro_moe.fit(story.model, story.guide, (x, x[:, 0]), **options)
    assert not changed(), (loss, changed())
pyro_moe.criticism.to_arviz(fit, num_draws=8)
assert not changed(), ("to_arviz", changed())
"""


def test_a_new_process_is_left_as_its_libraries_leave_it():
    command = [sys.executable, "-c", ALONE]
    done = subprocess.run(command, capture_output=True, text=True)  # noqa: S603
    assert done.returncode == 0, done.stderr[-2000:]


def numbers(result):
    if isinstance(result, evaluation.Prediction | evaluation.Imputation):
        result = result.mean
    if isinstance(result, pyro_moe.Fit):
        return {name: p.tolist() for name, p in result.parameters().items()}
    return result.tolist() if torch.is_tensor(result) else None
