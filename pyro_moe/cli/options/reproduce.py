"""The options of ``pyro-moe reproduce``."""

from typing import Any


def add(commands: Any) -> None:
    """Add the command to the parsers of commands."""
    parser = commands.add_parser("reproduce", help="reproduce a table of the paper")
    option = parser.add_argument
    option("table", choices=["table1"], help="the table: %(choices)s")
    option("--quick", action="store_true", help="few epochs and 10,000 images; under five minutes")
    option("--data-dir", metavar="DIR", help="folder of MNIST's four files (default: only spirals)")
