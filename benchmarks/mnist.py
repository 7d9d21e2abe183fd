"""MNIST and Fashion-MNIST: test accuracy and bounds of clustering stories.

    python benchmarks/mnist.py dmvae embedding --seed 0 --data-dir DIR
    python benchmarks/mnist.py dmvae embedding --hold --seed 0 --data-dir DIR

``embedding`` starts from the responsibilities of `images.cluster_images`: an autoencoder of
rotated and shifted gray images, a UMAP embedding of its codes, and a Gaussian mixture. They are
saved in --cache, so that both stories start from the same responsibilities. The stories model
binary pixels (gray values above one half), for which the Bernoulli likelihood is normalized.
Neither test rows nor labels were used to choose settings or epochs. All runs have the settings
below, and scores are those of the last epoch.

With ``--hold`` the responsibilities are no start but the data of c, ``labels=`` of `fit`, and the
encoder of c is a `models.ConvolutionalClassifier`, which learns them from moved images. No label of
an image is used. Settings are those of MNIST for ``--data fashion``, too.
"""

import argparse
import time
from pathlib import Path

import numpy as np
import record
import torch
from fashion import fashion

import pyro_moe
from pyro_moe import Fit, Rows, datasets, evaluation, images, models

STORIES = {"dmvae": models.DMVAE, "vade": models.VaDE}
DATA = {"mnist": datasets.mnist, "fashion": fashion}
HIDDEN = (500, 500, 2000)


def responsibilities(
    data: str, cache: Path, data_dir: str | None, seed: int, num_components: int = 10
) -> np.ndarray:
    """Responsibilities (60000, K) of the training rows, from a file after the first call."""
    number = "" if num_components == 10 else f"-{num_components}"
    path = cache / f"{data}-responsibilities{number}-{seed}.npy"
    train, _ = DATA[data](data_dir)
    if not path.exists():
        r = images.cluster_images(train, num_components, seed=seed, progress=False)
        cache.mkdir(parents=True, exist_ok=True)
        np.save(path, r.numpy())
        if num_components == 10:
            scores = evaluation.clustering_scores(r.numpy(), train.labels)
            key = {"data": data, "seed": seed}
            record.write("responsibilities", key, {"training_rows": scores})
    return np.load(path)


def main() -> None:
    """Run one story from one start and seed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("method", choices=[*STORIES, "none"])
    parser.add_argument("start", choices=["embedding", "autoencoder", "random"])
    parser.add_argument("--data", choices=DATA, default="mnist")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--initial-epochs", type=int, default=6)
    parser.add_argument("--covariance", default="full")
    parser.add_argument("--hold", action="store_true", help="keep the responsibilities as data")
    parser.add_argument("--data-dir")
    parser.add_argument("--cache", type=Path, default=Path("runs"))
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    start = options.start
    if start == "embedding":
        start = responsibilities(options.data, options.cache, options.data_dir, options.seed)
    if options.method != "none":
        fit_story(options, start)


def fit_story(options: argparse.Namespace, start: str | np.ndarray) -> None:
    """Fit a story, print its scores after each epoch, and record the last ones."""
    train, test = DATA[options.data](options.data_dir, binary=True)
    gate = {"gate": models.ConvolutionalClassifier((1, 28, 28), 10)} if options.hold else {}
    story = STORIES[options.method](
        **gate,
        x_dim=784,
        z_dim=10,
        num_components=10,
        likelihood="bernoulli",
        covariance=options.covariance,
        hidden=HIDDEN,
    )
    by_epoch: list[dict] = []
    started = time.perf_counter()

    def measure(fit: Fit) -> None:
        by_epoch.append({**fit.history[-1], **scores(fit, test)})
        print(by_epoch[-1], flush=True)

    fit = pyro_moe.fit(
        story.model,
        story.guide,
        train.x,
        labels=start if options.hold else None,
        epochs=options.epochs,
        initialize=start,
        initial_epochs=options.initial_epochs,
        learning_rate=1e-3,
        seed=options.seed,
        progress=False,
        callback=measure,
    )
    seconds = time.perf_counter() - started
    bound = evaluation.importance_weighted_bound(fit, test.x)
    measured = {
        "seconds": seconds,
        **scores(fit, test, num_samples=64),
        "importance_weighted_bound": bound.mean().item(),
        "last_epoch": by_epoch[-1],
    }
    key = {
        "method": options.method,
        "start": f"{options.start}, held" if options.hold else options.start,
        "covariance": options.covariance,
        "seed": options.seed,
    }
    record.write(options.data, key, measured)


def scores(fit: Fit, test: Rows, num_samples: int = 8) -> dict[str, float]:
    """Scores on the test rows."""
    g, error = evaluation.gate(fit, test.x, num_samples=num_samples, return_error=True)
    return {
        **evaluation.clustering_scores(g, test.labels),
        "largest_gate_error": error.max().item(),
        "test_elbo": evaluation.elbo(fit, test.x, num_samples=1).mean().item(),
    }


if __name__ == "__main__":
    main()
