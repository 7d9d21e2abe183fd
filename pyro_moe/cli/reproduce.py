"""``pyro-moe reproduce``: reproduction of a table of the paper."""

import argparse

import torch

from pyro_moe.inference.context import without_warnings
from pyro_moe.inference.errors import EmptyComponentWarning
from pyro_moe.paper import table1


def run(options: argparse.Namespace) -> None:
    """Print the table row by row."""
    torch.set_num_threads(1)
    with without_warnings(EmptyComponentWarning):  # it would interrupt the table
        table1.run(quick=options.quick, data_dir=options.data_dir)
