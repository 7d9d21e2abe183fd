"""The section on training: settings and history."""

from importlib.metadata import version
from typing import Any

from pyro_moe import plots

from .page import columns, facts, picture, section
from .subject import Subject

NAMES = {"restarts": "starts"}
OF_EM = ("tolerance",)
OF_GRADIENTS = (
    "batch_size",
    "bfloat16",
    "compile",
    "initial_epochs",
    "learning_rate",
    "optimizer",
    "patience",
    "temperature",
    "validation",
    "weight_decay",
)


def training(subject: Subject) -> str:
    """The settings of `fit` that were used, and the history of training."""
    fit = subject.fit
    by_em = fit.settings.get("loss") == "em"
    unused = {*(OF_GRADIENTS if by_em else OF_EM), "epochs"}
    if subject.weights is None:
        unused.add("weight_type")
    settings = {k: v for k, v in fit.settings.items() if not callable(v) and k not in unused}
    rounds = "iterations" if by_em else "epochs"
    values = {
        rounds: f"{len(fit.history):,} of at most {fit.settings.get('epochs', 0):,}",
        "seconds": f"{sum(record['seconds'] for record in fit.history):.3g}",
        **{NAMES.get(key, key.replace("_", " ")): _shown(value) for key, value in settings.items()},
        "versions": ", ".join(f"{p} {version(p)}" for p in ("pyro-moe", "pyro-ppl", "torch")),
    }
    if hasattr(fit, "remaining"):
        values["after EM"] = "Newton's method"
    history = picture(
        plots.history(fit),
        "ELBO by epoch, for EM the log-likelihood, one panel for each phase of training. The "
        "scale is linear near the last values and logarithmic further below.",
    )
    return section("Training", columns(facts(values), history))


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key.replace('_', ' ')} {value:g}" for key, value in value.items())
    return "none" if value is None else str(value)
