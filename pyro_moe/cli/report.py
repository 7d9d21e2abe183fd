"""``pyro-moe report``: one page about a run."""

import argparse
from pathlib import Path
from typing import Any

from pyro_moe import runs


def add(commands: Any) -> None:
    """Add the command to the parser of all."""
    parser = commands.add_parser("report", help="write one self-contained page about a run")
    option = parser.add_argument
    option("run", metavar="RUN", help="a run folder that fit wrote")
    option("--data", help="another table of rows to judge by, or where the fitted one is now")
    option("--out", metavar="FILE", help="the page (default: report.html in the run folder)")
    parser.set_defaults(command=run)


def run(options: argparse.Namespace) -> None:
    """Write the page."""
    fitted, _, test = runs.restore(options.run, options.data)
    out = Path(options.out or Path(options.run, "report.html"))
    fitted.report(out, test, title=Path(options.run).name)
    print(f"report: {out}")
