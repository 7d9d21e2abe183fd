"""The demo: three fits of the command line, beside what scikit-learn makes of the same rows."""

import time
from collections.abc import Iterator

import numpy as np
from sklearn.cluster import KMeans
from sklearn.mixture import GaussianMixture

from . import datasets, evaluation

COMMANDS = (
    "fit vade --data spiral --epochs 15 --restarts 2",
    "fit dmvae --data spiral --epochs 15 --restarts 2",
    "fit dmvae --data digits --epochs 100 --initialize tsne",
)


def baselines(data: str, num_components: int) -> Iterator[tuple[str, dict[str, float]]]:
    """Scores on test rows of what scikit-learn makes of the training rows.

    Args:
        data: ``"spiral"`` or ``"digits"``.
        num_components: K.

    Yields:
        A method's name, and its scores.
    """
    train, test = datasets.load(data)
    clusterers = {
        "K-means": KMeans(num_components, n_init=10, random_state=0),
        "Gaussian mixture": GaussianMixture(
            num_components, n_init=10, reg_covar=1e-3, random_state=0
        ),
    }
    for name, clusterer in clusterers.items():
        started = time.perf_counter()
        clusters = clusterer.fit(train.x.numpy()).predict(test.x.numpy())
        seconds = time.perf_counter() - started
        scores = evaluation.clustering_scores(clusters, np.asarray(test.labels))
        yield name, {**scores, "seconds": seconds}
