"""``pyro-moe reproduce``: reproduction of a table of the paper."""

import argparse
from typing import Any

import torch

from pyro_moe import table1
from pyro_moe.inference.context import without_warnings
from pyro_moe.inference.errors import EmptyComponentWarning


def add(commands: Any) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser("reproduce", help="reproduce a table of the paper")
    option = parser.add_argument
    option("table", choices=["table1"], help="the table: %(choices)s")
    option("--quick", action="store_true", help="few epochs and 10,000 images; under five minutes")
    option("--data-dir", metavar="DIR", help="folder of MNIST's four files (default: only spirals)")
    parser.set_defaults(command=run)


def run(options: argparse.Namespace) -> None:
    """Print the table row by row."""
    torch.set_num_threads(1)
    with without_warnings(EmptyComponentWarning):  # it would interrupt the table
        table1.run(quick=options.quick, data_dir=options.data_dir)
