"""Classification (paper §4.2): accuracy and log-loss on test rows of digits and MNIST.

    python benchmarks/classification.py digits --seeds 0 1 2 3 4
    python benchmarks/classification.py mnist --seeds 0 --data-dir DIR

The mixtures have softmax experts on the pixels. The baselines are scikit-learn's softmax
regression, gradient boosting, and an MLP of the gate's size. Learning rates were chosen on held-out
training rows. On MNIST, so were the number of components (5, 10 or 20) and the initialization of
DVMoE. Nothing was tuned on test rows.
"""

import argparse
import time
import warnings
from typing import Any

import numpy as np
import record
import torch
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, log_loss
from sklearn.neural_network import MLPClassifier

import pyro_moe
from pyro_moe import Rows, datasets, evaluation, models

HIDDEN = (128, 128)
DIGITS = {"epochs": 60, "batch_size": 64, "learning_rate": 2e-2, "initialize": "random"}
MNIST: dict[str, dict[str, Any]] = {
    "ME": {"epochs": 20, "learning_rate": 1e-2},
    "DeepMoE": {"epochs": 20, "learning_rate": 3e-3, "initialize": "random"},
    "DVMoE": {"epochs": 20, "learning_rate": 3e-3, "initialize": "autoencoder"},
}
BASELINES = {
    "softmax regression": lambda seed: LogisticRegression(max_iter=200),
    "gradient boosting": lambda seed: HistGradientBoostingClassifier(random_state=seed),
    "MLP": lambda seed: MLPClassifier(HIDDEN, early_stopping=True, random_state=seed),
}
STORIES = {
    "ME": lambda sizes: models.ME(**sizes),
    "DeepMoE": lambda sizes: models.DeepMoE(**sizes, hidden=HIDDEN),
    "DVMoE": lambda sizes: models.DVMoE(**sizes, z_dim=10, hidden=HIDDEN),
}


def main() -> None:
    """Fit and score every method for the requested seeds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", choices=["digits", "mnist"])
    parser.add_argument("--seeds", type=int, nargs="+", required=True)
    parser.add_argument("--methods", nargs="+", default=[*STORIES, *BASELINES])
    parser.add_argument("--data-dir", metavar="DIR")
    options = parser.parse_args()
    torch.set_num_threads(1)
    for seed in options.seeds:
        if options.data == "digits":
            train, test = datasets.digits(seed=seed)
        else:
            train, test = datasets.mnist(options.data_dir)
        for method in options.methods:
            score = of_baseline if method in BASELINES else of_story
            started = time.perf_counter()
            measured = score(method, train, test, seed)
            measured["seconds"] = time.perf_counter() - started
            print(options.data, seed, method, measured, flush=True)
            key = {"data": options.data, "method": method, "seed": seed}
            record.write("classification", key, measured)


def of_baseline(method: str, train: Rows, test: Rows, seed: int) -> dict[str, float]:
    """Scores of a scikit-learn method. Boosting is fitted to at most 20,000 rows."""
    rows = 20_000 if method == "gradient boosting" else len(train)
    chosen = np.random.default_rng(seed).permutation(len(train))[:rows]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        classifier = BASELINES[method](seed).fit(
            train.x.numpy()[chosen], train.labels.numpy()[chosen]
        )
    return scores(classifier, test)


def scores(classifier: Any, test: Rows) -> dict[str, float]:
    """Accuracy and log-loss of a classifier of scikit-learn."""
    probabilities = classifier.predict_proba(test.x.numpy())
    labels = test.labels.numpy()
    return {
        "accuracy": float(accuracy_score(labels, probabilities.argmax(1))),
        "log_loss": float(log_loss(labels, probabilities, labels=np.arange(10))),
    }


def of_story(method: str, train: Rows, test: Rows, seed: int) -> dict[str, float]:
    """Scores of a mixture of softmax experts."""
    large = len(train) > 10_000
    sizes = {
        "x_dim": train.x.shape[1],
        "y_dim": 10,
        "num_components": 20 if large else 5,
        "experts": "categorical",
        "common_scale": True,
    }
    story, settings = STORIES[method](sizes), MNIST[method] if large else DIGITS
    data = (train.x, train.labels)
    fit = pyro_moe.fit(story.model, story.guide, data, seed=seed, progress=False, **settings)
    return evaluation.classification_scores(evaluation.predict(fit, test.x), test.labels)


if __name__ == "__main__":
    main()
