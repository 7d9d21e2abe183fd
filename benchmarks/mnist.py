"""MNIST: test accuracy and ELBO by epoch, seconds an epoch, with and without initialisation.

    python benchmarks/mnist.py dmvae umap --seed 0 --data-dir DIR

Pixels are binary (at one half), so that the Bernoulli likelihood is one. The test rows and the
labels choose nothing: every run takes the settings below and is reported at its last epoch.
"""

import argparse
import time

import record
import torch

import pyro_moe
from pyro_moe import Fit, datasets, evaluation, models

STORIES = {"dmvae": models.DMVAE, "vade": models.VaDE}


def main() -> None:
    """Run one story from one start and seed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("story", choices=STORIES)
    parser.add_argument("start", choices=["umap", "autoencoder", "random"])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--initial-epochs", type=int, default=15)
    parser.add_argument("--covariance", default="full")
    parser.add_argument("--data-dir")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)

    train, test = datasets.mnist(options.data_dir, binary=True)
    story = STORIES[options.story](
        x_dim=784,
        z_dim=10,
        num_components=10,
        likelihood="bernoulli",
        covariance=options.covariance,
        hidden=(500, 500, 2000),
    )
    curve = []

    def measure(fit: Fit) -> None:
        row = {**fit.history[-1], "elapsed": time.perf_counter() - started}
        if row["phase"] != "autoencoder":
            g = evaluation.gate(fit, test.x, num_samples=8)
            row |= evaluation.clustering_scores(g, test.labels)
            row["test_elbo"] = evaluation.elbo(fit, test.x, num_samples=1).mean().item()
        curve.append(row)
        print(row, flush=True)

    started = time.perf_counter()
    fit = pyro_moe.fit(
        story.model,
        story.guide,
        train.x,
        epochs=options.epochs,
        initialise=options.start,
        initial_epochs=options.initial_epochs,
        learning_rate=1e-3,
        seed=options.seed,
        progress=False,
        callback=measure,
    )
    g, error = evaluation.gate(fit, test.x, return_error=True)
    record.write(
        f"mnist-{options.story}-{options.start}-{options.covariance}-{options.seed}",
        {
            "seconds": time.perf_counter() - started,
            **evaluation.clustering_scores(g, test.labels),
            "largest_gate_error": error.max().item(),
            "test_elbo": evaluation.elbo(fit, test.x).mean().item(),
            "test_importance_weighted_bound": evaluation.importance_weighted_bound(fit, test.x)
            .mean()
            .item(),
            "curve": curve,
        },
    )


if __name__ == "__main__":
    main()
