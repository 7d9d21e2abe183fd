"""Sections on the model as a whole: warnings, training, scores, predictive checks."""

from importlib.metadata import version
from typing import Any

import pandas as pd
import torch

from pyro_moe import evaluation, plots
from pyro_moe.criticism import figures
from pyro_moe.criticism.health import Health
from pyro_moe.criticism.predictive_check import Check
from pyro_moe.evaluation.marginals import has_classes
from pyro_moe.fitted import Fit
from pyro_moe.rows import Rows

from .page import bullets, facts, paragraph, picture, section, table

SCORES = {
    "error": "squared error, summed over targets",
    "rmse": "root mean squared error",
    "log_likelihood": "log-likelihood, nats per row",
    "crps": "continuous ranked probability score",
    "accuracy": "accuracy",
    "log_loss": "log loss, nats per row",
}
BASELINE = "log-likelihood of one linear model of the fitted rows, nats per row"


def warnings(fit: Fit, checked: Check | None, gate: Health | None, *, seen: bool) -> str:
    """What is wrong with the fit, or that nothing was found."""
    found = []
    if fit.stopped:
        found.append(f"training stopped early: {fit.stopped}")
    if gate is not None:
        found += gate.warnings()
    if checked is not None and not checked.surprises().empty:
        found.append(_discrepancy(checked))
    if seen:
        found.append(
            "These rows were used for fitting. Checks on them are optimistic; use held-out rows"
        )
    if not found:
        return section("No warnings", paragraph("No check raised a warning"), kind="well")
    return section("Warnings", bullets(found), kind="warnings")


def _discrepancy(checked: Check) -> str:
    first = checked.surprises().iloc[0]
    named = first["column"] not in ("", first["site"])
    of = first["site"] + (f" ({first['column']})" if named else "")
    where = "" if pd.isna(first["component"]) else f" in component {first['component']}"
    return (
        f"Data simulated from the model differ from these rows: {checked}. "
        f"Largest discrepancy: {first['statistic']} of {of}{where}. "
        f"Observed: {first['observed']:.4g}. Simulated: {first['replicated']:.4g} "
        f"± {first['standard_deviation']:.2g}"
    )


def _shown(setting: Any) -> str:
    if isinstance(setting, dict):
        return ", ".join(f"{key.replace('_', ' ')} {value:g}" for key, value in setting.items())
    return str(setting)


def training(fit: Fit, rows: Rows, *, seen: bool) -> str:
    """The size of data and model, the settings of `fit`, and the history of training."""
    settings = {key: value for key, value in fit.settings.items() if not callable(value)}
    size = sum(parameter.numel() for parameter in fit.parameters().values())
    values = {
        "training rows": f"{fit.num_rows:,}",
        "rows in this report": f"{len(rows):,}" + (" (the training rows)" if seen else ""),
        "columns of x": str(fit.x_dim),
        "parameters": f"{size:,}",
        "epochs completed": f"{len(fit.history):,}",
        **{key.replace("_", " "): _shown(value) for key, value in settings.items()},
        "versions": ", ".join(f"{p} {version(p)}" for p in ("pyro-moe", "pyro-ppl", "torch")),
    }
    history = picture(
        plots.history(fit),
        "ELBO by epoch, one panel for each phase of training. The vertical axis omits the lowest "
        "fifth of the values.",
    )
    return section("Model and training", facts(values), history)


def scores(fit: Fit, rows: Rows) -> str:
    """The ELBO, and scores of predictions where rows have targets."""
    found = {"ELBO, nats per row": evaluation.elbo(fit, rows).mean().item()}
    if rows.y is not None:
        found |= _scores_of_targets(fit, rows.with_targets())
    return section("Scores", table(pd.DataFrame(list(found.items()), columns=["score", "value"])))


def _scores_of_targets(fit: Fit, rows: Rows) -> dict[str, float]:
    prediction, target = evaluation.predict(fit, rows.x), torch.as_tensor(rows.y)
    line = evaluation.linear_baseline(fit, (rows.x, target))
    baseline = {} if line is None else {BASELINE: line.mean().item()}
    if has_classes(prediction.distributions[0]):
        classes = evaluation.classification_scores(prediction, target)
        return {SCORES[key]: value for key, value in classes.items()} | baseline
    found = evaluation.regression_scores(prediction, target, levels=(0.5, 0.9))
    coverage = found.pop("coverage")
    shares = {f"coverage of {level:.0%} intervals": share for level, share in coverage.items()}
    return {SCORES[key]: value for key, value in found.items()} | baseline | shares


def checks(fit: Fit, rows: Rows, checked: Check | None, seed: int) -> str:
    """The verdict of the predictive check, its most extreme statistics, and pictures of it."""
    if checked is None:
        return ""
    surprises = checked.surprises()
    extreme = checked.table.sort_values("p_value", kind="stable").head(10)
    shown = extreme if surprises.empty else surprises.head(20)
    component = shown["component"].astype("string").fillna("all")
    shown = shown.assign(component=component).rename(
        columns={"site": "variable", "replicated": "simulated"}
    )
    note = "the ten smallest p-values" if surprises.empty else "the smallest p-values first"
    parts = [paragraph(str(checked)), paragraph(f"{note}:", soft=True), table(shown)]
    if rows.y is not None or rows.image_shape is not None or fit.x_dim <= 50:
        drawn = figures.replicates(fit, rows, seed=seed)
        parts.append(picture(drawn, "Observed data and data sets simulated from the model."))
    if checked.pit is not None:
        parts += [
            picture(
                figures.pit_histogram(checked),
                "Probability integral transform of the targets. It is uniform if the model is "
                "correct.",
            ),
            picture(
                figures.calibration_curve(checked),
                "Coverage of central prediction intervals against their nominal level.",
            ),
        ]
    return section("Predictive checks", *parts)
