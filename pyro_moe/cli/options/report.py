"""The options of ``pyro-moe report``."""

from typing import Any

from .inputs import add_reading, add_trust


def add(commands: Any) -> None:
    """Add the command to the parsers of commands."""
    parser = commands.add_parser("report", help="write a self-contained HTML report of a run")
    option = parser.add_argument
    option("run", metavar="RUN", help="a run folder written by fit")
    option("--data", help="another table for the checks, or the new path of the fitted table")
    add_reading(parser)
    add_trust(parser)
    option("--out", metavar="FILE", help="the report (default: report.html in the run folder)")
