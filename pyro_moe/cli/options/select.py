"""The options of ``pyro-moe select``."""

from typing import Any

from .inputs import add_annotations, add_data, add_formula
from .names import CONTEXTS, COVARIANCES, FAMILIES, LIKELIHOODS, WITHOUT_TREES


def add(commands: Any) -> None:
    """Add the command to the parsers of commands."""
    parser = commands.add_parser(
        "select", help="compare numbers of components, stories and families on held-out rows"
    )
    add = parser.add_argument
    add("story", nargs="+", choices=WITHOUT_TREES, metavar="STORY", help=", ".join(WITHOUT_TREES))
    add_data(parser)
    add("--data-dir", metavar="DIR", help="folder of MNIST's four files (default: download them)")
    add("--experts", nargs="+", choices=FAMILIES, help="families of y given x to compare")
    add("--context", choices=CONTEXTS, help="inputs of the experts: x, or the mean of z given x")
    add("--num-groups", type=int, metavar="G", help="number of groups of components")
    add("--z-dim", type=int, metavar="L", help="dimension of z")
    add("--likelihood", choices=LIKELIHOODS, help="the family of x given z")
    add("--covariance", choices=COVARIANCES, help="the form of the components' covariances")
    add(
        "--num-components",
        nargs="+",
        type=int,
        metavar="K",
        help="numbers of components to compare (default: 1 to 6; with --formula and --labels, as "
        "many as these and up to five more)",
    )
    add("--folds", type=int, help="folds of cross-validation (default: hold out a fifth)")
    add("--epochs", type=int, help="passes over the data, or iterations of EM (default: auto)")
    add("--restarts", type=int, help="number of starts, of which the best is kept")
    add("--seed", type=int, default=0, help="seed of the fits (default: 0)")
    add_annotations(parser)
    add("--out", metavar="FILE", help="a picture of the curves, .png, .pdf or .svg")
    add("--quiet", action="store_true", help="no progress bar")
    add_formula(parser, "families of the experts to compare")
