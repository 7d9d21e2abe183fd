"""``pyro-moe fit``: fit of a story to data, saved in a run folder."""

import argparse
import io
import shutil
import time
from dataclasses import replace
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure

from pyro_moe import files, plots, runs
from pyro_moe.datasets.reading import is_table
from pyro_moe.fitted import Fit
from pyro_moe.fitting import fit
from pyro_moe.inference.context import without_warnings
from pyro_moe.inference.errors import NonFiniteWarning
from pyro_moe.inference.prior import FLAT, Prior
from pyro_moe.inference.steps import Processes
from pyro_moe.rows import Rows
from pyro_moe.runs.shipped import parameters
from pyro_moe.text import in_one_line

from . import choices, scoring

CHECKPOINT = "checkpoint"
FIT_OPTIONS = (
    "epochs",
    "restarts",
    "loss",
    "validation",
    "patience",
    "weight_decay",
    "tolerance",
    "initialize",
    "missing_targets",
    "seed",
    "device",
)


def run(options: argparse.Namespace) -> tuple[Fit, dict[str, float]]:
    """Fit, save, score and draw. The fit is saved first, in case of an interruption.

    Processes of `torchrun` share the rows of each minibatch. The first of them prints and writes.
    """
    with Processes.launched(options.device) as processes:
        return _run(options, processes)


def _run(options: argparse.Namespace, processes: Processes) -> tuple[Fit, dict[str, float]]:
    if options.out and options.resume:
        raise ValueError("expected --resume RUN without --out, because RUN is the run folder")
    if options.device is not None:
        _check_device(options.device)
    story_class, file = choices.story_class(options.story)
    known = parameters(story_class)
    source = choices.source(options, known)
    train, test = source.rows()
    choices.check_family(options, known, train, test)
    arguments = choices.story_arguments(
        options, known, rows=train, test=test, classes=source.classes
    )
    story: Any = story_class(**arguments)
    if options.missing_targets:
        choices.check_missing_targets(story, train)
    if processes.rank > 0:
        fitted, seconds = _fitted(story, train, options, None)
        return fitted, {"seconds": seconds}
    with runs.writer(
        options.resume or options.out or _new_folder(options),
        code=None if file is None else file.content,
    ) as folder:
        name = in_one_line(f"{options.story} on {options.data}", longest=None)
        print(f"{name}: {len(train):,} rows to fit, {len(test):,} to test", flush=True)
        for target, names in source.classes.items():
            numbers = ", ".join(f"{in_one_line(name)} = {i}" for i, name in enumerate(names))
            print(f"  {in_one_line(target)}: {numbers}")
        checkpoint = folder / CHECKPOINT
        fitted, seconds = _fitted(story, train, options, checkpoint)
        save = partial(
            runs.save,
            fitted,
            folder,
            story_name=options.story if file is None else None,
            story_file=file,
            story_arguments=arguments,
            data_name=options.data,
            source=source.recorded(),
            rows=train,
        )
        save()
        if fitted.stopped:
            print(f"{fitted.stopped}: the parameters are saved")
        if not fitted.interrupted:
            shutil.rmtree(checkpoint, ignore_errors=True)
        scores = {**scoring.scores(fitted, test), "seconds": seconds}
        save(scores=scores)
        for key, value in scores.items():
            print(f"  {scoring.NAMES.get(key, key):<36}{value:>10.4g}")
        print(in_one_line(f"run folder: {folder}", longest=None))
        for picture, figure in plots.pictures(fitted, scoring.known(test)).items():
            path = _drawn(figure, folder / f"{picture}.png")
            print(in_one_line(f"  {path}", longest=None))
    if fitted.interrupted:
        raise KeyboardInterrupt(
            f"{fitted.stopped}; the same command with --resume {folder} goes on"
        )
    return fitted, scores


def _fitted(
    story: Any, train: Rows, options: argparse.Namespace, checkpoint: Path | None
) -> tuple[Fit, float]:
    """The fit, and its seconds. Without a folder for checkpoints it is silent, too."""
    arguments = _fit_arguments(options) | {"checkpoint": checkpoint}
    if options.resume:
        arguments["resume"] = Path(options.resume, CHECKPOINT)
    if checkpoint is None:
        arguments["progress"] = False
    started = time.perf_counter()
    with without_warnings(NonFiniteWarning):  # printed by the caller
        fitted = fit(story.model, story.guide, train, **arguments)
    if fitted.interrupted and not fitted.history:
        raise KeyboardInterrupt("interrupted before the end of the first epoch; nothing is saved")
    return fitted, time.perf_counter() - started


def _check_device(name: str) -> None:
    try:
        torch.empty(0, device=name)
    except (AssertionError, RuntimeError) as error:
        raise ValueError(
            f"argument --device: expected a device of this machine; got {name!r}; "
            "see pyro-moe fit --help"
        ) from error


def _drawn(figure: Figure, path: Path) -> Path:
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=150)
    return files.write(path, content.getvalue())


def _fit_arguments(options: argparse.Namespace) -> dict[str, Any]:
    given = {name: vars(options)[name] for name in FIT_OPTIONS if vars(options)[name] is not None}
    if options.prior is not None or options.ridge is not None:
        given["prior"] = _prior(options.prior or "auto", options.ridge)
    return {**given, "progress": not options.quiet}


def _prior(rows: str, ridge: float | None) -> str | Prior:
    """The prior of two options. A ridge alone belongs to the weak prior."""
    named = {"auto": Prior(), "weak": Prior(), "none": FLAT}
    if rows in named:
        return rows if ridge is None else replace(named[rows], ridge=ridge)
    try:
        return Prior(rows=float(rows), ridge=Prior().ridge if ridge is None else ridge)
    except ValueError as error:
        raise ValueError(f"expected --prior auto, weak, none or a number; got {rows!r}") from error


def _new_folder(options: argparse.Namespace) -> Path:
    """The first of runs/STORY-DATA, runs/STORY-DATA-2, … that does not exist."""
    data = Path(options.data).stem
    data = Path(data).stem if is_table(data) else data  # table.csv.gz has two suffixes
    first = Path("runs", f"{Path(options.story).stem}-{data}")
    later = (first.with_name(f"{first.name}-{number}") for number in count(2))
    return first if not first.exists() else next(path for path in later if not path.exists())
