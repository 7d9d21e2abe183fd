"""The section on training: settings and history."""

from importlib.metadata import version
from typing import Any

from pyro_moe import plots

from .page import columns, facts, picture, section
from .subject import Subject


def training(subject: Subject) -> str:
    """The settings of `fit`, and the history of training."""
    fit = subject.fit
    settings = {key: value for key, value in fit.settings.items() if not callable(value)}
    if settings.get("loss") == "em":
        for name in ("batch_size", "learning_rate", "temperature", "patience", "validation"):
            settings.pop(name, None)  # which EM does not have
    learned = sum(parameter.numel() for parameter in fit.parameters().values())
    values = {
        "numbers learned": f"{learned:,}",
        "epochs completed": f"{len(fit.history):,}",
        "seconds": f"{sum(record['seconds'] for record in fit.history):.3g}",
        **{key.replace("_", " "): _shown(value) for key, value in settings.items()},
        "versions": ", ".join(f"{p} {version(p)}" for p in ("pyro-moe", "pyro-ppl", "torch")),
    }
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
