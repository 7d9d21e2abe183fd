"""The story of a run folder, with its parameters."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load as tensors_from
from torch import nn

from pyro_moe.inference.errors import DataError
from pyro_moe.mixtures.formulas import Design
from pyro_moe.mixtures.stored import design_of, program_of
from pyro_moe.models import Predictor
from pyro_moe.models.parts.networks import Standardize
from pyro_moe.stories import shipped

from . import story_file
from .layout import PARAM, PARAMETERS, SETTINGS, STORY, damaged, digest
from .reading import contents_of

TYPES = (torch.float32, torch.float64)


def load(folder: str | Path, *, trust_code: bool = False) -> tuple[nn.Module, dict[str, Any]]:
    """Load the story of a run folder with its parameters, and the settings of the run.

    A shipped story is built from its name and arguments in ``settings.json``, and
    ``parameters.safetensors`` contains only numbers. Nothing in the folder is executed. The story
    of a story file is a program, ``story.py`` in the folder. It is executed with your permissions
    if you say so.

    Values of `pyro.param` statements do not belong to the story's modules and are not restored
    here. For a fit that can be evaluated, and that has these values, see `fit_of` and `restore`.

    Args:
        folder: A folder written by `save`.
        trust_code: Whether to execute ``story.py`` if the run is of a story file, and expressions
            in a formula that are beyond known functions. Say so only if you trust the source of
            the folder.

    Returns:
        The story, on the CPU, and the content of ``settings.json``.

    Raises:
        DataError: If a file is missing or damaged, if parameters and settings do not match, or if
            the run has a program and ``trust_code`` is false.
    """
    run = loaded(Path(folder), trust_code)
    return run.story, run.settings


class Run(NamedTuple):
    """What a run folder holds.

    Attributes:
        folder: The folder.
        story: The story, with its parameters.
        settings: The content of ``settings.json``.
        params: Its unconstrained values of `pyro.param` statements, by name.
        files: The contents of the other files, by name.
        design: The coding of its formula, or None.
    """

    folder: Path
    story: Any
    settings: dict[str, Any]
    params: dict[str, torch.Tensor]
    files: dict[str, bytes]
    design: Design | None = None


def loaded(folder: Path, trust_code: bool) -> Run:
    """The run of a folder, see `load`."""
    settings, files = contents_of(folder)
    design = _design(folder, settings, trust_code)
    if STORY in files:
        story_class = _trusted(folder, files[STORY], trust_code)
    else:
        story_class = shipped(settings["story"])
    try:
        tensors = tensors_from(files[PARAMETERS])
    except (SafetensorError, RuntimeError, ValueError) as error:
        raise damaged(folder, PARAMETERS, error) from error
    params = {
        name.removeprefix(PARAM): tensors.pop(name) for name in [*tensors] if name.startswith(PARAM)
    }
    if params and STORY not in files:
        raise damaged(folder, PARAMETERS, f"expected no value of pyro.param; got {[*params]}")
    arguments = settings["story_arguments"]
    if STORY not in files:  # first without memory, of which damaged arguments could ask too much
        _check_sizes(folder, arguments, sum(tensor.numel() for tensor in tensors.values()))
        with torch.device("meta"):
            _check_names(folder, _built(folder, story_class, arguments), tensors)
    story = _built(folder, story_class, arguments)
    _check_names(folder, story, tensors)
    _give(folder, story, tensors, params)
    return Run(folder, story.eval(), settings, params, files, design)


def _design(folder: Path, settings: dict[str, Any], trust_code: bool) -> Design | None:
    """The design of a run by formula, of which no program is executed unless it is trusted."""
    if "formula" not in settings:
        return None
    try:
        part = program_of(settings["formula"])
        design = design_of(settings["formula"])
        if list(design.columns) != settings["columns"]:
            raise ValueError(f"expected columns of the formula; got {settings['columns']}")
    except Exception as error:
        raise damaged(folder, SETTINGS, error) from error
    if part is not None and not trust_code:
        raise DataError(
            f"expected trust_code=True (on the command line, --trust), since the formula of "
            f"{folder} has a program that would be executed; got {part!r}"
        )
    return design


def _trusted(folder: Path, content: bytes, trust_code: bool) -> type[nn.Module]:
    if not trust_code:
        raise DataError(
            f"expected trust_code=True (on the command line, --trust), since {folder} has a "
            f"program, {STORY}, that would be executed; got {STORY} with SHA-256 {digest(content)}"
        )
    return story_file.executed(folder / STORY, content).story


def _check_sizes(folder: Path, arguments: dict[str, Any], most: int) -> None:
    """Check that no argument asks for more than there are numbers; those of a tree multiply."""
    for name, value in arguments.items():
        given = value if isinstance(value, list) else [value]
        sizes = [abs(each) for each in given if isinstance(each, int)] or [0]
        if (math.prod(sizes) if name == "num_components" else max(sizes)) > most:
            raise damaged(
                folder, SETTINGS, f"expected {name} of at most {most}, as parameters; got {value}"
            )


def _built(folder: Path, story: type[nn.Module], arguments: dict[str, Any]) -> nn.Module:
    try:
        return story(**with_predictors(arguments))
    except Exception as error:
        raise damaged(folder, SETTINGS, error) from error


def with_predictors(arguments: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a story, with what its linear predictors are made of as `Predictor`.

    Raises:
        ValueError: If experts or gate have columns that x lacks.
    """
    given, width = arguments.get("predictor"), arguments.get("x_dim", 0)
    _check_columns(arguments.get("gate_columns") or (), width)
    if given is None:
        return arguments
    found = [_predictor(each, width) for each in (given if isinstance(given, list) else [given])]
    return {**arguments, "predictor": found if isinstance(given, list) else found[0]}


