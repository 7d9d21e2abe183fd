"""The options of ``pyro-moe compare``."""

from typing import Any

from .inputs import add_reading, add_trust


def add(commands: Any) -> None:
    """Add the command to the parsers of commands."""
    parser = commands.add_parser("compare", help="compare runs by the log density of test rows")
    option = parser.add_argument
    option("runs", nargs="+", metavar="RUN", help="run folders written by fit, of the same data")
    option("--data", help="another table, or the new path of the fitted table")
    add_reading(parser)
    add_trust(parser)
