"""``pyro-moe demo``: mixtures of experts and a clustering, compared with scikit-learn."""

import argparse
import shlex
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.cluster import KMeans
from sklearn.ensemble import HistGradientBoostingRegressor
from sklearn.mixture import GaussianMixture

from pyro_moe import datasets, evaluation
from pyro_moe.rows import Rows

from .options import parser

# DVMoE has 5 epochs of the autoencoder, 1 with fixed assignments and 5 of training: 11 in all.
EXPERTS = {
    "DVMoE": "fit dvmoe --data spiral --epochs 5",
    "DeepMoE, random start": "fit deepmoe --data spiral --epochs 11 --initialize random",
}
CLUSTERS = {"DMVAE": "fit dmvae --data digits --epochs 100 --initialize tsne"}

Scores = Mapping[str, float]

# Columns of a table, by score: the heading and the number format.
OF_EXPERTS = {
    "error": ("test error", ".2g"),
    "log_likelihood": ("log-likelihood", ".2f"),
    "accuracy": ("gate accuracy", ".3f"),
    "seconds": ("seconds", ".1f"),
}
OF_CLUSTERS = {
    "accuracy": ("accuracy", ".3f"),
    "nmi": ("normalized MI", ".3f"),
    "ari": ("adjusted Rand", ".3f"),
    "seconds": ("seconds", ".1f"),
}


def run(options: argparse.Namespace) -> None:
    """Fit, write a report, and print tables of scores, with those of scikit-learn."""
    torch.set_num_threads(1)  # faster than several threads for small networks
    experts = {name: _fit(line, options) for name, line in EXPERTS.items()}
    clusters = {name: _fit(line, options) for name, line in CLUSTERS.items()}
    first = _folder(EXPERTS["DVMoE"], options)
    _command(["report", str(first)])
    print(
        f"To open in a browser: {first / 'report.html'}\n"
        "The section “Maps” shows the regions of the components. The warnings at the top are due\n"
        "to the targets, which have no noise, whereas normal experts assume some.\n"
    )
    train, test = datasets.piecewise_affine(*datasets.load("spiral"))
    title = (
        f"Spirals, {len(test):,} test rows. The target is affine in x on each arm and has variance "
        f"{np.asarray(test.y).var():.3g}.\nNo method uses the labels of the arms."
    )
    boosting = {"gradient boosting": _boosting(train, test)}
    train, test = datasets.load("digits")
    others = _clusterings(train, test)
    _print_table(title, {**experts, **boosting}, OF_EXPERTS)
    _print_table(
        f"Digits, {len(test):,} test rows. Clusters are compared with labels that no method uses.",
        {**clusters, **others},
        OF_CLUSTERS,
    )


def _folder(line: str, options: argparse.Namespace) -> Path:
    _, story, _, data, *_ = line.split()
    return Path(options.out, f"{story}-{data}")


def _fit(line: str, options: argparse.Namespace) -> Scores:
    """The scores of a fit by the command ``fit``, which writes a run folder."""
    words = [*line.split(), "--out", str(_folder(line, options))]
    _, scores = _command(words + ["--quiet"] * options.quiet)
    return scores


def _command(words: list[str]) -> Any:
    """Print and run a command, and return its result."""
    print(f"$ pyro-moe {shlex.join(words)}", flush=True)
    options = parser().parse_args(words)
    result = options.command(options)
    print(flush=True)
    return result


def _boosting(train: Rows, test: Rows) -> Scores:
    """Scores of a regression method without components."""
    started = time.perf_counter()
    boosting = HistGradientBoostingRegressor(random_state=0)
    boosting.fit(train.x.numpy(), np.asarray(train.y).ravel())
    predicted = boosting.predict(test.x.numpy())
    seconds = time.perf_counter() - started
    error = float(np.square(np.asarray(test.y).ravel() - predicted).mean())
    return {"error": error, "seconds": seconds}


def _clusterings(train: Rows, test: Rows) -> Mapping[str, Scores]:
    """Scores of clustering methods on the pixels."""
    number = len(np.unique(np.asarray(train.labels)))
    clusterers = {
        "K-means": KMeans(number, n_init=10, random_state=0),
        "Gaussian mixture": GaussianMixture(number, n_init=10, reg_covar=1e-3, random_state=0),
    }
    scores = {}
    for name, clusterer in clusterers.items():
        started = time.perf_counter()
        clusters = clusterer.fit(train.x.numpy()).predict(test.x.numpy())
        seconds = time.perf_counter() - started
        found = evaluation.clustering_scores(clusters, np.asarray(test.labels))
        scores[name] = {**found, "seconds": seconds}
    return scores


def _print_table(
    title: str, table: Mapping[str, Scores], columns: Mapping[str, tuple[str, str]]
) -> None:
    """Print a row for each method. Scores that it does not have are blank."""
    print(f"{title}\n\n{'':<24}" + "".join(f"{name:>16}" for name, _ in columns.values()))
    for method, scores in table.items():
        cells = (
            f"{scores[key]:{form}}" if key in scores else "" for key, (_, form) in columns.items()
        )
        print(f"{method:<24}" + "".join(f"{cell:>16}" for cell in cells))
    print()
