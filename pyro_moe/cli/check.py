"""``pyro-moe check``: comparison of test rows with data simulated from the model."""

import argparse

import pandas as pd

from pyro_moe import runs
from pyro_moe.criticism.report import Subject, reasons
from pyro_moe.text import in_one_line

from . import choices

COLUMNS = ["site", "component", "statistic", "column", "observed", "replicated"]
P_VALUES = ["p_value", "adjusted_p_value"]
PRINTED = {"site": "variable", "replicated": "simulated"}


def run(options: argparse.Namespace) -> None:
    """Print the state of the gate, and the statistics that differ from the model's."""
    fitted, train, test = runs.restore(
        options.run, options.data, trust_code=options.trust, **choices.reading(options)
    )
    which = choices.which_rows(options.data, train, test)
    print(in_one_line(f"{options.run}: {len(test):,} rows {which}", longest=None), flush=True)
    classes = choices.classes_of(options.run, fitted)
    subject = Subject(fitted, test, None, classes, options.replicates)
    if subject.health is not None:
        print(f"effective number of components: {subject.health.effective_components:.2f}")
    for warning in reasons(subject):
        print(in_one_line(f"warning: {warning}", longest=None))
    checked = subject.checked
    if checked is None:
        return
    print(f"{checked}")
    table = checked.table if options.all else checked.surprises(options.level)
    if len(table):
        shown = table[COLUMNS + P_VALUES].astype({"component": object})
        shown = shown.where(shown.notna(), "").rename(columns=PRINTED)
        shown["column"] = shown["column"].map(in_one_line)
        with pd.option_context("display.width", None, "display.max_rows", None):
            print(shown.to_string(index=False, float_format=lambda value: f"{value:.4g}"))
