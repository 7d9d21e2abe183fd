"""The options of ``pyro-moe fit``."""

import argparse
from typing import Any

from .inputs import add_annotations, add_data, add_formula
from .names import (
    CONTEXTS,
    COVARIANCES,
    FAMILIES,
    LIKELIHOODS,
    LOSSES,
    STARTS,
    WITHOUT_TREES,
)


def add(commands: Any) -> None:
    """Add the command to the parsers of commands."""
    parser = commands.add_parser("fit", help="fit a story and write a run folder")
    add = parser.add_argument
    stories = f"the story: {', '.join(WITHOUT_TREES)}; or a story file such as my_story.py"
    add("story", type=_story, help=stories, metavar="STORY")
    add_data(parser)
    add("--missing-targets", action="store_true", help="targets may be missing")
    add_annotations(parser)
    add("--groups", metavar="COLUMN", help="a column: rows of a group are from one component")
    add("--experts", choices=FAMILIES, help="the family of y given x (default: normal)")
    add("--context", choices=CONTEXTS, help="inputs of the experts: x, or the mean of z given x")
    add("--data-dir", metavar="DIR", help="folder of MNIST's four files (default: download them)")
    add("--num-components", type=_whole, metavar="K", help="number of components")
    add("--num-groups", type=_whole, metavar="G", help="number of groups of components")
    add("--z-dim", type=_whole, metavar="L", help="dimension of z")
    add("--likelihood", choices=LIKELIHOODS, help="the family of x given z")
    add("--covariance", choices=COVARIANCES, help="the form of the components' covariances")
    add("--epochs", type=_whole, help="passes over the data, or iterations of EM (default: auto)")
    add("--restarts", type=_whole, help="number of starts, of which the best is kept")
    add("--loss", choices=("auto", *LOSSES, "em"), help="the objective (default: em, or marginal)")
    add("--validation", type=float, metavar="SHARE", help="share of rows held out in training")
    add("--patience", type=_whole, help="held-out bounds without a better one until the end")
    add("--weight-decay", type=float, help="decay of the parameters in steps of Adam (default: 0)")
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
    add("--device", help="device of the training, such as cpu or cuda")
    add("--compile", choices=("auto", "yes", "no"), help="compile the steps (default: auto)")
    add("--bfloat16", action="store_true", default=None, help="large products in bfloat16")
    add("--out", metavar="FOLDER", help="run folder, overwritten if it exists (default: a new one)")
    add(
        "--resume",
        metavar="RUN",
        help="go on with the fit of this run folder, which the same command began",
    )
    add("--quiet", action="store_true", help="no progress bar")
    add = add_formula(parser, "families of the experts").add_argument
    add("--order", metavar="ORDER", help="size, fitted, or the coefficient that orders components")
    add("--unseen", choices=("raise", "reference"), help="levels of factors that are new: an error")
    add(
        "--test-share",
        type=float,
        metavar="SHARE",
        help="share of rows set aside for tests (default: none, and all rows are fitted)",
    )


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
