"""The section on how well the rows are predicted, beside one linear model and K - 1 components."""

from typing import Any

import pandas as pd
import torch

from pyro_moe import evaluation, plots
from pyro_moe.evaluation import Prediction
from pyro_moe.fitted import weighted_mean

from .page import columns, paragraph, picture, section, table
from .subject import Subject

LEVEL = 0.9


def goodness(subject: Subject) -> str:
    """Scores beside those of baselines, and predictions beside targets."""
    shown = scores(subject)
    note, parts = paragraph(f"On {subject.where}", soft=True), [table(shown)]
    if subject.has_target:
        classes = None if subject.classes is None else list(subject.classes)
        drawn = plots.predictions(subject.fit, subject.judged, seed=subject.seed, classes=classes)
        caption = (
            "Observed classes against the most probable ones."
            if subject.of_classes or (subject.is_binary and len(subject.targets) == 1)
            else "Observed targets against predicted means, with 90 % prediction intervals."
        )
        parts.append(picture(drawn, caption))
    return section("Goodness of fit", note, columns(*parts))


def scores(subject: Subject) -> pd.DataFrame:
    """A row for each score: of the fit, of one linear model, of K - 1 components."""
    if not subject.has_target:
        each = evaluation.elbo(subject.fit, subject.rows, seed=subject.seed)
        bound = weighted_mean(each, subject.rows.annotations.get("weights")).item()
        exact = subject.log_likelihood is not None
        name = "log-likelihood" if exact else "evidence lower bound (ELBO)"
        return pd.DataFrame({"measure": [f"{name}, nats per row"], "this fit": [bound]})
    found = {"this fit": of_prediction(subject, subject.prediction)}
    if subject.line is not None:
        found["one linear model"] = of_line(subject)
    if subject.fewer is not None:
        number = subject.num_components - 1
        found[f"{number} component{'s' if number > 1 else ''}"] = of_prediction(
            subject, subject.fewer
        )
    table = pd.DataFrame(found).reindex(list(found["this fit"]))
    return table.rename_axis("measure").reset_index()


def of_prediction(subject: Subject, prediction: Prediction) -> dict[str, Any]:
    """Scores of a prediction by name, with their units."""
    y: Any = torch.as_tensor(subject.judged.y)
    weights = weights_of(subject)
    if subject.of_classes:
        found = evaluation.classification_scores(prediction, y, weights=weights)
        return of_classes(found["accuracy"], found["log_loss"])
    if subject.is_binary:
        return of_binary(subject, prediction.mean, prediction.log_prob(y))
    scores = evaluation.regression_scores(prediction, y, weights=weights, levels=(LEVEL,))
    error = errors(subject, prediction.mean)
    covered = scores["coverage"][LEVEL]
    return {
        "log-likelihood, nats per row": scores["log_likelihood"],
        **error,
        "CRPS, in the units of the target": scores["crps"],
        f"targets in their {LEVEL:.0%} interval": f"{covered:.1%}",
    }


def weights_of(subject: Subject) -> torch.Tensor | None:
    """How many rows each row of judgement counts as, or None if each counts as one."""
    return subject.judged.annotations.get("weights")


def of_line(subject: Subject) -> dict[str, Any]:
    """Scores of one linear model by name."""
    line: Any = subject.line
    if subject.is_binary:
        return of_binary(subject, line.mean, line.log_density)
    log_density = weighted_mean(line.log_density, weights_of(subject)).item()
    if not subject.of_classes:
        return {"log-likelihood, nats per row": log_density, **errors(subject, line.mean)}
    y = torch.as_tensor(subject.judged.y).double().reshape(-1)
    right = (line.mean.reshape(-1) == y).double()
    return of_classes(weighted_mean(right, weights_of(subject)).item(), -log_density)


def of_classes(accuracy: float, log_loss: float) -> dict[str, Any]:
    """Scores of classes by name."""
    return {
        "accuracy, share of rows whose most probable class is right": f"{accuracy:.1%}",
        "log loss, nats per row": log_loss,
    }


def of_binary(subject: Subject, mean: torch.Tensor, log_density: torch.Tensor) -> dict[str, Any]:
    """Scores of targets that are zero or one, given their means or the likelier values."""
    y = torch.as_tensor(subject.judged.y).reshape(mean.shape).to(mean)
    right = weighted_mean(((mean > 0.5) == (y > 0.5)).double(), weights_of(subject)).mean().item()
    return of_classes(right, -weighted_mean(log_density, weights_of(subject)).item())


def errors(subject: Subject, mean: torch.Tensor) -> dict[str, float]:
    """The root mean squared error of each target in its units, and R² of one."""
    y = torch.as_tensor(subject.judged.y).double().reshape(len(subject.judged), -1)
    weights = weights_of(subject)
    squared = weighted_mean((y - mean.cpu().double().reshape(y.shape)).square(), weights)
    found = {
        f"root mean squared error of {name}": each**0.5
        for name, each in zip(subject.targets, squared.tolist(), strict=False)
    }
    variance = weighted_mean((y - weighted_mean(y, weights)).square(), weights)
    if y.shape[1] == 1 and variance[0] > 0:
        found["R², share of variance explained"] = round(float(1.0 - squared[0] / variance[0]), 12)
    return found
