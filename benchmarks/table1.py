"""Table 1 of the paper: test error of mixtures of experts by gate, on spirals and MNIST.

    python benchmarks/table1.py spiral --seeds 0 1 2 3 4 5 6 7 8 9
    python benchmarks/table1.py mnist --seeds 0 1 2 --data-dir DIR
    python benchmarks/table1.py spiral --seeds 0 1 2 --y-dims 1 --methods DVMoE --z-dim 5

A seed determines the affine maps of the targets, the noise of the spirals, and the fit. On MNIST,
for each seed, all methods with a clustered start have the same clustering of the training images.
It is saved in --cache.
"""

import argparse
from pathlib import Path

import mnist
import record
import torch

from pyro_moe.paper import table1

Z_DIMS = {"spiral": 2, "mnist": 10}  # the defaults of pyro_moe.paper.table1
WITH_Z = ("VaDE-MoE", "DVMoE")


def main() -> None:
    """Fit and score the requested cells, and record each of them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", choices=["spiral", "mnist"])
    parser.add_argument("--seeds", type=int, nargs="+", required=True)
    parser.add_argument("--y-dims", type=int, nargs="+", default=list(table1.Y_DIMS))
    parser.add_argument("--methods", nargs="+", choices=table1.METHODS, default=table1.METHODS)
    parser.add_argument("--z-dim", type=int, help="2 on spirals and 10 on MNIST if left out")
    parser.add_argument("--data-dir", metavar="DIR")
    parser.add_argument("--cache", type=Path, default=Path("runs"))
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    for seed in options.seeds:
        start = "autoencoder"
        if options.data == "mnist":
            start = mnist.responsibilities("mnist", options.cache, options.data_dir, seed)
        for y_dim in options.y_dims:
            train, test = table1.rows(
                options.data, y_dim=y_dim, seed=seed, data_dir=options.data_dir
            )
            for method in options.methods:
                z_dim = (options.z_dim or Z_DIMS[options.data]) if method in WITH_Z else None
                measured = table1.cell(
                    method, options.data, train, test, seed=seed, start=start, z_dim=z_dim
                )
                measured["variance"] = table1.variance(test)
                print(options.data, seed, y_dim, method, measured, flush=True)
                key = {"data": options.data, "method": method, "z_dim": z_dim}
                record.write("table1", {**key, "y_dim": y_dim, "seed": seed}, measured)


if __name__ == "__main__":
    main()