def _predictor(given: Any, width: int) -> Predictor:
    found = Predictor(**given)
    single = [each for each in (found.offset_column, found.trials_column) if each is not None]
    _check_columns([*(found.columns or ()), *found.shared, *single], width)
    return found


def _check_columns(columns: Sequence[Any], width: int) -> None:
    for column in columns:
        if not (type(column) is int and 0 <= column < width):
            raise ValueError(f"expected columns of x from 0 to {width - 1}; got {column!r}")


def _check_names(folder: Path, story: nn.Module, tensors: dict[str, torch.Tensor]) -> None:
    """Check that the tensors are those of the story, of the same shapes and kinds."""
    expected = story.state_dict()
    for name in expected.keys() ^ tensors.keys():
        where = "its arguments" if name in tensors else PARAMETERS
        raise damaged(folder, PARAMETERS, f"expected the tensors of the story; {where} lack {name}")
    for name, like in expected.items():
        shapes = tuple(like.shape), tuple(tensors[name].shape)
        if shapes[0] != shapes[1]:
            raise damaged(
                folder, PARAMETERS, f"expected {name} of shape {shapes[0]}; got {shapes[1]}"
            )


def _give(
    folder: Path,
    story: nn.Module,
    tensors: dict[str, torch.Tensor],
    params: dict[str, torch.Tensor],
) -> None:
    """Give a story its parameters, all in one floating-point type, finite, with positive units."""
    both = {**tensors, **params}
    types = {each.dtype for each in both.values() if each.is_floating_point()}
    if len(types) > 1 or not types <= {*TYPES}:
        raise damaged(folder, PARAMETERS, f"expected one type of {TYPES}; got {[*types]}")
    story.to(types.pop() if types else torch.get_default_dtype())
    for name, like in story.state_dict().items():
        if like.dtype != tensors[name].dtype:
            got = tensors[name].dtype
            raise damaged(folder, PARAMETERS, f"expected {name} of type {like.dtype}; got {got}")
    for name, each in both.items():
        if not each.isfinite().all():
            raise damaged(folder, PARAMETERS, f"expected finite numbers; got others in {name}")
    story.load_state_dict(tensors)
    for name, each in story.state_dict().items():
        if not each.equal(tensors[name]):  # units that parts of the story share have several names
            raise damaged(folder, PARAMETERS, f"expected one value of shared numbers; got {name}")
    for name, part in story.named_modules():
        if isinstance(part, Standardize) and not (part.scale > 0).all():
            raise damaged(folder, PARAMETERS, f"expected positive units; got others in {name}")
