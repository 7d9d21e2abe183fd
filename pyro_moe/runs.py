"""Run folders: what a fit learned, how, and how well, as files that any tool can read.

A folder holds ``parameters.safetensors``, ``settings.json``, ``history.csv`` and ``scores.json``.
"""

import json
import tempfile
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from pyro_moe import models
from pyro_moe.inference.errors import DataError

from .fitting import Fit
from .rows import Rows

STORIES: dict[str, type[nn.Module]] = {
    "gmm": models.GMM,
    "vae": models.VAE,
    "vade": models.VaDE,
    "dmvae": models.DMVAE,
    "me": models.ME,
    "deepmoe": models.DeepMoE,
    "hierarchicalme": models.HierarchicalME,
    "gmmmoe": models.GMMMoE,
    "vademoe": models.VaDEMoE,
    "dvmoe": models.DVMoE,
}


def prepare(folder: str | Path) -> Path:
    """Make a folder if there is none, and see that it can be written, before any work is done.

    Args:
        folder: Where a run shall be saved.

    Returns:
        The folder.

    Raises:
        DataError: If it cannot be written.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except OSError as error:
        raise DataError(
            f"expected a folder that can be written; got {folder} ({error.strerror})"
        ) from error


def save(
    fit: Fit,
    folder: str | Path,
    *,
    story_name: str,
    story_arguments: Mapping[str, Any],
    data_name: str,
    rows: Rows | None = None,
    scores: Mapping[str, Any] | None = None,
) -> Path:
    """Write a fit of a shipped story into a run folder; a run that is there is replaced.

    Args:
        fit: The fit.
        folder: Where to; it is made if there is none.
        story_name: One of `STORIES`.
        story_arguments: What the story was made with, as far as JSON can hold it.
        data_name: What was fitted, for the record.
        rows: The rows that were fitted, whose columns' names are recorded.
        scores: Numbers by name, for the record.

    Returns:
        The folder.

    Raises:
        DataError: If the folder cannot be written.
        ValueError: If the fit is not one of that story.

    Example:
        >>> import torch, pyro_moe
        >>> story = models.GMM(x_dim=2, num_components=3)
        >>> fit = pyro_moe.fit(story.model, story.guide, torch.eye(9, 2), epochs=1, progress=False)
        >>> arguments = {"x_dim": 2, "num_components": 3}
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = save(fit, folder, story_name="gmm", story_arguments=arguments, data_name="my")
        ...     loaded, settings = load(folder)
        >>> loaded.num_components, settings["fit"]["epochs"]
        (3, 1)
    """
    if not isinstance(fit.story, _story_class(story_name)):
        raise ValueError(f"expected a fit of a {story_name}; got {type(fit.story).__name__}")
    folder = prepare(folder)
    tensors = {key: t.detach().cpu().clone() for key, t in fit.story.state_dict().items()}
    settings = {
        "story": story_name,
        "story_arguments": dict(story_arguments),
        "data": data_name,
        "columns": rows and rows.columns,
        "targets": rows and rows.targets,
        "fit": {key: value for key, value in fit.settings.items() if not callable(value)},
        "versions": {name: version(name) for name in ("pyro-moe", "pyro-ppl", "torch")},
    }
    results = {"stopped": fit.stopped, "held_out_elbo": fit.held_out_elbo, **(scores or {})}
    save_file(tensors, folder / "parameters.safetensors")
    pd.DataFrame(fit.history).to_csv(folder / "history.csv", index=False)
    for name, content in (("settings.json", settings), ("scores.json", results)):
        (folder / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return folder


def load(folder: str | Path) -> tuple[nn.Module, dict[str, Any]]:
    """The story of a run folder with its parameters, and the settings of the run.

    The story is built from the name and the arguments in ``settings.json``, and only numbers
    are read from ``parameters.safetensors``: loading executes nothing that a file contains.

    A fit to evaluate wants rows, too, whose kind says what the story is about::

        story, settings = load(folder)
        fit = pyro_moe.fit(story.model, story.guide, rows, initialise="keep", epochs=0)

    Args:
        folder: What `save` wrote.

    Returns:
        The story, on the CPU, and the content of ``settings.json``.

    Raises:
        DataError: If a file is missing or damaged, or if the two do not belong together.
    """
    folder = Path(folder)
    try:
        settings = json.loads((folder / "settings.json").read_text(encoding="utf-8"))
        tensors = load_file(folder / "parameters.safetensors")
        story = _story_class(settings["story"])(**settings["story_arguments"])
        story.to(next(iter(tensors.values())).dtype).load_state_dict(tensors)
    except OSError as error:
        raise DataError(f"expected a run folder; got {folder} ({error.strerror})") from error
    except (LookupError, RuntimeError, SafetensorError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise DataError(
            f"expected a run folder with its files whole; got {folder} "
            f"({type(error).__name__}: {reason})"
        ) from error
    return story, settings


def _story_class(name: str) -> type[nn.Module]:
    if name not in STORIES:
        raise ValueError(f"expected a story in {tuple(STORIES)}; got {name!r}")
    return STORIES[name]
