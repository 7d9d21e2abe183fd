"""Classification of MNIST with few labels: a DVMoE of all images, and others of the labeled ones.

    python benchmarks/few_labels.py --labels 100 --draws 0 1 2 3 4 --data-dir DIR

The DVMoE is fitted to all 60,000 images, of which most have no class, ``missing_targets=True``. Its
components begin as the clusters of `images.cluster_images`, which are data of c in rows without a
class, and its gate is a `models.ConvolutionalClassifier`. An expert is a distribution of classes
that does not depend on x. The MLP and boosting are scikit-learn's, fitted to the labeled images.
Settings were not chosen on test rows. The draw decides which rows have a class, as many of each.
"""

import argparse
import time
from pathlib import Path
from typing import Any

import classification
import mnist
import numpy as np
import record
import torch
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.neural_network import MLPClassifier

import pyro_moe
from pyro_moe import Rows, datasets, evaluation, models

OTHERS = {
    "MLP": lambda seed: MLPClassifier((128, 128), random_state=seed),
    "gradient boosting": lambda seed: HistGradientBoostingClassifier(random_state=seed),
}


def main() -> None:
    """Fit and score every method for the requested numbers of labels and draws."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--labels", type=int, nargs="+", default=[100, 1_000, 10_000])
    parser.add_argument("--draws", type=int, nargs="+", default=list(range(5)))
    parser.add_argument("--methods", nargs="+", default=["DVMoE", *OTHERS])
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--clustering", type=int, default=0, help="its seed")
    parser.add_argument("--data-dir", metavar="DIR")
    parser.add_argument("--cache", type=Path, default=Path("runs"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    train, test = datasets.mnist(options.data_dir, binary=True)
    for number in options.labels:
        for draw in options.draws:
            known = labeled(train, number, draw)
            for method in options.methods:
                started = time.perf_counter()
                if method == "DVMoE":
                    clusters = mnist.responsibilities(
                        "mnist", options.cache, options.data_dir, options.clustering
                    )
                    measured = of_story(train, test, known, clusters, draw, options.epochs)
                else:
                    measured = of_other(method, train, test, known, draw)
                measured["seconds"] = time.perf_counter() - started
                print(number, draw, method, measured, flush=True)
                key = {"labels": number, "draw": draw, "method": method}
                record.write("few_labels", key, measured)


def labeled(rows: Rows, number: int, draw: int) -> np.ndarray:
    """The numbers of the rows whose class is known, as many of each class as possible."""
    order = np.random.default_rng(draw).permutation(len(rows))
    classes = rows.labels.numpy()[order]
    rank = np.zeros(len(rows), dtype=int)
    for each in np.unique(classes):
        rank[classes == each] = np.arange((classes == each).sum())
    return order[np.argsort(rank, kind="stable")[:number]]


def of_story(
    train: Rows, test: Rows, known: np.ndarray, clusters: np.ndarray, draw: int, epochs: int
) -> dict[str, Any]:
    """Scores of a DVMoE of all rows."""
    y = torch.full((len(train),), torch.nan)
    y[known] = train.labels[known].float()
    components = torch.as_tensor(clusters).float().clone()
    components[known] = torch.nan  # there the class decides
    torch.manual_seed(draw)
    story = models.DVMoE(
        784,
        10,
        clusters.shape[1],
        10,
        experts="categorical",
        predictor=models.Predictor(columns=[]),
        likelihood="bernoulli",
        hidden=mnist.HIDDEN,
        gate=models.ConvolutionalClassifier((1, 28, 28), clusters.shape[1]),
    )
    fit = pyro_moe.fit(
        story.model,
        story.guide,
        (train.x, y),
        labels=components,
        initialize=torch.as_tensor(clusters),
        missing_targets=True,
        epochs=epochs,
        initial_epochs=1,
        learning_rate=1e-3,
        seed=draw,
        progress=False,
    )
    return evaluation.classification_scores(evaluation.predict(fit, test.x), test.labels)


def of_other(method: str, train: Rows, test: Rows, known: np.ndarray, draw: int) -> dict[str, Any]:
    """Scores of a scikit-learn method on the labeled rows."""
    classifier = OTHERS[method](draw).fit(train.x.numpy()[known], train.labels.numpy()[known])
    return classification.scores(classifier, test)


if __name__ == "__main__":
    main()
