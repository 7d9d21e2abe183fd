"""Imputation of hidden pixels of digits: errors, and coverage of 90 % intervals.

    python benchmarks/imputation.py --seeds 0 1 2

Of 200 test images, half of the pixels are hidden: at random, the lower half, or the right half.
Importance sampling alone stands beside it. Pixels that are constant in training are not counted.
"""

import argparse
import time

import record
import torch

import pyro_moe
from pyro_moe import datasets, evaluation, models

ROWS, SIDE = 200, 8


def main() -> None:
    """Fit a DMVAE for each seed, and impute."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    torch.set_num_threads(1)
    for seed in parser.parse_args().seeds:
        train, test = datasets.digits()
        story = models.DMVAE(SIDE**2, 10, 10)
        fit = pyro_moe.fit(story.model, story.guide, train.x, seed=seed, progress=False)
        x = test.x[:ROWS].double()
        for name, hidden in hiding(x, seed).items():
            for num_moves in (0, 40):
                measured = imputed(fit, x, hidden & (train.x.std(0) > 0), num_moves)
                print(seed, name, num_moves, {k: round(v, 3) for k, v in measured.items()})
                key = {"hidden": name, "moves": num_moves, "seed": seed}
                record.write("imputation", key, measured)


def hiding(x: torch.Tensor, seed: int) -> dict[str, torch.Tensor]:
    """Which entries are hidden, by a name."""
    pixels = torch.arange(SIDE**2).expand_as(x)
    generator = torch.Generator().manual_seed(seed)
    return {
        "at random": torch.rand(x.shape, generator=generator) < 0.5,
        "lower half": pixels // SIDE >= SIDE // 2,
        "right half": pixels % SIDE >= SIDE // 2,
    }


def imputed(
    fit: pyro_moe.Fit, x: torch.Tensor, hidden: torch.Tensor, num_moves: int
) -> dict[str, float]:
    """Coverage, root mean squared error of hidden pixels, and seconds."""
    started = time.process_time()
    found = evaluation.impute(fit, x.masked_fill(hidden, torch.nan), num_moves=num_moves)
    seconds = time.process_time() - started
    draws = found.draws.double()
    low, high = draws.quantile(0.05, 0), draws.quantile(0.95, 0)
    return {
        "coverage": ((low <= x) & (x <= high))[hidden].double().mean().item(),
        "error": (found.mean - x)[hidden].square().mean().sqrt().item(),
        "effective_samples": found.effective_samples.median().item(),
        "seconds": seconds,
    }


if __name__ == "__main__":
    main()
