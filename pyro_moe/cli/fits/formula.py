"""``pyro-moe fit --formula``: a fit by formula, saved in a run folder."""

import argparse
import time
from functools import partial
from typing import Any

import pandas as pd

from pyro_moe import runs
from pyro_moe.datasets.reading import is_table
from pyro_moe.datasets.source import Source
from pyro_moe.fitted import Fit
from pyro_moe.inference.context import without_warnings
from pyro_moe.inference.errors import NonFiniteWarning
from pyro_moe.mixtures import MixtureFit, mixture
from pyro_moe.mixtures.stored import as_rows
from pyro_moe.processes import Processes
from pyro_moe.runs.story_file import StoryFile
from pyro_moe.text import in_one_line

from .. import choices
from ..choices import ANNOTATIONS
from . import results
from .training import fit_arguments

ALONE = (
    "family",
    "offset",
    "trials",
    "shared",
    "order",
    "unseen",
    "test_share",
)
WITHOUT = ("target", "columns", "index", "missing_targets", "experts")
OF_MIXTURE = ("offset", "trials", *ANNOTATIONS, "order", "num_components", "unseen")
OF_STORY = ("num_groups", "z_dim", "likelihood", "covariance", "context")
OF_FIT = ("loss", "validation", "patience", "device")


def run(
    options: argparse.Namespace, story: Any, file: StoryFile | None, processes: Processes
) -> tuple[Fit, dict[str, float]]:
    """Fit by formula, save, print the summary and scores, and draw.

    Args:
        options: The options.
        story: The class of the story.
        file: The story file, or None for a shipped story.
        processes: Those that share the rows of minibatches.
    """
    expect_no_columns(options)
    arguments = _arguments(options, options.story if file is None else story)
    source = Source(
        options.data,
        drop_missing=options.drop_missing,
        test_share=options.test_share or 0.0,
        groups=options.groups,
        **choices.reading(options),
    )
    table, test = source.frames()
    if processes.rank > 0:
        fitted, seconds = _fitted(table, arguments | {"progress": False})
        return fitted, {"seconds": seconds}
    with runs.writer(
        options.resume or options.out or results.new_folder(options),
        code=None if file is None else file.content,
    ) as folder:
        tested = "none to test" if test is table else f"{len(test):,} to test"
        name = in_one_line(f"{options.story} on {options.data}", longest=None)
        print(f"{name}: {len(table):,} rows to fit, {tested}", flush=True)
        checkpoint = folder / results.CHECKPOINT
        arguments["fit_options"] |= {"checkpoint": checkpoint}
        if options.resume:
            arguments["fit_options"]["resume"] = checkpoint
        fitted, seconds = _fitted(table, arguments)
        if fitted.left_out:
            print(f"  {fitted.left_out:,} rows with gaps, or of weight zero, are left out")
        if isinstance(fitted, MixtureFit):
            for line in str(fitted.summary()).split("\n"):
                print(in_one_line(line, longest=None))
        save = partial(
            runs.save,
            fitted,
            folder,
            story_file=file,
            data_name=options.data,
            source=source.recorded(),
        )
        rows = as_rows(fitted.design, test)
        scores = results.finish(
            fitted, rows, seconds, folder, checkpoint, save, are_test=test is not table
        )
    results.expect_whole(fitted, folder)
    return fitted, scores


def expect_formula(options: argparse.Namespace) -> None:
    """Check that no option is given that belongs to a formula.

    Raises:
        ValueError: If one is.
    """
    for name in ALONE:
        if vars(options).get(name) is not None:
            raise ValueError(f"expected --formula with --{name.replace('_', '-')}; got none")


def expect_no_columns(options: argparse.Namespace) -> None:
    """Check that no option is given twice, by the formula and by itself.

    Raises:
        ValueError: If one is, or if the data are no table.
    """
    for name in WITHOUT:
        if vars(options).get(name):
            option = name.replace("_", "-")
            hint = " (--family names families)" if name == "experts" else ""
            raise ValueError(f"expected no --{option} with --formula{hint}; got it")
    if not is_table(options.data):
        raise ValueError(f"expected a table with --formula; got data {options.data}")


def _arguments(options: argparse.Namespace, story: Any) -> dict[str, Any]:
    """The arguments of `mixture`."""
    asked = vars(options)
    given = {name: asked[name] for name in OF_MIXTURE if asked[name] is not None}
    if options.family is not None:
        given["family"] = options.family[0] if len(options.family) == 1 else options.family
    is_me = isinstance(story, str) and story == "me"
    training = fit_arguments(options, "weak" if is_me else "auto")
    training.pop("missing_targets", None)
    of_fit = {name: training.pop(name) for name in OF_FIT if name in training}
    if is_me and of_fit.pop("loss", "em") != "em":
        raise ValueError(f"expected no --loss with story me and --formula; got {options.loss}")
    return {
        "formula": options.formula,
        "story": story,
        "shared": options.shared or (),
        "missing": "drop" if options.drop_missing else "raise",
        "story_options": story_options(options),
        "fit_options": of_fit,
        **given,
        **training,
    }


def story_options(options: argparse.Namespace) -> dict[str, Any]:
    """Those arguments of the story's constructor that are given."""
    return {name: vars(options)[name] for name in OF_STORY if vars(options)[name] is not None}


def _fitted(table: pd.DataFrame, arguments: dict[str, Any]) -> tuple[Any, float]:
    """The fit, and its seconds."""
    started = time.perf_counter()
    with without_warnings(NonFiniteWarning):  # printed by the caller
        fitted = mixture(data=table, **arguments)
    if fitted.interrupted and not fitted.history:
        raise KeyboardInterrupt("interrupted before the end of the first epoch; nothing is saved")
    return fitted, time.perf_counter() - started
