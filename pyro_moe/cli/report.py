"""``pyro-moe report``: an HTML report of a run."""

import argparse
from pathlib import Path

from pyro_moe import runs
from pyro_moe.text import in_one_line

from . import choices


def run(options: argparse.Namespace) -> None:
    """Write the report."""
    fitted, _, test = runs.restore(
        options.run, options.data, trust_code=options.trust, **choices.reading(options)
    )
    out = Path(options.out or Path(options.run, "report.html"))
    settings = runs.settings_of(options.run)
    fitted.report(
        out,
        test,
        title=Path(options.run).resolve().name,
        table=Path(settings["data"]).name,
        classes=choices.classes_of(options.run, fitted),
    )
    print(in_one_line(f"report: {out}", longest=None))
