"""The story, its arguments and the source of its rows, from command-line options."""

import argparse
import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from pyro import poutine
from pyro.poutine.util import prune_subsample_sites
from torch import nn

from pyro_moe import datasets, runs
from pyro_moe.datasets.source import Source
from pyro_moe.fitted import Fit
from pyro_moe.inference.context import reproducible, running
from pyro_moe.inference.errors import DataError
from pyro_moe.inference.handlers import Discretize
from pyro_moe.mixtures import FormulaFit
from pyro_moe.rows import Rows, looks_like_classes
from pyro_moe.runs import story_file
from pyro_moe.runs.story_file import StoryFile
from pyro_moe.text import in_one_line

from .options.inputs import READING

# Arguments of a story's constructor by data set, unless the command line sets them.
STORY_DEFAULTS: dict[str, dict[str, Any]] = {
    "spiral": {"num_components": 5, "z_dim": 2},
    "digits": {"num_components": 10, "z_dim": 10, "common_scale": True},
    "mnist": {
        "num_components": 10,
        "z_dim": 10,
        "likelihood": "bernoulli",
        "hidden": (500, 500, 2000),
    },
}
TABLE_DEFAULTS = {"num_components": 3, "z_dim": 10}  # z_dim is at most the number of columns of x
OPTIONS = (
    "num_components",
    "num_groups",
    "z_dim",
    "likelihood",
    "covariance",
    "experts",
    "context",
)
ANNOTATIONS = ("weights", "groups", "labels")
TARGET_ARGUMENTS = ("y_dim", "num_classes")
Parameters = Mapping[str, inspect.Parameter]


def story_class(name: str) -> tuple[type[nn.Module], StoryFile | None]:
    """A shipped story by its name and None, or the story of a file and the file by its path."""
    if name in runs.STORIES:
        return runs.STORIES[name], None
    file = story_file.read(name)
    return file.story, file


def has_target(known: Parameters) -> bool:
    """Whether a story with these constructor parameters has a target y."""
    return not known.keys().isdisjoint(TARGET_ARGUMENTS)


def reading(options: argparse.Namespace) -> dict[str, Any]:
    """Those of these options that are given."""
    asked = {name: vars(options)[name] for name in READING}
    return {name: value for name, value in asked.items() if value is not None}


def check_weight_type(options: argparse.Namespace) -> None:
    """Check that there are weights for their type.

    Raises:
        ValueError: If there are none.
    """
    if options.weight_type is not None and options.weights is None:
        raise ValueError("expected --weights, a column of the table, with --weight-type; got none")


def check_resumed(options: argparse.Namespace) -> None:
    """Check that a resumed run has the annotations with which it began, if it is known.

    Raises:
        ValueError: If one is missing, or another.
    """
    try:
        settings = runs.settings_of(options.resume)
    except DataError:  # it was killed before there were settings
        return
    recorded = (settings.get("formula") or {}).get("design") or settings["source"] or {}
    pairs = {name: (recorded.get(name), vars(options)[name]) for name in ANNOTATIONS}
    types = settings["fit"].get("weight_type"), options.weight_type
    pairs["weight_type"] = (types[0] or "replication", types[1] or "replication")
    for name, (before, given) in pairs.items():
        if given != before:
            option = "--" + name.replace("_", "-")
            expected = f"no {option}" if before is None else f"{option} {before}"
            raise ValueError(
                f"expected {expected} with --resume {options.resume}, as it began; "
                f"got {given or 'none'}"
            )


def classes_of(run: str, fit: Fit) -> tuple[str, ...] | None:
    """The names of the classes of the one target of a run that has classes, or None."""
    if isinstance(fit, FormulaFit) and fit.design.classes is not None:
        return tuple(map(str, fit.design.classes))
    named = [*((runs.settings_of(run)["source"] or {}).get("classes") or {}).values()]
    return tuple(named[0]) if len(named) == 1 else None


def which_rows(data: str | None, train: Rows, test: Rows) -> str:
    """Which rows are evaluated: those of other data, those set aside, or if there are none, all."""
    if data:
        return f"of {data}"
    return "that were fitted" if test is train else "that were not fitted"


def source(options: argparse.Namespace, known: Parameters) -> Source:
    """The source of the rows.

    Raises:
        ValueError: If the story requires a target and none is given, or the reverse.
    """
    made = options.data in STORY_DEFAULTS
    _check_target(options, made, has_target(known))
    in_file = options.story not in runs.STORIES
    likelihood = options.likelihood or STORY_DEFAULTS.get(options.data, {}).get("likelihood")
    binary = likelihood == "bernoulli" and not (in_file and "likelihood" not in known)
    return Source(
        options.data,
        target=tuple(options.target or ()),
        columns=options.columns,
        index=tuple(options.index or ()),
        data_dir=options.data_dir,
        binary=options.data == "mnist" and binary and not has_target(known),
        made_targets=made and has_target(known),
        drop_missing=options.drop_missing,
        missing_targets=options.missing_targets,
        classes=_classes(options, known),
        **(reading(options) | {name: vars(options).get(name) for name in ANNOTATIONS}),
    )


def _check_target(options: argparse.Namespace, made: bool, wanted: bool) -> None:
    if options.target and (made or not wanted):
        where = f"data {options.data}" if made else f"story {options.story}"
        raise ValueError(f"expected no --target with {where}; got {' '.join(options.target)}")
    for name in ("columns", "index", "drop_missing", *ANNOTATIONS, *READING):
        if made and vars(options).get(name):
            option = name.replace("_", "-")
            raise ValueError(f"expected --{option} with a table; got it with data {options.data}")
    if wanted and not made and not options.target:
        raise ValueError(f"expected --target, the column that {options.story} predicts; got none")
    if options.missing_targets and not options.target:
        raise ValueError("expected --target with --missing-targets; got none")


