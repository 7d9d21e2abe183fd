"""Several starts: whether the bound on held-out rows tells early which of them ends best.

    python benchmarks/several_starts.py --seeds 0 1 2 3 4 5

Five starts of a story on spirals are trained to their end. From their bounds after each epoch
follows what a rule would have lost and cost that goes on with the best start alone after a share
of the training.
"""

import argparse
from typing import Any

import record
import torch

import pyro_moe
from pyro_moe import Fit, models
from pyro_moe.fitting.training import LAST_PHASE
from pyro_moe.paper import table1

M = 2
CASES = {
    "DMVAE": ("random", 20),
    "VaDE": ("random", 20),
    "DeepMoE": ("random", 20),
    "DVMoE": ("autoencoder", 10),
}


def main() -> None:
    """Train the starts of each story, and record their bounds and seconds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(6)))
    parser.add_argument("--methods", nargs="+", choices=CASES, default=list(CASES))
    options = parser.parse_args()
    torch.set_num_threads(1)
    for seed in options.seeds:
        for name in options.methods:
            starts = trained(name, seed)
            print(seed, name, [max(start["held_out_elbo"]) for start in starts], flush=True)
            record.write("several_starts", {"method": name, "seed": seed}, {"starts": starts})


def trained(name: str, seed: int) -> list[dict[str, Any]]:
    """Seconds before the training, and bound and seconds of each epoch, for each start."""
    begin, epochs = CASES[name]
    train, _ = table1.rows("spiral", y_dim=M, seed=seed)
    story: Any
    if name in table1.METHODS:
        story, _ = table1.method(name, "spiral", M)
    else:
        story = getattr(models, name)(x_dim=2, z_dim=2, num_components=5)
    starts: list[list[dict[str, Any]]] = []

    def measure(fit: Fit) -> None:
        if fit.history[-1]["phase"] == LAST_PHASE:
            return  # it belongs to the best start, and no rule saves it
        if len(fit.history) == 1:
            starts.append([])
        starts[-1].append(fit.history[-1])

    pyro_moe.fit(
        story.model,
        story.guide,
        (train.x, train.y) if name in table1.METHODS else train.x,
        initialize=begin,
        epochs=epochs,
        restarts=5,
        prior="weak",
        seed=seed,
        progress=False,
        callback=measure,
    )
    return [summary(records) for records in starts]


def summary(records: list[dict[str, Any]]) -> dict[str, Any]:
    """The start from the records of its epochs."""
    training = [each for each in records if each["phase"] == "training"]
    return {
        "seconds_before": sum(e["seconds"] for e in records if e["phase"] != "training"),
        "held_out_elbo": [each["held_out_elbo"] for each in training],
        "seconds": [each["seconds"] for each in training],
    }


if __name__ == "__main__":
    main()
