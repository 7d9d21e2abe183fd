"""UCI regression: RMSE and log-likelihood of test rows on the 20 standard splits.

    python benchmarks/uci.py yacht --splits 0 1 2 3 4 --data-dir DIR

A method is an ensemble of mixtures of experts, fitted with several seeds. Their predictive
densities are averaged. Methods were chosen with ``--inner``, which scores a held-out fifth of the
training rows and does not use the test rows.
"""

import argparse
import statistics
import time
from dataclasses import dataclass
from itertools import chain

import numpy as np
import record
import torch
from torch import nn

import pyro_moe
from pyro_moe import Rows, datasets, evaluation, models
from pyro_moe.evaluation import Prediction


@dataclass(frozen=True)
class Method:
    """Settings of a mixture of experts.

    The experts are outputs of one MLP, each with its own scale. Without hidden layers, the experts
    are affine, and the gate is a softmax gate.
    """

    num_components: int = 5
    experts: tuple[int, ...] = (50, 50)
    gate: tuple[int, ...] = ()
    epochs: int = 200
    batch_size: int = 32
    learning_rate: float = 5e-3
    members: int = 3


METHODS = {
    "affine": Method(experts=(), gate=(50,)),
    "shallow": Method(num_components=10, experts=(50,), epochs=100, batch_size=64),
    "deep": Method(),
    "fast": Method(learning_rate=1e-2),
    "long": Method(epochs=400),
}
CHOSEN = {"concrete": "shallow", "energy": "deep", "yacht": "long"}


def main() -> None:
    """Run one method on the requested splits."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", choices=CHOSEN)
    parser.add_argument("--method", choices=METHODS, help="default: the one chosen for the data")
    parser.add_argument("--splits", type=int, nargs="+", default=list(range(20)))
    parser.add_argument("--inner", action="store_true", help="score held-out training rows")
    parser.add_argument("--data-dir", metavar="DIR", help="folder of the data sets' folders")
    options = parser.parse_args()
    torch.set_num_threads(1)
    name = options.method or CHOSEN[options.data]
    scored = "held-out training rows" if options.inner else "test rows"
    results = []
    for split in options.splits:
        train, test = datasets.uci(options.data, split, options.data_dir)
        if options.inner:
            train, test = inner(train, split)
        started = time.perf_counter()
        measured = scores(METHODS[name], train, test)
        measured["seconds"] = time.perf_counter() - started
        print(options.data, name, split, measured, flush=True)
        results.append(measured)
        key = {"data": options.data, "method": name, "scored": scored, "split": split}
        record.write("uci", key, measured)
    for score in ("rmse", "log_likelihood"):
        values = [measured[score] for measured in results]
        error = statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else float("nan")
        print(f"{score} {statistics.mean(values):.3f} ± {error:.3f} over {len(values)} splits")


def inner(train: Rows, seed: int) -> tuple[Rows, Rows]:
    """Four fifths of the training rows for training, and one fifth for validation."""
    order = np.random.default_rng(1000 + seed).permutation(len(train))
    held, kept = np.split(order, [round(len(train) / 5)])
    return Rows(train.x[kept], train.y[kept]), Rows(train.x[held], train.y[held])


def scores(method: Method, train: Rows, test: Rows) -> dict:
    """Scores of the averaged prediction, and mean scores of its members."""
    predictions = [member(method, train, test, seed) for seed in range(method.members)]
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


def member(method: Method, train: Rows, test: Rows, seed: int) -> Prediction:
    """The prediction of a fit with one seed for the test rows."""
    fit = pyro_moe.fit(
        *programs(method, train.x.shape[1]),
        (train.x, train.y),
        epochs=method.epochs,
        batch_size=method.batch_size,
        learning_rate=method.learning_rate,
        seed=seed,
        progress=False,
    )
    return evaluation.predict(fit, test.x)


def programs(method: Method, x_dim: int) -> tuple:
    """The model and guide of a method."""
    units = models.Standardize(x_dim)
    gate = nn.Sequential(units, models.MLP(x_dim, method.gate, method.num_components))
    network = nn.Sequential(
        units,
        models.MLP(x_dim, method.experts, method.num_components),
        nn.Unflatten(-1, (method.num_components, 1)),
    )
    story = models.MixtureOfExperts(
        models.CategoricalConditional(gate),
        models.NormalExperts(network, method.num_components, y_dim=1),
        units=units,
    )
    return story.model, story.guide


if __name__ == "__main__":
    main()
