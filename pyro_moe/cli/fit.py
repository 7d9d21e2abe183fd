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
from pyro_moe.inference.initialize import STARTS
from pyro_moe.inference.objectives import LOSSES
from pyro_moe.inference.prior import FLAT, Prior
from pyro_moe.models.parts.conditionals import LIKELIHOODS
from pyro_moe.models.parts.experts import CONTEXTS, FAMILIES
from pyro_moe.models.parts.mixture import COVARIANCES
from pyro_moe.rows import Rows
from pyro_moe.text import in_one_line

from . import choices, scoring

FIT_OPTIONS = (
    "epochs",
    "restarts",
    "loss",
    "validation",
    "patience",
    "tolerance",
    "initialize",
    "missing_targets",
    "seed",
    "device",
)
WITHOUT_TREES = tuple(name for name in runs.STORIES if name != "hierarchicalme")


def add(commands: Any) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser("fit", help="fit a story and write a run folder")
    add = parser.add_argument
    stories = f"the story: {', '.join(WITHOUT_TREES)}; or a story file such as my_story.py"
    add("story", type=_story, help=stories, metavar="STORY")
    add(
        "--data",
        required=True,
        help="digits, spiral, mnist, or a .csv, .tsv, .txt or .parquet file",
    )
    add("--target", nargs="+", metavar="COLUMN", help="columns of the table that become y")
    add(
        "--columns", nargs="+", metavar="COLUMN", help="columns that become x (default: all others)"
    )
    add("--index", nargs="+", metavar="COLUMN", help="columns that identify rows and are no data")
    choices.add_reading(parser)
    add("--drop-missing", action="store_true", help="leave out rows with missing values")
    add("--missing-targets", action="store_true", help="targets may be missing")
    add("--experts", choices=FAMILIES, help="the family of y given x (default: normal)")
    add("--context", choices=CONTEXTS, help="inputs of the experts: x, or the mean of z given x")
    add("--data-dir", metavar="DIR", help="folder of MNIST's four files (default: download them)")
    add("--num-components", type=_whole, metavar="K", help="number of components")
    add("--z-dim", type=_whole, metavar="L", help="dimension of z")
    add("--likelihood", choices=LIKELIHOODS, help="the family of x given z")
    add("--covariance", choices=COVARIANCES, help="the form of the components' covariances")
    add("--epochs", type=_whole, help="passes over the data, or iterations of EM (default: auto)")
    add("--restarts", type=_whole, help="number of starts, of which the best is kept")
    add("--loss", choices=("auto", *LOSSES, "em"), help="the objective (default: em, or marginal)")
    add("--validation", type=float, metavar="SHARE", help="share of rows held out in training")
    add("--patience", type=_whole, help="held-out bounds without a better one until the end")
    add("--tolerance", type=float, help="increase of the objective at which EM ends")
    add("--prior", help="auto, weak, none, or how many rows of one model each component is given")
    add("--ridge", type=float, help="prior precision of the weights of softmax gates")
    starts = [start for start in STARTS if start != "keep"]
    add(
        "--initialize",
        choices=starts,
        help="how parameters are initialized (default: that of the story)",
    )
    add("--seed", type=int, help="seed of the fit; it does not change the data (default: 0)")
    add("--device", type=_device, help="device of the training, such as cpu or cuda")
    add("--out", metavar="FOLDER", help="run folder, overwritten if it exists (default: a new one)")
    add(
        "--resume",
        metavar="RUN",
        help="go on with the fit of this run folder, which the same command began",
    )
    add("--quiet", action="store_true", help="no progress bar")
    parser.set_defaults(command=run)


def _story(name: str) -> str:
    if name in WITHOUT_TREES or name.endswith(".py"):
        return name
    there = ", ".join(map(repr, WITHOUT_TREES))
    raise argparse.ArgumentTypeError(
        f"invalid choice: {name!r} (choose from {there}, or a file that ends in .py)"
    )


def _whole(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 1; got {text!r}")
    return int(text)


def _device(name: str) -> str:
    try:
        torch.empty(0, device=name)
    except (AssertionError, RuntimeError) as error:
        raise argparse.ArgumentTypeError(
            f"expected a device of this machine; got {name!r}"
        ) from error
    return name


def run(options: argparse.Namespace) -> tuple[Fit, dict[str, float]]:
    """Fit, save, score and draw. The fit is saved first, in case of an interruption."""
    if options.out and options.resume:
        raise ValueError("expected --resume RUN without --out, because RUN is the run folder")
    story_class, file = choices.story_class(options.story)
    known = choices.parameters(story_class)
    source = choices.source(options, known)
    train, test = source.rows()
    choices.check_family(options, known, train, test)
    arguments = choices.story_arguments(
        options, known, rows=train, test=test, classes=source.classes
    )
    story: Any = story_class(**arguments)
    if options.missing_targets:
        choices.check_missing_targets(story, train)
    with runs.writer(
        options.resume or options.out or _new_folder(options),
        code=None if file is None else file.content,
    ) as folder:
        name = in_one_line(f"{options.story} on {options.data}", longest=None)
        print(f"{name}: {len(train):,} rows to fit, {len(test):,} to test", flush=True)
        for target, names in source.classes.items():
            numbers = ", ".join(f"{in_one_line(name)} = {i}" for i, name in enumerate(names))
            print(f"  {in_one_line(target)}: {numbers}")
        checkpoint = folder / "checkpoint"
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
    story: Any, train: Rows, options: argparse.Namespace, checkpoint: Path
) -> tuple[Fit, float]:
    """The fit, and its seconds."""
    arguments = _fit_arguments(options) | {"checkpoint": checkpoint}
    if options.resume:
        arguments["resume"] = checkpoint
    started = time.perf_counter()
    with without_warnings(NonFiniteWarning):  # printed by the caller
        fitted = fit(story.model, story.guide, train, **arguments)
    if fitted.interrupted and not fitted.history:
        raise KeyboardInterrupt("interrupted before the end of the first epoch; nothing is saved")
    return fitted, time.perf_counter() - started


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
