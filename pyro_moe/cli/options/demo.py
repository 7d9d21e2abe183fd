"""The options of ``pyro-moe demo``."""

from typing import Any


def add(commands: Any) -> None:
    """Add the command to the parsers of commands."""
    parser = commands.add_parser(
        "demo", help="fit spirals and digits, and compare with scikit-learn"
    )
    parser.add_argument("--out", default="demo", help="folder for the runs (default: %(default)s)")
    parser.add_argument("--quiet", action="store_true", help="no progress")
