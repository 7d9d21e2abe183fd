"""Saving a fit as a run folder."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from safetensors.torch import save as serialized

from pyro_moe.datasets.source import Source
from pyro_moe.fitted import Fit
from pyro_moe.inference.errors import DataError
from pyro_moe.mixtures import FormulaFit
from pyro_moe.mixtures.stored import formula_of
from pyro_moe.rows import Rows
from pyro_moe.stories import shipped

from .layout import HISTORY, PARAM, PARAMETERS, SCORES, SETTINGS, STORY, TRAINING, as_json, sealed
from .reading import contents_of
from .remembered import remember
from .same import expect_same_story
from .story_file import StoryFile
from .swap import exchange, writer


def save(
    fit: Fit,
    folder: str | Path,
    *,
    story_name: str | None = None,
    story_file: StoryFile | None = None,
    story_arguments: Mapping[str, Any] | None = None,
    data_name: str = "table",
    source: Source | None = None,
    rows: Rows | None = None,
    scores: Mapping[str, Any] | None = None,
) -> Path:
    """Save a fit to a run folder. An existing run in this folder is replaced, all at once.

    If saving fails or is killed, the folder has the old run or the new one, whole. The report and
    the pictures of another run are removed. All other files in the folder are left as they are.

    Args:
        fit: The fit.
        folder: The run folder. It is created if necessary.
        story_name: One of `STORIES`, for a shipped story.
        story_file: The story file of any other story. The folder gets a copy of it.
        story_arguments: The arguments of the story's constructor, in types that JSON supports. A
            fit of `mixture` knows them, and its story's name.
        data_name: A name of the data, for the record.
        source: The source of the rows, from which `restore` loads them again.
        rows: The fitted rows, whose names are recorded if the fit has none.
        scores: Scores by name, for the record.

    Returns:
        The folder.

    Raises:
        DataError: If a file cannot be written, if another process or thread writes this folder, or
            if the folder has files with the names of a run's that do not belong to a run.
        ValueError: If the fit is not a fit of this story with these arguments, or if something
            cannot be saved as text and numbers.

    Example:
        >>> import pyro_moe, tempfile
        >>> story = pyro_moe.models.GMM(x_dim=2, num_components=3)
        >>> fit = pyro_moe.fit(story.model, story.guide, torch.eye(9, 2), epochs=1, progress=False)
        >>> arguments = {"x_dim": 2, "num_components": 3}
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = save(fit, folder, story_name="gmm", story_arguments=arguments, data_name="my")
        ...     loaded, settings = pyro_moe.runs.load(folder)
        >>> loaded.num_components, settings["fit"]["epochs"]
        (3, 1)
    """
    if isinstance(fit, FormulaFit):
        story_name = story_name or (fit.story_name if story_file is None else None)
        story_arguments = fit.story_arguments if story_arguments is None else story_arguments
    name = story_name if story_file is None else story_file.name
    if name is None or story_arguments is None:
        raise ValueError("expected story_arguments=…, and story_name=… or story_file=…; got none")
    story_class = shipped(name) if story_file is None else story_file.story
    if not isinstance(fit.story, story_class):
        raise ValueError(f"expected a fit of a {name}; got {type(fit.story).__name__}")
    plain = json.loads(as_json(story_arguments))
    expect_same_story(fit, story_class, plain)
    settings = {
        "story": name,
        "story_arguments": plain,
        "data": data_name,
        "source": source and asdict(source),
        "columns": fit.columns or (rows and rows.columns),
        "targets": fit.targets or (rows and rows.targets),
        "image_shape": fit.image_shape or (rows and rows.image_shape),
        "fit": {key: value for key, value in fit.settings.items() if not callable(value)},
        "versions": {name: version(name) for name in ("pyro-moe", "pyro-ppl", "torch")},
    }
    if isinstance(fit, FormulaFit):
        settings["formula"] = formula_of(fit)
    results = {"stopped": fit.stopped, "held_out_elbo": fit.held_out_elbo, **(scores or {})}
    with writer(folder, code=None if story_file is None else story_file.content) as path:
        files = {PARAMETERS: _parameters(fit)}
        files[TRAINING] = remember(fit, _training_before(path, files[PARAMETERS]))
        files[HISTORY] = pd.DataFrame(fit.history).to_csv(index=False).encode()
        files[SCORES] = as_json(results)
        if story_file is not None:
            files[STORY] = story_file.content
        exchange(path, {**files, SETTINGS: sealed(settings, files)})
    return path


def _parameters(fit: Fit) -> bytes:
    """The state of the story, and the unconstrained `pyro.param` values outside of modules."""
    own = {id(parameter) for part in fit.programs.modules for parameter in part.parameters()}
    others = fit.programs.store["params"].items()
    params = {PARAM + name: value for name, value in others if id(value) not in own}
    tensors: dict[str, torch.Tensor] = fit.story.state_dict() | params
    return serialized({key: tensor.detach().cpu().clone() for key, tensor in tensors.items()})


def _training_before(folder: Path, parameters: bytes) -> bytes | None:
    """The summary of the training rows in the run of a folder, if it has these parameters."""
    try:
        _, files = contents_of(folder)
    except DataError:  # no run, or a damaged one
        return None
    return files[TRAINING] if files[PARAMETERS] == parameters else None
