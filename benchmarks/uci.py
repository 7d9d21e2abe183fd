"""UCI regression: RMSE and log-likelihood of test rows on the standard splits of nine data sets.

    python benchmarks/uci.py yacht --data-dir DIR
    python benchmarks/uci.py yacht --choose --method narrow --splits 0 --data-dir DIR

One method, ``wide``, is used for all data sets: the averaged predictive densities of three deep
mixtures of experts, from three seeds. It was chosen with ``--choose``, by the rows of each data set
that are test rows of no split.
"""

import argparse
import statistics
import time
from dataclasses import dataclass
from itertools import chain
from math import ceil
from pathlib import Path

import numpy as np
import record
import torch
from torch import nn

import pyro_moe
from pyro_moe import Fit, Rows, datasets, evaluation, models
from pyro_moe.evaluation import Prediction

NUM_SPLITS = {
    "bostonHousing": 20,
    "concrete": 20,
    "energy": 20,
    "kin8nm": 20,
    "naval-propulsion-plant": 20,
    "power-plant": 20,
    "protein-tertiary-structure": 5,
    "wine-quality-red": 20,
    "yacht": 20,
}
NUM_COMPONENTS = 5
MEMBERS = 3


@dataclass(frozen=True)
class Method:
    """Widths of the hidden layers of the gate and of the network of the experts.

    The experts are outputs of one MLP, each with its own scale. Without hidden layers they are
    affine, and the gate is a softmax gate.
    """

    experts: tuple[int, ...]
    gate: tuple[int, ...]


METHODS = {
    "affine": Method(experts=(), gate=(50,)),
    "narrow": Method(experts=(50, 50), gate=()),
    "wide": Method(experts=(128, 128), gate=(128,)),
}
CHOSEN = "wide"


def main() -> None:
    """Run one method on the requested splits."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", choices=NUM_SPLITS)
    parser.add_argument("--method", choices=METHODS, default=CHOSEN)
    parser.add_argument("--splits", type=int, nargs="+", help="default: all")
    parser.add_argument("--choose", action="store_true", help="score rows that no split tests")
    parser.add_argument("--data-dir", metavar="DIR", help="folder of the data sets' folders")
    options = parser.parse_args()
    if options.choose and options.data_dir is None:
        parser.error("expected --data-dir DIR with --choose; got none")
    torch.set_num_threads(1)
    scored = "rows that no split tests" if options.choose else "test rows"
    results = []
    for split in options.splits or range(NUM_SPLITS[options.data]):
        train, test = datasets.uci(options.data, split, options.data_dir)
        if options.choose:
            train, test = never_tested(train, options.data, split, options.data_dir)
        started = time.perf_counter()
        measured = scores(METHODS[options.method], train, test)
        measured["seconds"] = time.perf_counter() - started
        print(options.data, options.method, split, measured, flush=True)
        results.append(measured)
        key = {"data": options.data, "method": options.method, "scored": scored, "split": split}
        record.write("uci", key, measured)
    for score in ("rmse", "log_likelihood"):
        values = [measured[score] for measured in results]
        error = statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else float("nan")
        print(f"{score} {statistics.mean(values):.4f} ± {error:.4f} over {len(values)} splits")


def never_tested(train: Rows, data: str, split: int, data_dir: str) -> tuple[Rows, Rows]:
    """The training rows of a split without those that no split tests, and these, 2,000 at most."""
    tests = [
        np.loadtxt(Path(data_dir) / data / f"index_test_{i}.txt").astype(int)
        for i in range(NUM_SPLITS[data])
    ]
    in_order = np.setdiff1d(np.arange(len(train) + len(tests[split])), tests[split])
    held = ~np.isin(in_order, np.concatenate(tests))
    some = np.random.default_rng(0).permutation(np.flatnonzero(held))[:2000]
    return Rows(train.x[~held], train.y[~held]), Rows(train.x[some], train.y[some])


def scores(method: Method, train: Rows, test: Rows) -> dict:
    """Scores of the averaged prediction, and mean scores of its members."""
    predictions = [
        evaluation.predict(member(method, train, seed), test.x) for seed in range(MEMBERS)
    ]
    singles = [evaluation.regression_scores(p, test.y) for p in predictions]
    averaged = Prediction(
        torch.cat([p.log_weights for p in predictions]),
        tuple(chain.from_iterable(p.distributions for p in predictions)),
        predictions[0].leading,
    )
    return {
        **evaluation.regression_scores(averaged, test.y),
        "members": {
            key: statistics.mean(single[key] for single in singles)
            for key in ("rmse", "log_likelihood")
        },
    }


def member(method: Method, train: Rows, seed: int) -> Fit:
    """The fit with one seed, whose training stops by the likelihood of a tenth of its rows.

    It has at most 6,000 steps of 64 rows, or 100 epochs of 256 rows if there are many.
    """
    many = len(train) > 20_000
    batch_size = 256 if many else 64
    torch.manual_seed(seed)
    return pyro_moe.fit(
        *programs(method, train.x.shape[1]),
        (train.x, train.y),
        epochs=100 if many else round(6000 / ceil(len(train) / batch_size)),
        batch_size=batch_size,
        validation=0.1,
        patience=20,
        seed=seed,
        progress=False,
    )


def programs(method: Method, x_dim: int) -> tuple:
    """The model and guide of a method."""
    units = models.Standardize(x_dim)
    gate = nn.Sequential(units, models.MLP(x_dim, method.gate, NUM_COMPONENTS))
    network = nn.Sequential(
        units,
        models.MLP(x_dim, method.experts, NUM_COMPONENTS),
        nn.Unflatten(-1, (NUM_COMPONENTS, 1)),
    )
    story = models.MixtureOfExperts(
        models.CategoricalConditional(gate),
        models.NormalExperts(network, NUM_COMPONENTS, y_dim=1),
        units=units,
    )
    return story.model, story.guide


if __name__ == "__main__":
    main()
