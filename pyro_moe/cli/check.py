"""``pyro-moe check``: whether the story of a run makes data like the test rows."""

import argparse
from typing import Any

import pandas as pd

from pyro_moe import criticism, runs
from pyro_moe.inference.errors import SiteError

COLUMNS = ["site", "component", "statistic", "column", "observed", "replicated"]
P_VALUES = ["p_value", "adjusted_p_value"]


def add(commands: Any) -> None:
    """Add the command to the parser of all."""
    parser = commands.add_parser("check", help="compare test rows with what the story makes")
    option = parser.add_argument
    option("run", metavar="RUN", help="a run folder that fit wrote")
    option("--data", help="another table of rows to check, or where the fitted one is now")
    option("--replicates", type=int, default=200, help="data sets to make (default: %(default)s)")
    option("--level", type=float, default=0.05, help="rate of false alarms (default: %(default)s)")
    option("--all", action="store_true", help="print every statistic, not the surprising ones")
    parser.set_defaults(command=run)


def run(options: argparse.Namespace) -> None:
    """Print the health of the gate, and the statistics that the story does not reproduce."""
    fitted, _, test = runs.restore(options.run, options.data)
    which = f"of {options.data}" if options.data else "that were not fitted"
    print(f"{options.run}: {len(test):,} rows {which}", flush=True)
    try:
        gate = criticism.health(fitted, test)
        print(f"effective number of components: {gate.effective_components:.2f}")
        for warning in gate.warnings():
            print(f"warning: {warning}")
    except SiteError:  # a story without components
        pass
    checked = criticism.check(fitted, test, num_replicates=options.replicates)
    print(f"{checked}")
    table = checked.table if options.all else checked.surprises(options.level)
    if len(table):
        shown = table[COLUMNS + P_VALUES].astype({"component": object})
        shown = shown.where(shown.notna(), "")
        with pd.option_context("display.width", None, "display.max_rows", None):
            print(shown.to_string(index=False, float_format=lambda value: f"{value:.4g}"))
