"""``pyro-moe fit``: fit of a story to data, saved in a run folder."""

import argparse
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch

from pyro_moe import runs
from pyro_moe.fitted import Fit
from pyro_moe.fitting import fit
from pyro_moe.inference.context import without_warnings
from pyro_moe.inference.errors import NonFiniteWarning
from pyro_moe.processes import Processes
from pyro_moe.rows import Rows
from pyro_moe.stories import parameters
from pyro_moe.text import in_one_line

from . import choices
from .fits import formula, results
from .fits.results import CHECKPOINT
from .fits.training import fit_arguments


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
    choices.check_weight_type(options)
    if options.resume:
        choices.check_resumed(options)
    story_class, file = choices.story_class(options.story)
    if options.formula:
        return formula.run(options, story_class, file, processes)
    formula.expect_formula(options)
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
        options.resume or options.out or results.new_folder(options),
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
        scores = results.finish(fitted, test, seconds, folder, checkpoint, save)
    results.expect_whole(fitted, folder)
    return fitted, scores


def _fitted(
    story: Any, train: Rows, options: argparse.Namespace, checkpoint: Path | None
) -> tuple[Fit, float]:
    """The fit, and its seconds. Without a folder for checkpoints it is silent, too."""
    arguments = fit_arguments(options) | {"checkpoint": checkpoint}
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
