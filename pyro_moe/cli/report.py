"""``pyro-moe report``: an HTML report of a run."""

import argparse
from pathlib import Path
from typing import Any

from pyro_moe import runs
from pyro_moe.text import in_one_line

from . import choices


def add(commands: Any) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser("report", help="write a self-contained HTML report of a run")
    option = parser.add_argument
    option("run", metavar="RUN", help="a run folder written by fit")
    option("--data", help="another table for the checks, or the new path of the fitted table")
    choices.add_reading(parser)
    choices.add_trust(parser)
    option("--out", metavar="FILE", help="the report (default: report.html in the run folder)")
    parser.set_defaults(command=run)


def run(options: argparse.Namespace) -> None:
    """Write the report."""
    fitted, _, test = runs.restore(
        options.run, options.data, trust_code=options.trust, **choices.reading(options)
    )
    out = Path(options.out or Path(options.run, "report.html"))
    fitted.report(out, test, title=Path(options.run).name)
    print(in_one_line(f"report: {out}", longest=None))
