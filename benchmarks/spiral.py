"""Spiral: test accuracy from random starts, chosen by the ELBO of held-out training rows.

python benchmarks/spiral.py dmvae --seeds 0 1 2 3 4 5 6 7 8 9
"""

import argparse
import time

import record
import torch

import pyro_moe
from pyro_moe import Fit, datasets, evaluation, models

STORIES = {"dmvae": models.DMVAE, "vade": models.VaDE}


def main() -> None:
    """Run one story for the requested seeds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("method", choices=STORIES)
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(10)))
    parser.add_argument("--restarts", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--covariance", default="full")
    options = parser.parse_args()
    torch.set_num_threads(1)
    for seed in options.seeds:
        measured = fit_seed(options, seed)
        shown = ("accuracy", "accuracies", "held_out_elbo")
        print(seed, {key: measured[key] for key in shown}, flush=True)
        key = {
            "method": options.method,
            "restarts": options.restarts,
            "covariance": options.covariance,
            "seed": seed,
        }
        record.write("spiral", key, measured)


def fit_seed(options: argparse.Namespace, seed: int) -> dict:
    """Scores of the start with the best held-out ELBO, and the accuracies of all starts."""
    train, test = datasets.spiral(seed=seed)
    story = STORIES[options.method](
        x_dim=2, z_dim=2, num_components=5, covariance=options.covariance
    )
    curves: list[list[float]] = []

    def measure(fit: Fit) -> None:
        if len(fit.history) == 1:
            curves.append([])
        g = evaluation.gate(fit, test.x, num_samples=8)
        curves[-1].append(evaluation.clustering_scores(g, test.labels)["accuracy"])

    started = time.perf_counter()
    fit = pyro_moe.fit(
        story.model,
        story.guide,
        train.x,
        epochs=options.epochs,
        restarts=options.restarts,
        seed=seed,
        progress=False,
        callback=measure,
    )
    return {
        "seconds": time.perf_counter() - started,
        "held_out_elbo": fit.held_out_elbo,
        **evaluation.clustering_scores(evaluation.gate(fit, test.x), test.labels),
        "test_elbo": evaluation.elbo(fit, test.x).mean().item(),
        "accuracies": [curve[-1] for curve in curves],
        "curves": curves,
        "epoch_seconds": [epoch["seconds"] for epoch in fit.history],
        "last_epoch": fit.history[-1],
    }


if __name__ == "__main__":
    main()
