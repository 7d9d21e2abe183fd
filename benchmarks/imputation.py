"""Imputation of hidden pixels of digits: errors, and coverage of 90 % intervals.

    python benchmarks/imputation.py --seeds 0 1 2

Of 200 test images, half of the pixels are hidden: at random, the lower half, or the right half.
Importance sampling alone stands beside it, and the draws of three fits together. Pixels that are
constant in training are not counted. The length of z was chosen on held-out training rows.
"""

import argparse
import time

import record
import torch

import pyro_moe
from pyro_moe import datasets, evaluation, models

ROWS, SIDE, Z_DIM, FITS = 200, 8, 5, 3


def main() -> None:
    """Fit a DMVAE for each seed, and impute."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    torch.set_num_threads(1)
    for seed in parser.parse_args().seeds:
        train, test = datasets.digits()
        fits = [fitted(train.x, FITS * seed + number) for number in range(FITS)]
        x = test.x[:ROWS].double()
        for name, hidden in hiding(x, seed).items():
            for number, num_moves in ((1, 0), (1, 40), (FITS, 40)):
                measured = imputed(fits[:number], x, hidden & (train.x.std(0) > 0), num_moves)
                shown = {k: round(v, 3) for k, v in measured.items()}
                print(seed, name, number, num_moves, shown, flush=True)
                key = {"hidden": name, "fits": number, "moves": num_moves, "seed": seed}
                record.write("imputation", key, measured)


def fitted(x: torch.Tensor, seed: int) -> pyro_moe.Fit:
    """A DMVAE of the training images."""
    story = models.DMVAE(SIDE**2, Z_DIM, 10)
    return pyro_moe.fit(story.model, story.guide, x, seed=seed, progress=False)


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
    fits: list[pyro_moe.Fit], x: torch.Tensor, hidden: torch.Tensor, num_moves: int
) -> dict[str, float]:
    """Coverage, root mean squared error of hidden pixels, and seconds, of the draws of all fits."""
    started, seen = time.process_time(), x.masked_fill(hidden, torch.nan)
    found = [evaluation.impute(fit, seen, num_moves=num_moves) for fit in fits]
    seconds = time.process_time() - started
    draws = torch.cat([each.draws for each in found]).double()
    low, high = draws.quantile(0.05, 0), draws.quantile(0.95, 0)
    mean = torch.stack([each.mean for each in found]).mean(0)
    return {
        "coverage": ((low <= x) & (x <= high))[hidden].double().mean().item(),
        "error": (mean - x)[hidden].square().mean().sqrt().item(),
        "effective_samples": sum(each.effective_samples.median().item() for each in found),
        "seconds": seconds,
    }


if __name__ == "__main__":
    main()
