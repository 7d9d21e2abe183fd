"""Options that several commands share: how a text file is written, and whose programs run."""

import argparse
from typing import Any

from .names import OF_FORMULAS, WEIGHT_TYPES

READING = {
    "sep": "the separator of a text table, such as ';' (default: a comma, or a tab in .tsv)",
    "decimal": "the decimal mark of a text table, '.' or ','",
    "encoding": "the encoding of a text table, such as latin-1 (default: utf-8)",
}


def add_reading(parser: argparse.ArgumentParser) -> None:
    """Add the options that say how a text file is written."""
    for name, text in READING.items():
        parser.add_argument(f"--{name}", help=text)


def add_data(parser: argparse.ArgumentParser) -> None:
    """Add the options that say which data are fitted, and which of their columns."""
    add = parser.add_argument
    add(
        "--data",
        required=True,
        help="digits, spiral, mnist, or a .csv, .tsv, .txt or .parquet file",
    )
    add("--target", nargs="+", metavar="COLUMN", help="columns of the table that become y")
    add(
        "--columns", nargs="+", metavar="COLUMN", help="columns that become x (default: all others)"
    )
    add("--index", nargs="+", metavar="COLUMN", help="columns that identify rows and are no data")
    add_reading(parser)
    add("--drop-missing", action="store_true", help="leave out rows with missing values")


def add_annotations(parser: argparse.ArgumentParser) -> None:
    """Add the columns that say how much rows count, and which components are known."""
    add = parser.add_argument
    add("--weights", metavar="COLUMN", help="a column: for how many rows each row stands")
    add(
        "--weight-type",
        choices=WEIGHT_TYPES,
        help="replication: a row of weight w is w rows (default); sampling: it stands for others "
        "in proportion to w, as in a survey",
    )
    add(
        "--labels",
        metavar="COLUMN",
        help="a column with the component of each row from 0, empty or -1 where it is not known",
    )


def add_formula(parser: argparse.ArgumentParser, families: str) -> Any:
    """Add what a formula says of a table, and what belongs to it; return the group of options.

    Args:
        parser: The parser.
        families: What several families are for.
    """
    group = parser.add_argument_group("by formula")
    add = group.add_argument
    add(
        "--formula",
        nargs="+",
        metavar="FORMULA",
        help="what is predicted by what, such as 'y ~ x + country | size', instead of --target and "
        "--columns; the gate reads what stands after |; several formulas have a target each",
    )
    known = f"{families}: {', '.join(OF_FORMULAS)} (default: normal)"
    add("--family", nargs="+", choices=OF_FORMULAS, metavar="FAMILY", help=known)
    add("--offset", metavar="COLUMN", help="a column or expression added to all linear predictors")
    add("--trials", metavar="COLUMN", help="the number of trials of binomial experts")
    add("--shared", nargs="+", metavar="TERM", help="terms with one coefficient in all experts")
    return group


def add_trust(parser: argparse.ArgumentParser) -> None:
    """Add the option that allows the program in a run folder to be executed."""
    parser.add_argument(
        "--trust",
        action="store_true",
        help="execute story.py in the run folder, and functions in its formula that are not known",
    )
