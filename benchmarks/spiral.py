"""Spirals: clustering, and mixtures of experts, by objective and start.

python benchmarks/spiral.py dmvae --start random --restarts 3 --seeds 0 1 2 3 4 5 6 7 8 9
python benchmarks/spiral.py vade --loss Trace_ELBO --epochs 34 --initial-epochs 5
python benchmarks/spiral.py dvmoe --loss Trace_ELBO --epochs 34 --initial-epochs 5 --y-dim 2
python benchmarks/spiral.py dvmoe --defaults --y-dim 2
"""

import argparse
import time
from typing import Any

import record
import torch
from pyro.infer import Trace_ELBO

import pyro_moe
from pyro_moe import Fit, Rows, datasets, evaluation, models

METHODS = {"dmvae": models.DMVAE, "vade": models.VaDE, "dvmoe": models.DVMoE}


def main() -> None:
    """Run one story for the requested seeds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("method", choices=METHODS)
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(10)))
    parser.add_argument("--loss", default="marginal", help="or Trace_ELBO, categorical-kl")
    parser.add_argument("--start", default="autoencoder")
    parser.add_argument("--restarts", type=int, default=1)
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--initial-epochs", type=int)
    parser.add_argument("--covariance", default="full")
    parser.add_argument("--y-dim", type=int, help="number of targets, for dvmoe")
    parser.add_argument(
        "--defaults", action="store_true", help="all options of fit but the seed at their defaults"
    )
    options = parser.parse_args()
    torch.set_num_threads(1)
    for seed in options.seeds:
        key = {
            "method": options.method,
            "loss": "default" if options.defaults else options.loss,
            "start": "default" if options.defaults else options.start,
            "restarts": options.restarts,
            "covariance": options.covariance,
            "y_dim": options.y_dim,
            "seed": seed,
        }
        measured = fit_seed(options, seed)
        shown = ("accuracy", "error", "held_out_elbo", "seconds")
        print(seed, {name: measured[name] for name in shown if name in measured}, flush=True)
        record.write("spiral", key, measured)


def fit_seed(options: argparse.Namespace, seed: int) -> dict[str, Any]:
    """Scores of the fit with the best held-out ELBO, and the accuracies of all starts."""
    train, test = datasets.spiral(seed=seed)
    sizes: dict[str, Any] = {"x_dim": 2, "z_dim": 2, "num_components": 5}
    if options.y_dim:
        train, test = datasets.piecewise_affine(train, test, y_dim=options.y_dim, seed=seed)
        sizes["y_dim"] = options.y_dim
    story: Any = METHODS[options.method](**sizes, covariance=options.covariance)
    curves: list[list[float]] = []

    def measure(fit: Fit) -> None:
        if len(fit.history) == 1:
            curves.append([])
        g = evaluation.gate(fit, test.x, num_samples=8)
        curves[-1].append(evaluation.clustering_scores(g, test.labels)["accuracy"])

    settings: dict[str, Any] = {
        "loss": Trace_ELBO() if options.loss == "Trace_ELBO" else options.loss,
        "initialize": options.start,
        "epochs": options.epochs,
        "initial_epochs": options.initial_epochs,
        "restarts": options.restarts,
        "callback": measure,
    }
    started = time.perf_counter()
    fit = pyro_moe.fit(
        story.model,
        story.guide,
        train,
        seed=seed,
        progress=False,
        **({} if options.defaults else settings),
    )
    return {
        "seconds": time.perf_counter() - started,
        "held_out_elbo": fit.held_out_elbo,
        **scores(fit, test),
        "accuracies": [curve[-1] for curve in curves],
        "curves": curves,
        "epoch_seconds": [epoch["seconds"] for epoch in fit.history],
        "last_epoch": fit.history[-1],
    }


def scores(fit: Fit, test: Rows) -> dict[str, Any]:
    """Scores of the clusters, of the bound, and of predictions if there is a target."""
    found = evaluation.clustering_scores(evaluation.gate(fit, test.x), test.labels)
    found["test_elbo"] = evaluation.elbo(fit, test).mean().item()
    if test.y is not None:
        found |= evaluation.regression_scores(evaluation.predict(fit, test.x), test.y)
    return found


if __name__ == "__main__":
    main()
