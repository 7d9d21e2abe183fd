"""The fit of a run folder, with rows."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from safetensors import SafetensorError

from pyro_moe.datasets.source import Source
from pyro_moe.fitted import Fit, Training
from pyro_moe.fitted.matching import as_fitted, expect_width, in_order
from pyro_moe.fitted.training import fingerprint
from pyro_moe.fitting import fit
from pyro_moe.inference.context import without_warnings
from pyro_moe.inference.errors import ConvergenceWarning, DataError, DataWarning, warn
from pyro_moe.inference.objectives import LOSSES
from pyro_moe.inference.traces import create_parameters
from pyro_moe.mixtures.stored import as_rows, fitted_rows, with_formula
from pyro_moe.rows import Data, Rows, as_tensors

from .layout import HISTORY, PARAMETERS, SCORES, SETTINGS, TRAINING, damaged
from .loading import Run, loaded
from .remembered import remembered
from .schema import history_from, scores_from

NAMES = ("columns", "targets", "image_shape")


def fit_of(folder: str | Path, data: Data, *, trust_code: bool = False) -> Fit:
    """Load the fit of a run folder, with given rows as its data.

    Args:
        folder: A folder written by `save`.
        data: Rows with all columns that were fitted, or x alone. They need not be the training
            rows, of which the folder has a summary. Columns with names are matched by name. For a
            fit by formula, also a data frame with the variables of the formula, and with its
            weights, groups and labels. Without these, rows are not the training rows.
        trust_code: Whether to execute the story file of the run, if it has one, see `load`; and
            functions in its formula that are not known.

    Returns:
        The fit, on the CPU, with the saved history and settings. It can be evaluated but not
        resumed.

    Raises:
        DataError: If the run is damaged, if it has a story file and ``trust_code`` is false, or if
            the rows do not match the fitted data.

    Warns:
        DataWarning: If there are other columns than were fitted. They are left out.
    """
    return _fit_of(loaded(Path(folder), trust_code), data)


def _fit_of(run: Run, data: Data) -> Fit:
    settings, asked, story = run.settings, run.settings["fit"], run.story
    names: dict[str, Any] = {
        key: None if settings[key] is None else tuple(settings[key]) for key in NAMES
    }
    training, results = _training(run), _results(run)
    design = run.design
    about: dict[str, Any] = dict(data.annotations) if isinstance(data, Rows) else {}
    places: dict[str, Any] = {}
    if design is not None and isinstance(data, pd.DataFrame):
        data, about, places = fitted_rows(design, data)
    if "weights" in about:
        about["weight_type"] = asked.get("weight_type", "replication")
    data = in_order(data, names["columns"], names["targets"])
    missing = {
        "missing_targets": asked["missing_targets"],
        "missing_features": getattr(story, "missing_features", False),
    }
    columns = as_tensors(data, dtype=torch.float64, **missing)  # float64 loses no digits
    columns = _like_those_of(training, *columns)
    with without_warnings(DataWarning):  # of training rows, which these need not be
        kept = fit(
            story.model,
            story.guide,
            columns,
            **about,
            initialize="keep",
            epochs=0,
            loss="em" if asked["loss"] == "em" else "marginal",
            **missing,
            seed=asked["seed"],
            progress=False,
        )
    if run.params:
        _give_back(run, kept)
    restored = replace(kept, run=None, settings=asked, **results, **names)
    if fingerprint((*kept.data, *kept.annotations.columns)) != training.fingerprint:
        restored = replace(restored, restored=training)
    if design is None:
        return restored
    story = {"story_name": settings["story"], "story_arguments": settings["story_arguments"]}
    return with_formula(restored, design, settings["formula"], **story, **places)


def _training(run: Run) -> Training:
    """The summary of the training rows, whose columns must be those of the settings."""
    try:
        training = remembered(run.files[TRAINING])
    except (SafetensorError, RuntimeError, ValueError) as error:
        raise damaged(run.folder, TRAINING, error) from error
    widths = {"columns": len(training.low[0]), "image_shape": len(training.low[0])}
    if len(training.low) > 1:
        widths["targets"] = training.low[1].numel()
    for name, width in widths.items():
        found = run.settings[name]
        if found is None:
            continue
        got = torch.Size(found).numel() if name == "image_shape" else len(found)
        if got != width:
            reason = f"expected {name} of {width} columns; got {got}"
            raise damaged(run.folder, SETTINGS, reason)
    return training


def _results(run: Run) -> dict[str, Any]:
    """The history, and how training ended."""
    needed = ("temperature",) if run.settings["fit"]["loss"] in LOSSES else ()
    name = HISTORY
    try:
        history = history_from(run.files[name], needed=needed)
        name = SCORES
        scores = scores_from(run.files[name])
    except ValueError as error:
        raise damaged(run.folder, name, str(error)) from error
    ends = {key: scores[key] for key in ("held_out_elbo", "stopped")}
    if ends["stopped"]:
        warn(
            f"expected a fit that was trained to its end; got that of {run.folder}, "
            f"{ends['stopped']}",
            ConvergenceWarning,
        )
    return {"history": history, **ends}


def _like_those_of(
    training: Training, x: torch.Tensor, *others: torch.Tensor
) -> tuple[torch.Tensor, ...]:
    """Columns of the width and type of the training rows; y may be missing."""
    like = [value.unsqueeze(0) for value in training.low]
    expect_width(x, like[0], "x")
    return (x, *(as_fitted(*pair) for pair in zip(others, like[1:], strict=False)))


def _give_back(run: Run, fit: Fit) -> None:
    """Restore the unconstrained values of `pyro.param` statements."""
    programs = fit.programs
    create_parameters(programs.model, programs.guide, programs.store, *fit.example)
    store = fit.programs.store["params"]
    for name, value in run.params.items():
        if name not in store or store[name].shape != value.shape:
            raise damaged(run.folder, PARAMETERS, f"expected values of pyro.param; got {name}")
        store[name] = value.requires_grad_()


def restore(
    folder: str | Path,
    data: str | Path | Rows | pd.DataFrame | None = None,
    *,
    trust_code: bool = False,
    **reading: Any,
) -> tuple[Fit, Rows, Rows]:
    """Load the fit of a run folder, with its training and test rows.

    Args:
        folder: A folder written by `save`.
        data: None for the fitted data at their recorded path; the new path of a table that has
            moved; or another table or `Rows`, or for a fit by formula a data frame, which are then
            returned as training rows and as test rows.
        trust_code: Whether to execute the story file of the run, if it has one, see `load`.
        **reading: ``sep``, ``decimal`` and ``encoding`` of the table, see `datasets.table`, if
            they are others than those of the fitted table.

    Returns:
        The fit, on the CPU, with the saved history and settings, and training and test rows. It
        can be evaluated but not resumed.

    Raises:
        DataError: If the run is damaged, if it has a story file and ``trust_code`` is false, or if
            the data are missing or have changed.

    Example:
        >>> import pyro_moe, tempfile
        >>> story = pyro_moe.models.GMM(x_dim=2, num_components=3)
        >>> x = torch.eye(9, 2)
        >>> fit = pyro_moe.fit(story.model, story.guide, x, epochs=4, progress=False)
        >>> arguments = {"x_dim": 2, "num_components": 3}
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = pyro_moe.runs.save(
        ...         fit, folder, story_name="gmm", story_arguments=arguments, data_name="my"
        ...     )
        ...     restored, train, test = restore(folder, Rows(x))
        >>> len(restored.history), len(test)
        (4, 9)
    """
    run = loaded(Path(folder), trust_code)
    if run.design is not None and not isinstance(data, Rows):
        return _restored_by_formula(run, data, reading)
    if isinstance(data, Rows):
        return _fit_of(run, data), data, data
    source, settings = run.settings["source"], run.settings
    if source is None and data is None:
        raise _no_record(run)
    if source is None:
        source = {"name": str(data), "target": settings["targets"] or ()}
    train, test = Source(**source).rows_again(data, columns=settings["columns"], **reading)
    return _fit_of(run, train), train, test


def _restored_by_formula(
    run: Run, data: str | Path | pd.DataFrame | None, reading: dict[str, Any]
) -> tuple[Fit, Rows, Rows]:
    """The fit of a run by formula, with training and test rows as its design makes them."""
    design, source = run.design, run.settings["source"]
    if design is None or (source is None and data is None):
        raise _no_record(run)
    if isinstance(data, pd.DataFrame):
        train = test = data
    else:
        source = Source(**(source or {"name": str(data)}))
        train, test = source.frames_again(data, design.texts, **reading)
    rows = as_rows(design, train)
    return _fit_of(run, train), rows, rows if test is train else as_rows(design, test)


def _no_record(run: Run) -> DataError:
    return DataError(f"expected data=…, because {run.folder} has no record of its data; got none")
