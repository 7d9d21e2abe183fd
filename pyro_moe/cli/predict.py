"""``pyro-moe predict``: prediction of the targets of new rows."""

import argparse
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from pyro_moe import datasets, evaluation, files, runs
from pyro_moe.datasets import writing
from pyro_moe.datasets.reading import Format, read
from pyro_moe.datasets.source import Source
from pyro_moe.evaluation.marginals import has_classes
from pyro_moe.inference.errors import DataError, DataWarning, warn
from pyro_moe.mixtures import FormulaFit
from pyro_moe.mixtures.stored import design_of
from pyro_moe.rows import Rows
from pyro_moe.text import in_one_line

from . import choices

UNLIKE = 0.01


def run(options: argparse.Namespace) -> None:
    """Write predictive means, standard deviations, quantiles and gate probabilities."""
    settings = runs.settings_of(options.run)
    targets = settings["targets"]
    if targets is None:
        raise ValueError(f"expected a run with a target of a table; got {options.run}")
    out = Path(options.out)
    if out.is_dir():
        raise ValueError(f"expected a file to write; got the folder {out}")
    source = settings["source"] or {"name": options.data}
    reading = Source(**source).reading | choices.reading(options)
    rows: Rows | pd.DataFrame
    if "formula" in settings:
        texts = design_of(settings["formula"]).texts
        rows = read(Path(options.data), Format(**reading), texts)
    else:
        rows = datasets.table(options.data, columns=settings["columns"], **reading)
    if out.exists() and out.samefile(options.data):
        raise ValueError(f"expected --out to be another file than --data; got {out} for both")
    with files.folder(out.parent):
        table = _predicted(options, settings, source, rows)
        writing.write(out, table, escape=not options.no_escape)
    print(in_one_line(f"{len(table):,} rows predicted: {options.out}", longest=None))


def _predicted(
    options: argparse.Namespace,
    settings: dict[str, Any],
    source: dict[str, Any],
    rows: Rows | pd.DataFrame,
) -> pd.DataFrame:
    """The predictions as a table, a column for each quantity."""
    targets = settings["targets"]
    x = rows.x if isinstance(rows, Rows) else rows
    fitted = runs.fit_of(options.run, x, trust_code=options.trust)
    prediction = evaluation.predict(fitted, rows)
    beside = partial(_beside, set(targets))
    names = dict(source.get("classes", {}))
    if isinstance(fitted, FormulaFit) and fitted.design.classes is not None:
        names[targets[0]] = list(map(str, fitted.design.classes))
    columns: dict[str, ArrayLike] = {}
    if has_classes(prediction.distributions[0]):
        columns |= _of_classes(prediction.mean.numpy(), targets[0], names.get(targets[0]), beside)
    else:
        mean, deviation = prediction.mean.numpy(), prediction.variance.sqrt().numpy()
        low, high = (prediction.quantile(q).numpy() for q in (0.05, 0.95))
        for i, target in enumerate(targets):
            if target in names:  # a binary target with named classes
                each = np.stack([1 - mean[:, i], mean[:, i]], 1)
                columns |= _of_classes(each, target, names[target], beside)
                continue
            columns[target] = mean[:, i]
            columns[beside(f"{target}_sd")] = deviation[:, i]
            columns[beside(f"{target}_q05")] = low[:, i]
            columns[beside(f"{target}_q95")] = high[:, i]
    columns |= {beside(f"gate_{k}"): g.numpy() for k, g in enumerate(prediction.gate.T)}
    if options.novelty:
        p_value = evaluation.novelty(fitted, rows, reference=_held_out(options)).p_value.numpy()
        columns[beside("novelty_p_value")] = p_value
        print(f"{(p_value < UNLIKE).sum():,} rows differ from the fitted rows (p < {UNLIKE})")
    return pd.DataFrame(columns)


def _held_out(options: argparse.Namespace) -> Rows | None:
    """The test rows, to which new rows are compared; None if the fitted table is gone."""
    try:
        return runs.restore(options.run, trust_code=options.trust)[2]
    except DataError:  # the run itself has been restored before
        warn(
            "expected the fitted table, to whose test rows new rows are compared; got another or "
            "none: rows are compared to training rows, whose densities are in the run, and "
            "p-values are too small if the model overfits",
            DataWarning,
        )
        return None


def _of_classes(
    probabilities: np.ndarray,
    target: str,
    names: Sequence[str] | None,
    beside: Callable[[str], str],
) -> dict[str, ArrayLike]:
    """The most probable class, by its name if it has one, and the probabilities of all classes."""
    likeliest = probabilities.argmax(1)
    labels = range(probabilities.shape[1]) if names is None else names
    if len(labels) != probabilities.shape[1]:
        raise DataError(
            f"expected {probabilities.shape[1]} classes of {target!r} in the settings of the run; "
            f"got {len(labels)}"
        )
    each = {beside(f"{target}_is_{n}"): p for n, p in zip(labels, probabilities.T, strict=True)}
    return {target: likeliest if names is None else np.asarray(names)[likeliest], **each}


def _beside(targets: set[str], name: str) -> str:
    """A column name that differs from the targets' names, such as ``price_sd_`` if necessary."""
    return _beside(targets, f"{name}_") if name in targets else name
