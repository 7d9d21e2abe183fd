"""``pyro-moe reproduce``: reproduction of the paper, of its table, or of its figures."""

import argparse

import torch

from pyro_moe.inference.context import without_warnings
from pyro_moe.inference.errors import EmptyComponentWarning
from pyro_moe.paper import table1


def run(options: argparse.Namespace) -> None:
    """Print the table row by row, or write a page with the figures."""
    torch.set_num_threads(1)
    chosen = {"quick": options.quick, "data_dir": options.data_dir}
    with without_warnings(EmptyComponentWarning):  # it would interrupt the table
        if options.what == "table1":
            table1.run(**chosen)
            return
        from pyro_moe.paper import page  # which imports matplotlib and pandas

        print(page.write(options.out, with_table=options.what == "paper", **chosen))
