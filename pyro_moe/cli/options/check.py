"""The options of ``pyro-moe check``."""

from typing import Any

from .inputs import add_reading, add_trust


def add(commands: Any) -> None:
    """Add the command to the parsers of commands."""
    parser = commands.add_parser("check", help="compare test rows with data simulated by the model")
    option = parser.add_argument
    option("run", metavar="RUN", help="a run folder written by fit")
    option("--data", help="another table to check, or the new path of the fitted table")
    add_reading(parser)
    add_trust(parser)
    option(
        "--replicates",
        type=int,
        default=200,
        help="number of simulated data sets (default: %(default)s)",
    )
    option("--level", type=float, default=0.05, help="false-alarm rate (default: %(default)s)")
    option("--all", action="store_true", help="print all statistics, not only significant ones")
