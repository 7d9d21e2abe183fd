"""CPU seconds of default fits of small tables, one thread.

    python benchmarks/engine/small_tables.py

Rows of two regimes with two columns of x and one of y. Each story is fitted as
``fit(story.model, story.guide, (x, y))`` fits it.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from timing import cpu_seconds, report

import pyro_moe
from pyro_moe import models

ROWS = (30, 274, 800)
STORIES: dict[str, Callable[[], Any]] = {
    "ME": partial(models.ME, 2, 1, 2),
    "GMMMoE": partial(models.GMMMoE, 2, 1, 2),
    "DeepMoE": partial(models.DeepMoE, 2, 1, 2),
    "DVMoE": partial(models.DVMoE, 2, 1, 2, 2),
}


def table(rows: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Two overlapping clusters of x, each with its own slopes."""
    generator = torch.Generator().manual_seed(0)
    regime = (torch.arange(rows) % 2).unsqueeze(-1)
    x = torch.randn(rows, 2, generator=generator) + 3.0 * regime
    noise = 0.3 * torch.randn(rows, 1, generator=generator)
    return x, (2.0 * regime - 1.0) * x[:, :1] + noise


def fitted(name: str, rows: int) -> None:
    """Fit a story with all defaults."""
    story = STORIES[name]()
    pyro_moe.fit(story.model, story.guide, table(rows), progress=False)


if __name__ == "__main__":
    torch.set_num_threads(1)
    for name in STORIES:
        fitted(name, 40)  # imports
        for rows in ROWS:
            report(f"default fit, {rows} rows, {name}", cpu_seconds(partial(fitted, name, rows)))
