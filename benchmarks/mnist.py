"""MNIST: test accuracy and ELBO by epoch, seconds an epoch, with and without initialisation.

    python benchmarks/mnist.py dmvae embedding --seed 0 --data-dir DIR

``embedding`` starts from responsibilities: an autoencoder of the grey pixels, its codes embedded
by UMAP, a Gaussian mixture on that. They are kept in --cache, for the other story to start from
the same. Both stories are of binary pixels (at one half), for which the Bernoulli likelihood is
one. The test rows and the labels choose nothing: every run takes the settings below and is
reported at its last epoch.
"""

import argparse
import time
from pathlib import Path

import numpy as np
import record
import torch

import pyro_moe
from pyro_moe import Fit, Rows, datasets, evaluation, models
from pyro_moe.inference import Reconstruction
from pyro_moe.inference.initialise import cluster

STORIES = {"dmvae": models.DMVAE, "vade": models.VaDE}
HIDDEN = (500, 500, 2000)
HELD_OUT = 5000


def responsibilities(cache: Path, data_dir: str | None, epochs: int, seed: int) -> np.ndarray:
    """Responsibilities (60000, 10) of the training rows, made or read again.

    The autoencoder learns from all but the last 5,000 rows, whose reconstruction tells whether
    more epochs would have been better.
    """
    path = cache / f"mnist-responsibilities-{epochs}-{seed}.npy"
    if not path.exists():
        started = time.perf_counter()
        train, _ = datasets.mnist(data_dir)
        story = models.VAE(784, 10, likelihood="continuous-bernoulli", hidden=HIDDEN)
        fit = pyro_moe.fit(
            story.model,
            story.guide,
            train.x[:-HELD_OUT],
            loss=Reconstruction(),
            epochs=epochs,
            learning_rate=1e-3,
            seed=seed,
            progress=False,
        )
        trained = time.perf_counter() - started
        held_out = train.x[-HELD_OUT:]
        reconstruction = -Reconstruction().loss(fit.model, fit.guide, held_out) / HELD_OUT
        r = cluster(evaluation.encode(fit, train.x), 10, embedding="umap", seed=seed)
        cache.mkdir(parents=True, exist_ok=True)
        np.save(path, r.numpy())
        record.write(
            f"mnist-responsibilities-{epochs}-{seed}",
            {
                "held_out_reconstruction": reconstruction,
                "autoencoder_epochs": epochs,
                "autoencoder_seconds": trained,
                "clustering_seconds": time.perf_counter() - started - trained,
                "training_rows": evaluation.clustering_scores(r, train.labels),
            },
        )
    return np.load(path)


def main() -> None:
    """Run one story from one start and seed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("story", choices=[*STORIES, "none"])
    parser.add_argument("start", choices=["embedding", "autoencoder", "random"])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--initial-epochs", type=int, default=6)
    parser.add_argument("--embedding-epochs", type=int, default=30)
    parser.add_argument("--covariance", default="full")
    parser.add_argument("--data-dir")
    parser.add_argument("--cache", type=Path, default=Path("runs"))
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    start = options.start
    if start == "embedding":
        start = responsibilities(
            options.cache, options.data_dir, options.embedding_epochs, options.seed
        )
    if options.story != "none":
        fit_story(options, start)


def fit_story(options: argparse.Namespace, start: str | np.ndarray) -> None:
    """Fit a story and write down its curve and its last scores."""
    train, test = datasets.mnist(options.data_dir, binary=True)
    story = STORIES[options.story](
        x_dim=784,
        z_dim=10,
        num_components=10,
        likelihood="bernoulli",
        covariance=options.covariance,
        hidden=HIDDEN,
    )
    curve: list[dict] = []
    started = time.perf_counter()

    def measure(fit: Fit) -> None:
        curve.append({**fit.history[-1], **scores(fit, test)})
        print(curve[-1], flush=True)

    fit = pyro_moe.fit(
        story.model,
        story.guide,
        train.x,
        epochs=options.epochs,
        initialise=start,
        initial_epochs=options.initial_epochs,
        learning_rate=1e-3,
        seed=options.seed,
        progress=False,
        callback=measure,
    )
    seconds = time.perf_counter() - started
    bound = evaluation.importance_weighted_bound(fit, test.x)
    record.write(
        f"mnist-{options.story}-{options.start}-{options.covariance}-{options.seed}",
        {
            "seconds": seconds,
            **scores(fit, test, num_samples=64),
            "importance_weighted_bound": bound.mean().item(),
            "curve": curve,
        },
    )


def scores(fit: Fit, test: Rows, num_samples: int = 8) -> dict[str, float]:
    """Scores of the test rows."""
    g, error = evaluation.gate(fit, test.x, num_samples=num_samples, return_error=True)
    return {
        **evaluation.clustering_scores(g, test.labels),
        "largest_gate_error": error.max().item(),
        "test_elbo": evaluation.elbo(fit, test.x, num_samples=1).mean().item(),
    }


if __name__ == "__main__":
    main()
