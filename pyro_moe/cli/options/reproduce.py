"""The options of ``pyro-moe reproduce``."""

from typing import Any


def add(commands: Any) -> None:
    """Add the command to the parsers of commands."""
    parser = commands.add_parser("reproduce", help="reproduce the paper, or its table")
    option = parser.add_argument
    option("what", choices=["paper", "table1"], help="a page with all figures, or the table alone")
    option("--quick", action="store_true", help="few epochs and 10,000 images; under five minutes")
    option("--out", metavar="FILE", default="paper.html", help="the page (default: %(default)s)")
    option("--data-dir", metavar="DIR", help="folder of MNIST's four files (default: only spirals)")