def _classes(options: argparse.Namespace, known: Parameters) -> dict[str, tuple[str, ...]]:
    """The classes of text targets, if the story supports classes."""
    in_file = options.story not in runs.STORIES
    if not options.target or not (in_file or options.experts in ("categorical", "bernoulli")):
        return {}
    found = {}
    for target in options.target:
        names = datasets.class_names(options.data, target, **reading(options))
        if names is None:
            continue
        if len(names) != 2 and not _wants_classes(options, known):
            some = ", ".join(map(in_one_line, names[:5])) + (", …" if len(names) > 5 else "")
            hint = "; for more classes, give Story num_classes instead of y_dim" if in_file else ""
            raise ValueError(
                f"expected two classes in column {target!r} of {options.data}; "
                f"got {len(names)}: {some}{hint}"
            )
        found[target] = names
    return found


def _wants_classes(options: argparse.Namespace, known: Parameters) -> bool:
    return options.experts == "categorical" or "num_classes" in known


def story_arguments(
    options: argparse.Namespace,
    known: Parameters,
    *,
    rows: Rows,
    test: Rows,
    classes: Mapping[str, Sequence[str]],
) -> dict[str, Any]:
    """The arguments of the story's constructor: defaults of the data, then command-line options.

    Defaults in a story file take precedence over defaults of the data.

    Raises:
        ValueError: If the story does not have an option, or requires an argument without a value.
    """
    x_dim = rows.x.shape[1]
    table = {**TABLE_DEFAULTS, "z_dim": min(x_dim, TABLE_DEFAULTS["z_dim"])}
    defaults: dict[str, Any] = STORY_DEFAULTS.get(options.data, table)
    asked = vars(options)
    given = {name: asked[name] for name in OPTIONS if asked[name] is not None}
    for name in given:
        if name not in known:
            option = "--" + name.replace("_", "-")
            raise ValueError(f"expected options of {options.story}; got {option}")
    if options.story not in runs.STORIES:
        defaults = {
            name: value for name, value in defaults.items() if not _has_default(known, name)
        } | {"common_scale": rows.image_shape is not None}
    arguments = {"x_dim": x_dim, **defaults, **given}
    if rows.y is not None and test.y is not None:
        arguments["y_dim"] = rows.y.shape[1:].numel()
        if _wants_classes(options, known):
            both = torch.cat([rows.y, test.y])
            arguments["y_dim"] = arguments["num_classes"] = _num_classes(both, rows, classes)
        if arguments.get("likelihood") == "bernoulli" and options.data == "mnist":
            arguments["likelihood"] = "continuous-bernoulli"  # the pixels are gray
    for name in known:
        if name not in arguments and not _has_default(known, name):
            there = ", ".join(dict.fromkeys((*arguments, *OPTIONS)))
            raise ValueError(
                f"expected Story in {options.story} to take {there}, or arguments with a default; "
                f"got {name}"
            )
    return {name: value for name, value in arguments.items() if name in known}


def _has_default(known: Parameters, name: str) -> bool:
    return name in known and known[name].default is not inspect.Parameter.empty


def _num_classes(y: torch.Tensor, rows: Rows, classes: Mapping[str, Sequence[str]]) -> int:
    if rows.y is not None and rows.y.dim() > 1:
        several = " ".join(rows.targets or ["none"])
        raise ValueError(f"expected one --target of classes; got {several}")
    (name,) = rows.targets or ("y",)
    if name in classes:
        return len(classes[name])
    num_rows, y = len(y), y[~y.isnan()].double()
    bad = y[(y < 0) | (y != y.round()) | (y >= num_rows)]
    if len(bad):
        raise ValueError(
            f"expected classes 0, 1, 2, … in column {name!r}, fewer than its {num_rows} rows; "
            f"got {bad[0].item():.10g}"
        )
    return int(y.max()) + 1 if len(y) else 1


def check_family(options: argparse.Namespace, known: Parameters, train: Rows, test: Rows) -> None:
    """Check that a family is chosen for targets that look like classes or counts.

    Raises:
        ValueError: If none is chosen, and the default is normal.
    """
    default = known["experts"].default if "experts" in known else None
    if default != "normal" or options.experts or not options.target:
        return
    y = torch.cat([rows.y.reshape(len(rows), -1) for rows in (train, test) if rows.y is not None])
    for name, column in zip(train.targets or (), y.T, strict=True):
        if looks_like_classes(column):
            values = ", ".join(f"{v:g}" for v in column[~column.isnan()].unique().tolist())
            raise ValueError(
                "expected --experts categorical (classes), bernoulli (0 and 1), poisson (counts), "
                f"normal (measurements) or another family, because column {name!r} has only the "
                f"values {values}; got none"
            )


def check_missing_targets(story: Any, rows: Rows) -> None:
    """Check that a story has a site ``x``, to which rows without a target contribute.

    Raises:
        ValueError: If it has none.
    """
    with torch.no_grad(), reproducible(0), running({"params": {}, "constraints": {}}), Discretize():
        x = rows.x[:2].to(next(story.parameters(), torch.empty(0)))
        trace = poutine.trace(story.model).get_trace(x, None)
    trace = prune_subsample_sites(trace)
    if "x" not in trace.nodes:
        raise ValueError(
            "expected a story with a site 'x', which models rows without a target, for "
            f"--missing-targets; got sites {', '.join(trace.stochastic_nodes)}"
        )
