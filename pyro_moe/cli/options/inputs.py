"""Options that several commands share: how a text file is written, and whose programs run."""

import argparse

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


def add_trust(parser: argparse.ArgumentParser) -> None:
    """Add the option that allows the program in a run folder to be executed."""
    parser.add_argument(
        "--trust",
        action="store_true",
        help="execute story.py in the run folder, and functions in its formula that are not known",
    )
