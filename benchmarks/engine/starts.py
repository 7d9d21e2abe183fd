"""The cost of five starts of training by gradients, in single starts.

    python benchmarks/engine/starts.py
    python benchmarks/engine/starts.py --methods DeepMoE --repeats 3

CPU seconds of one thread of a whole `fit` with 4,000 steps: with one start, with five that take
their steps together, and with five one by one, as they are with a callback. Five starts hold rows
out, compute a bound on them a hundred times, and end with a phase on all rows.
"""

import argparse
import statistics
from functools import partial
from typing import Any

import timing
import torch

import pyro_moe
from pyro_moe import models

STEPS, K = 4000, 5
SIZES = ((300, 32, 128), (300, 128, 128), (2000, 128, 256))  # rows, units, rows of a minibatch
STORIES: dict[str, Any] = {
    "DeepMoE": partial(models.DeepMoE, 2, 1, K),
    "DMVAE": partial(models.DMVAE, 2, 2, K),
    "VaDE": partial(models.VaDE, 2, 2, K),
    "DVMoE": partial(models.DVMoE, 2, 1, 2, K),
}
WAYS: dict[str, dict[str, Any]] = {
    "one": {"restarts": 1},
    "together": {"restarts": 5},
    "one_by_one": {"restarts": 5, "callback": lambda fit: None},
}


def main() -> None:
    """Time the requested stories in turns."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--methods", nargs="+", choices=STORIES, default=list(STORIES))
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    for name in options.methods:
        for rows, units, batch in SIZES:
            turns: dict[str, list[float]] = {way: [] for way in WAYS}
            for seed in range(options.repeats):
                for way, choices in WAYS.items():
                    run = partial(fitted, name, rows, units, batch, seed=seed, **choices)
                    turns[way].append(timing.cpu_seconds(run))
            seconds = {way: statistics.median(times) for way, times in turns.items()}
            print(name, rows, units, {way: round(value, 2) for way, value in seconds.items()})
            key = {"story": name, "rows": rows, "units": units, "batch": batch}
            timing.record.write("starts", key, {"seconds": seconds, "repeats": options.repeats})


def fitted(name: str, rows: int, units: int, batch: int, **choices: Any) -> None:
    """Fit a story to rows of three regimes."""
    torch.manual_seed(0)
    regime = torch.arange(rows) % 3
    x = torch.randn(rows, 2) + 4.0 * torch.stack([regime == 0, regime == 1], -1)
    y = x[:, :1] * (regime.unsqueeze(-1) - 1.0) + 0.3 * torch.randn(rows, 1)
    story = STORIES[name](hidden=(units, units))
    data = (x, y) if name.endswith("MoE") else x
    options = {"loss": "marginal", "initialize": "random", "compile": False, "progress": False}
    epochs = STEPS // -(-rows // batch)
    pyro_moe.fit(
        story.model, story.guide, data, epochs=epochs, batch_size=batch, **options, **choices
    )


if __name__ == "__main__":
    main()
