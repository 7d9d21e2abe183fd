"""The options of ``pyro-moe reproduce``."""

from typing import Any


def add(commands: Any) -> None:
    """Add the command to the parsers of commands."""
    parser = commands.add_parser("reproduce", help="reproduce the paper, its table, or its figures")
    option = parser.add_argument
    choices = ["paper", "table1", "figures"]
    option("what", choices=choices, help="a page with table and figures, or one of both alone")
    option("--quick", action="store_true", help="few epochs and 10,000 images; under five minutes")
    option("--out", metavar="FILE", default="paper.html", help="the page (default: %(default)s)")
    option("--data-dir", metavar="DIR", help="folder of MNIST's four files (default: only spirals)")
