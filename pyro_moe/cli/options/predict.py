"""The options of ``pyro-moe predict``."""

from typing import Any

from .inputs import add_reading, add_trust


def add(commands: Any) -> None:
    """Add the command to the parsers of commands."""
    parser = commands.add_parser("predict", help="predict the targets of new rows")
    option = parser.add_argument
    option("run", metavar="RUN", help="a run folder written by fit, of a story with a target")
    option("--data", required=True, help="a table with the fitted columns of x")
    add_reading(parser)
    add_trust(parser)
    option("--out", required=True, metavar="FILE", help="the .csv file to write")
    option(
        "--novelty",
        action="store_true",
        help="add p-values of the novelty of rows, beside test rows if the fitted table is there",
    )
    option(
        "--no-escape",
        action="store_true",
        help="write names and classes as they are, also if spreadsheets take them for formulas",
    )
