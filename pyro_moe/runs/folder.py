"""Run folders: the parameters, settings, history and scores of a fit in standard file formats.

A folder has the files ``parameters.safetensors``, ``settings.json``, ``history.csv``,
``scores.json`` and ``training.safetensors``, a summary of the training rows. It has no rows. It
also has ``story.py`` if the story was read from a story file.
"""

import csv
import json
import tempfile
import warnings
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from safetensors.torch import save as serialized
from torch import nn

from pyro_moe.datasets.source import Source
from pyro_moe.fitted import Fit, Training
from pyro_moe.fitted.matching import as_fitted, expect_width, in_order
from pyro_moe.fitted.training import fingerprint
from pyro_moe.fitting import fit
from pyro_moe.inference.context import reproducible, running
from pyro_moe.inference.errors import DataError, DataWarning
from pyro_moe.inference.traces import enumerated_traces
from pyro_moe.rows import Data, Rows, as_tensors

from .remembered import remember, remembered, remembers
from .shipped import shipped
from .story_file import StoryFile, read

_STORY_COPY = "story.py"
_PARAM = "pyro.param."


def prepare(folder: str | Path, story_file: StoryFile | None = None) -> Path:
    """Create a run folder if necessary, and check that it is writable.

    Args:
        folder: The run folder.
        story_file: The story file, if a copy of it will be saved.

    Returns:
        The folder.

    Raises:
        DataError: If the folder is not writable, or has another story.py that is not part of a
            run.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise DataError(
            f"expected a folder that can be written; got {folder} ({error.strerror})"
        ) from error
    if story_file is not None:
        _check_copy(folder, story_file)
    return folder


def _check_copy(folder: Path, story_file: StoryFile) -> None:
    """Check that saving the copy of a story file overwrites only the copy of another run."""
    copy = folder / _STORY_COPY
    if not copy.exists() or copy.read_bytes() == story_file.content:
        return
    if not (folder / "settings.json").exists() or not _of_file(settings_of(folder)["story"]):
        raise DataError(f"expected a folder without another {_STORY_COPY}; got {folder}")


def save(
    fit: Fit,
    folder: str | Path,
    *,
    story_name: str | None = None,
    story_file: StoryFile | None = None,
    story_arguments: Mapping[str, Any],
    data_name: str,
    source: Source | None = None,
    rows: Rows | None = None,
    scores: Mapping[str, Any] | None = None,
) -> Path:
    """Save a fit to a run folder. An existing run in this folder is overwritten.

    Args:
        fit: The fit.
        folder: The run folder. It is created if necessary.
        story_name: One of `STORIES`, for a shipped story.
        story_file: The story file of any other story. The folder gets a copy of it.
        story_arguments: The arguments of the story's constructor, in types that JSON supports.
        data_name: A name of the data, for the record.
        source: The source of the rows, from which `restore` loads them again.
        rows: The fitted rows, whose names are recorded if the fit has none.
        scores: Scores by name, for the record.

    Returns:
        The folder.

    Raises:
        DataError: If the folder is not writable.
        ValueError: If the fit is not a fit of this story.

    Example:
        >>> import pyro_moe, torch
        >>> story = pyro_moe.models.GMM(x_dim=2, num_components=3)
        >>> fit = pyro_moe.fit(story.model, story.guide, torch.eye(9, 2), epochs=1, progress=False)
        >>> arguments = {"x_dim": 2, "num_components": 3}
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = save(fit, folder, story_name="gmm", story_arguments=arguments, data_name="my")
        ...     loaded, settings = load(folder)
        >>> loaded.num_components, settings["fit"]["epochs"]
        (3, 1)
    """
    name = story_name if story_file is None else story_file.name
    if not isinstance(fit.story, shipped(name) if story_file is None else story_file.story):
        raise ValueError(f"expected a fit of a {name}; got {type(fit.story).__name__}")
    folder = prepare(folder, story_file)
    named = fit.story.state_dict() | {_PARAM + name: p for name, p in _params(fit).items()}
    tensors = {key: tensor.detach().cpu().clone() for key, tensor in named.items()}
    settings = {
        "story": name,
        "story_arguments": dict(story_arguments),
        "data": data_name,
        "source": source and asdict(source),
        "columns": fit.columns or (rows and rows.columns),
        "targets": fit.targets or (rows and rows.targets),
        "image_shape": fit.image_shape or (rows and rows.image_shape),
        "fit": {key: value for key, value in fit.settings.items() if not callable(value)},
        "versions": {name: version(name) for name in ("pyro-moe", "pyro-ppl", "torch")},
    }
    results = {"stopped": fit.stopped, "held_out_elbo": fit.held_out_elbo, **(scores or {})}
    if story_file is not None:
        (folder / _STORY_COPY).write_bytes(story_file.content)
    same = _written(folder / "parameters.safetensors", serialized(tensors))
    remember(fit, folder, same_parameters=same)
    pd.DataFrame(fit.history).to_csv(folder / "history.csv", index=False)
    for name, content in (("settings.json", settings), ("scores.json", results)):
        (folder / name).write_text(
            json.dumps(content, indent=2, default=_as_number) + "\n", encoding="utf-8"
        )
    return folder


def _written(path: Path, content: bytes) -> bool:
    """Write a file, and tell whether it had this content before."""
    same = path.exists() and path.read_bytes() == content
    if not same:
        path.write_bytes(content)
    return same


def _as_number(value: Any) -> Any:
    """A number of numpy or torch as one of Python."""
    if not hasattr(value, "item"):
        raise TypeError(f"expected values that JSON supports; got {type(value).__name__}")
    return value.item()


def load(folder: str | Path) -> tuple[nn.Module, dict[str, Any]]:
    """Load the story of a run folder with its parameters, and the settings of the run.

    Warning: if the run is of a story file, loading executes the ``story.py`` in the folder with
    your permissions. Load such a run only if you trust its source. A shipped story is built from
    its name and arguments in ``settings.json``, and ``parameters.safetensors`` contains only
    numbers. Loading such a run does not execute code from the folder.

    Values of `pyro.param` statements do not belong to the story's modules and are not restored
    here. For a fit that can be evaluated, and that has these values, see `fit_of` and `restore`.

    Args:
        folder: A folder written by `save`.

    Returns:
        The story, on the CPU, and the content of ``settings.json``.

    Raises:
        DataError: If a file is missing or damaged, or if parameters and settings do not match.
    """
    story, settings, _ = _loaded(folder)
    return story, settings


def _loaded(
    folder: str | Path,
) -> tuple[nn.Module, dict[str, Any], dict[str, torch.Tensor]]:
    """The story and settings of a run, and its unconstrained `pyro.param` values."""
    folder, settings = Path(folder), settings_of(folder)
    try:
        tensors = load_file(folder / "parameters.safetensors")
        story = _story_class(settings["story"], folder)(**settings["story_arguments"])
        dtypes = [tensor.dtype for tensor in tensors.values() if tensor.is_floating_point()]
        params = {
            k.removeprefix(_PARAM): tensors.pop(k) for k in [*tensors] if k.startswith(_PARAM)
        }
        story.to(dtypes[0] if dtypes else torch.get_default_dtype()).eval().load_state_dict(tensors)
    except OSError as error:
        raise DataError(f"expected a run folder; got {folder} ({error.strerror})") from error
    except (LookupError, RuntimeError, SafetensorError, TypeError, ValueError) as error:
        raise _damaged(folder, error) from error
    return story, settings, params


def settings_of(folder: str | Path) -> dict[str, Any]:
    """The settings of a run: the content of its ``settings.json``.

    Args:
        folder: A folder written by `save`.

    Raises:
        DataError: If the file is missing or damaged.
    """
    try:
        return json.loads(Path(folder, "settings.json").read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"expected a run folder; got {folder} ({error.strerror})") from error
    except ValueError as error:
        raise _damaged(folder, error) from error


def _damaged(folder: str | Path, error: Exception) -> DataError:
    reason = " ".join(str(error).split())
    return DataError(
        f"expected a run folder with valid files; got {folder} ({type(error).__name__}: {reason})"
    )


def fit_of(folder: str | Path, data: Data) -> Fit:
    """Load the fit of a run folder, with given rows as its data.

    Warning: like `load`, this executes the story file of the run if there is one.

    Args:
        folder: A folder written by `save`.
        data: Rows with all columns that were fitted, or x alone. They need not be the training
            rows, of which the folder has a summary. Columns with names are matched by name.

    Returns:
        The fit, on the CPU, with the saved history and settings. It can be evaluated but not
        resumed.

    Raises:
        DataError: If the run is damaged, or the rows do not match the fitted data.

    Warns:
        DataWarning: If there are other columns than were fitted. They are left out.
    """
    return _fit_of(Path(folder), data)


def _fit_of(folder: Path, data: Data, *, trained: bool = False) -> Fit:
    """The fit, with given rows, which are those of training if they are known to be."""
    story: Any
    story, settings, params = _loaded(folder)
    names: dict[str, Any] = {
        key: _tuple(settings.get(key)) for key in ("columns", "targets", "image_shape")
    }
    asked, training = settings["fit"], _remembered(folder)
    missing = asked.get("missing_targets", False)
    data = in_order(data, names["columns"], names["targets"])
    columns = as_tensors(data, dtype=torch.float64, missing_targets=missing)  # loses no digits
    if training.low:
        columns = _like_those_of(training, *columns)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DataWarning)  # of training rows, which these need not be
        kept = fit(
            story.model,
            story.guide,
            columns,
            initialize="keep",
            epochs=0,
            loss="em" if asked["loss"] == "em" else "marginal",
            missing_targets=missing,
            seed=asked["seed"],
            progress=False,
        )
    if params:
        _give_back(kept, params)
    history, results = _results(folder)
    ends: dict[str, Any] = {key: results.get(key) for key in ("held_out_elbo", "stopped")}
    restored = replace(kept, run=None, settings=asked, history=history, **names, **ends)
    if trained or fingerprint(kept.data) == training.fingerprint:
        return restored
    return replace(restored, restored=training)


def _like_those_of(
    training: Training, x: torch.Tensor, *others: torch.Tensor
) -> tuple[torch.Tensor, ...]:
    """Columns of the width and type of the training rows; y may be missing."""
    like = [value.unsqueeze(0) for value in training.low]
    expect_width(x, like[0], "x")
    return (x, *(as_fitted(*pair) for pair in zip(others, like[1:], strict=False)))


def _remembered(folder: Path) -> Training:
    try:
        return remembered(folder)
    except (LookupError, OSError, SafetensorError, TypeError, ValueError) as error:
        raise _damaged(folder, error) from error


def _tuple(values: list[Any] | None) -> tuple[Any, ...] | None:
    return None if values is None else tuple(values)


def _params(fit: Fit) -> dict[str, torch.Tensor]:
    """The unconstrained `pyro.param` values of a fit that do not belong to a module."""
    parts = fit.programs.modules
    own = {id(parameter) for part in parts for parameter in part.parameters()}
    store = fit.programs.store["params"]
    return {name: value for name, value in store.items() if id(value) not in own}


def _give_back(fit: Fit, params: dict[str, torch.Tensor]) -> None:
    """Restore the unconstrained values of `pyro.param` statements."""
    batch = fit.example  # one execution registers the constraints
    with (
        torch.no_grad(),
        running(fit.programs.store),
        reproducible(0),
    ):
        enumerated_traces(fit.programs.model, fit.programs.guide, *batch)
    for name, value in params.items():
        fit.programs.store["params"][name] = value.requires_grad_()


def restore(
    folder: str | Path, data: str | Path | Rows | None = None, **reading: Any
) -> tuple[Fit, Rows, Rows]:
    """Load the fit of a run folder, with its training and test rows.

    Warning: like `load`, this executes the story file of the run if there is one.

    Args:
        folder: A folder written by `save`.
        data: None for the fitted data at their recorded path; the new path of a table that has
            moved; or another table or `Rows`, which are then returned as training rows and as
            test rows.
        **reading: ``sep``, ``decimal`` and ``encoding`` of the table, see `datasets.table`, if
            they are others than those of the fitted table.

    Returns:
        The fit, on the CPU, with the saved history and settings, and training and test rows. It
        can be evaluated but not resumed.

    Raises:
        DataError: If the run is damaged, or the data are missing or have changed.

    Example:
        >>> import pyro_moe, torch
        >>> story = pyro_moe.models.GMM(x_dim=2, num_components=3)
        >>> x = torch.eye(9, 2)
        >>> fit = pyro_moe.fit(story.model, story.guide, x, epochs=4, progress=False)
        >>> arguments = {"x_dim": 2, "num_components": 3}
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = save(fit, folder, story_name="gmm", story_arguments=arguments, data_name="my")
        ...     restored, train, test = restore(folder, Rows(x))
        >>> len(restored.history), len(test)
        (4, 9)
    """
    folder = Path(folder)
    if isinstance(data, Rows):
        return _fit_of(folder, data), data, data
    train, test = _rows_again(folder, settings_of(folder), data, reading)
    old = not remembers(folder)  # a record of the data then has to do
    return _fit_of(folder, train, trained=old and train is not test), train, test


def _rows_again(
    folder: str | Path,
    settings: dict[str, Any],
    data: str | Path | None,
    reading: dict[str, Any],
) -> tuple[Rows, Rows]:
    source = settings.get("source")
    if source is None and data is None:
        raise DataError(f"expected data=…, because {folder} has no record of its data; got none")
    if source is None:
        source = {"name": str(data), "target": settings["targets"] or ()}
    return Source(**source).rows_again(data, columns=settings["columns"], **reading)


def _results(folder: str | Path) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The history and the scores of a run."""
    try:
        scores = json.loads(Path(folder, "scores.json").read_text(encoding="utf-8"))
        with Path(folder, "history.csv").open(encoding="utf-8", newline="") as file:
            table = list(csv.DictReader(file))
    except (OSError, ValueError) as error:
        raise _damaged(folder, error) from error
    return [{key: _value(text) for key, text in row.items() if text} for row in table], scores


def _value(text: str) -> int | float | str:
    for kind in (int, float):
        with suppress(ValueError):
            return kind(text)
    return text


def _of_file(name: str) -> bool:
    """Whether the name is that of a story file."""
    return name.endswith(".py")


def _story_class(name: str, folder: Path) -> type[nn.Module]:
    return read(folder / _STORY_COPY).story if _of_file(name) else shipped(name)
