"""What each expert says of its rows, as a table: its share, its rows, its means."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import torch

from pyro_moe import evaluation
from pyro_moe.evaluation import Prediction
from pyro_moe.evaluation.marginals import has_classes, is_binary
from pyro_moe.fitted import Fit, strange_rows_expected, weighted_mean
from pyro_moe.rows import Rows, numbered

MOST_OUTPUTS = 4


def marked(fit: Fit, rows: Rows, posterior: torch.Tensor | None, seed: int) -> Rows:
    """The rows with a target, with their most probable components as labels."""
    rows = fit.in_order(rows)
    if posterior is not None:
        return replace(rows, labels=posterior.argmax(-1).cpu()).with_targets()
    rows = rows.with_targets()
    prediction = evaluation.predict(fit, rows.x, seed=seed)
    likeliest = prediction.posterior(torch.as_tensor(rows.y)).argmax(-1)
    return replace(rows, labels=likeliest.cpu())


def moments(fit: Fit, x: torch.Tensor, k: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The mean and the standard deviation of expert k, shapes (N, M)."""
    return moments_of(evaluation.predict(fit, x, seed=seed), k)


def moments_of(prediction: Prediction, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The mean and the standard deviation of expert k of a prediction, shapes (N, M)."""
    draws = len(prediction.log_weights)
    _, means, variances = (
        part.unflatten(1, (draws, -1))[:, :, k if part.shape[1] > draws else 0]
        for part in prediction.components()
    )
    between = means.var(1, correction=0)
    deviation = (variances.mean(1) + between).sqrt()
    return means.mean(1).cpu().numpy(), deviation.cpu().numpy()


@strange_rows_expected()
def expert_table(
    fit: Fit,
    rows: Rows,
    *,
    classes: Sequence[str] | None = None,
    posterior: torch.Tensor | None = None,
    seed: int = 0,
) -> pd.DataFrame:
    """Summarize each expert over its rows: those of which it is most probable given x and y.

    Args:
        fit: A fitted story with a site ``y``.
        rows: Rows with targets.
        classes: Names of the classes.
        posterior: As in `effects`.
        seed: Seed of the draws of `evaluation.predict`.

    Returns:
        For each expert its ``share`` (the mean of the gate), its number of ``rows``, and over
        these rows the mean ``log_density`` of the targets, and the ``mean`` and the
        ``standard_deviation`` that it predicts; of several targets ``mean_of_y0`` and so on. For
        classes, their mean probabilities instead.
    """
    rows = marked(fit, rows, posterior, seed)
    w = fit.weights_of(rows)
    weights = np.ones(len(rows)) if w is None else w.numpy()
    prediction = evaluation.predict(fit, rows.x, seed=seed)
    log_density = prediction.log_prob(torch.as_tensor(rows.y)).cpu().numpy()
    component = torch.as_tensor(rows.labels).numpy()
    of_classes = has_classes(prediction.distributions[0])
    table = []
    for k, share in enumerate(weighted_mean(prediction.gate, w).tolist()):
        own = np.where(component == k, weights, 0.0)
        mean, deviation = moments_of(prediction, k)
        number = float(own.sum())
        found: dict[str, Any] = {"component": k, "share": share}
        found["rows"] = int(number) if number.is_integer() else number
        found["log_density"] = _average(log_density, own)
        if of_classes:
            named = classes or [str(m) for m in range(mean.shape[1])]
            found |= {f"P({name})": _average(mean[:, m], own) for m, name in enumerate(named)}
        elif is_binary(prediction.distributions[0]):
            names = rows.targets or numbered("y", mean.shape[1])
            yes = "1" if classes is None else classes[-1]
            found |= {f"P({n} = {yes})": _average(mean[:, m], own) for m, n in enumerate(names)}
        else:
            names = rows.targets or numbered("y", mean.shape[1])
            for m, name in enumerate(names[:MOST_OUTPUTS]):
                of = "" if len(names) == 1 else f"_of_{name}"
                found[f"mean{of}"] = _average(mean[:, m], own)
                found[f"standard_deviation{of}"] = _average(deviation[:, m], own)
        table.append(found)
    return pd.DataFrame(table)


def _average(values: np.ndarray, weights: np.ndarray) -> float:
    """The mean of the rows whose weight is above zero, NaN without any."""
    some = weights > 0
    return float(np.average(values[some], weights=weights[some])) if some.any() else float("nan")
