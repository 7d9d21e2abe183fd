"""``pyro-moe select``: numbers of components, stories and families in one table."""

import argparse
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd

from pyro_moe import files
from pyro_moe.datasets.source import Source
from pyro_moe.mixtures import MixtureFit, select_mixture
from pyro_moe.selection import Selection, select
from pyro_moe.stories import parameters
from pyro_moe.text import in_one_line

from . import choices
from .fits import formula

DIGITS = {"parameters": 0, "log_likelihood": 2, "aic": 2, "bic": 2, "icl": 2, "seconds": 1}


def run(options: argparse.Namespace) -> None:
    """Print the table and the recommended choice, and draw the curves."""
    choices.check_weight_type(options)
    names = ("num_components", "folds", "epochs", "restarts", "seed", "weight_type")
    asked = {name: vars(options)[name] for name in names}
    given = {name: value for name, value in asked.items() if value is not None}
    given["progress"] = not options.quiet
    if options.formula:
        found = _by_formula(options, given)
    else:
        formula.expect_formula(options)
        stories, rows = _stories(options)
        found = select(stories, rows, **{"num_components": range(1, 7), **given})
    print(f"log density of {len(found.log_densities):,} held-out rows, nats per row")
    table = found.table.drop(columns="standard_error")
    if found.story is None:
        table = pd.concat({options.story[0]: table}, names=["story", "K"])
    shown = table.reset_index()
    for name in shown.columns[2:]:
        digits = DIGITS.get(str(name), 4)
        shown[name] = shown[name].map(lambda value, d=digits: f"{value:.{d}f}")
    print(shown.to_string(index=False))
    chosen = found.story or options.story[0]
    print(f"recommended: {chosen} with {found.num_components} components, the fewest within")
    print("one standard error of the best")
    if isinstance(found.fit, MixtureFit):
        for line in str(found.fit.summary()).split("\n"):
            print(in_one_line(line, longest=None))
    if options.out:
        kind = Path(options.out).suffix.lstrip(".") or "png"
        content = io.BytesIO()
        found.plot().savefig(content, format=kind, dpi=150)
        path = files.write(Path(options.out), content.getvalue())
        print(in_one_line(f"  {path}", longest=None))


def _by_formula(options: argparse.Namespace, given: dict[str, Any]) -> Selection:
    """The stories and families of a formula."""
    formula.expect_no_columns(options)
    table, _ = Source(options.data, **choices.reading(options)).frames()
    names = ("offset", "trials", "weights", "labels")
    about = {name: vars(options)[name] for name in names if vars(options)[name] is not None}
    return select_mixture(
        options.formula,
        table,
        story=options.story,
        family=options.family or "normal",
        missing="drop" if options.drop_missing else "raise",
        shared=options.shared or (),
        story_options=formula.story_options(options),
        **about,
        **given,
    )


def _stories(options: argparse.Namespace) -> tuple[dict[str, Callable[[int], Any]], Any]:
    """The stories by name, each with every family that it takes, and the training rows."""
    stories: dict[str, Callable[[int], Any]] = {}
    rows = None
    for name in dict.fromkeys(options.story):
        story_class, _ = choices.story_class(name)
        known = parameters(story_class)
        if (rows is not None) and (rows.y is None) == choices.has_target(known):
            raise ValueError(
                "expected stories that all predict a target, or none that does; got "
                f"{' '.join(options.story)}"
            )
        for family in (options.experts or [None]) if "experts" in known else [None]:
            one = argparse.Namespace(**{**vars(options), "story": name, "experts": family})
            one.missing_targets, one.num_components = False, None
            for each in choices.OPTIONS:
                if each not in known:
                    setattr(one, each, None)
            source = choices.source(one, known)
            rows, test = source.rows()
            choices.check_family(one, known, rows, test)
            arguments = choices.story_arguments(
                one, known, rows=rows, test=test, classes=source.classes
            )
            label = name if family is None else f"{name} {family}"
            stories[label] = _maker(story_class, arguments)
    return stories, rows


def _maker(story_class: Any, arguments: dict[str, Any]) -> Callable[[int], Any]:
    if "num_components" not in parameters(story_class):
        raise ValueError(f"expected stories with components; got {story_class.__name__}")
    return lambda k: story_class(**{**arguments, "num_components": k})
