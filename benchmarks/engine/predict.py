"""CPU seconds of `predict` of 100,000 rows with its mean, beside one forward pass of the story.

OMP_NUM_THREADS=1 python benchmarks/engine/predict.py
"""

from collections.abc import Callable
from typing import Any

import torch
from timing import cpu_seconds, report

import pyro_moe
from pyro_moe import datasets, evaluation
from pyro_moe.models import ME, DeepMoE, DVMoE, GMMMoE, VaDEMoE

ROWS = 10**5
STORIES: dict[str, Callable[[], Any]] = {
    "ME": lambda: ME(2, 1, 5),
    "DeepMoE": lambda: DeepMoE(2, 1, 5),
    "DVMoE": lambda: DVMoE(2, 1, 5, 2),
    "GMMMoE": lambda: GMMMoE(2, 1, 5),
    "VaDEMoE": lambda: VaDEMoE(2, 1, 5, 2),
}


def least_seconds(run: Callable[[], Any], repeats: int = 3) -> float:
    """The fewest CPU seconds of a call that was made before."""
    run()
    return min(cpu_seconds(run) for _ in range(repeats))


def of_story(name: str) -> None:
    """One row of the table."""
    train, _ = datasets.piecewise_affine(*datasets.spiral(seed=0), y_dim=1, seed=0)
    story = STORIES[name]()
    choices: dict[str, Any] = {"epochs": 1, "initialize": "random", "progress": False}
    fit = pyro_moe.fit(story.model, story.guide, (train.x, train.y), **choices)
    chosen = torch.randint(len(train.x), (ROWS,), generator=torch.Generator().manual_seed(0))
    x = fit.features(train.x[chosen])[0]
    ours = least_seconds(lambda: evaluation.predict(fit, x).mean)
    with torch.no_grad():
        try:
            forward = least_seconds(lambda: fit.story(x).mean)
        except NotImplementedError:  # the gate is not a function of x alone
            forward = None
    report(f"predict {ROWS:,} rows, {name}", ours, forward, "forward pass")


if __name__ == "__main__":
    torch.set_num_threads(1)
    for name in STORIES:
        of_story(name)
