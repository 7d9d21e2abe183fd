"""Coverage of 90 % prediction intervals on simulated data, also with a posterior of the experts.

python benchmarks/intervals.py --seeds 0 1 2 3 4
"""

import argparse
import statistics

import record
import torch

import pyro_moe
from pyro_moe import evaluation, models

SIZES = {"x_dim": 2, "y_dim": 1, "num_components": 3}
LEVEL = 0.9
MANY, FEW = 3000, 60
STORIES = {
    "ME": lambda: models.ME(**SIZES),
    "GMMMoE": lambda: models.GMMMoE(**SIZES),
    "DVMoE": lambda: models.DVMoE(**SIZES, z_dim=2),
    "BayesianExperts": lambda: models.BayesianExperts(models.ME(**SIZES)),
}
FITTED = {
    "ME": ("ME", MANY),
    "GMMMoE": ("GMMMoE", MANY),
    "DVMoE": ("DVMoE", MANY),
    "ME, few rows": ("ME", FEW),
    "BayesianExperts, few rows": ("BayesianExperts", FEW),
}


def main() -> None:
    """Fit each story to simulated rows, and record the coverage."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(10)))
    parser.add_argument("--stories", choices=FITTED, nargs="+", default=list(FITTED))
    options = parser.parse_args()
    torch.set_num_threads(1)
    for name in options.stories:
        story, num_rows = FITTED[name]
        runs = []
        for seed in options.seeds:
            runs.append(coverage(story, num_rows, seed))
            key = {"story": story, "num_rows": num_rows, "level": LEVEL, "seed": seed}
            record.write("intervals", key, runs[-1])
        covered = statistics.mean(run["coverage"] for run in runs)
        error = statistics.stdev(run["coverage"] for run in runs) / len(runs) ** 0.5
        print(f"{name:<28}{covered:.4f} ± {error:.4f}", flush=True)


def coverage(name: str, num_rows: int, seed: int) -> dict[str, float]:
    """Coverage of 90 % intervals for 5,000 new targets, and their mean log-likelihood."""
    (x, y), (new_x, new_y) = simulated(num_rows, seed), simulated(5000, seed, new=True)
    story = STORIES[name]()
    by_em = isinstance(story, models.GMMMoE) or (name == "ME" and num_rows == MANY)
    settings = {"loss": "em", "epochs": 200} if by_em else {}
    fit = pyro_moe.fit(
        story.model, story.guide, (x, y), restarts=3, seed=seed, progress=False, **settings
    )
    prediction = evaluation.predict(fit, new_x)
    scores = evaluation.regression_scores(prediction, new_y, levels=(LEVEL,))
    return {"coverage": scores["coverage"][LEVEL], "log_likelihood": scores["log_likelihood"]}


def simulated(num_rows: int, seed: int, *, new: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of a mixture of three affine experts with a Gaussian gate.

    Its parameters depend on the seed only, so that new rows are from the same mixture.
    """
    generator = torch.Generator().manual_seed(seed)
    loc = 3.0 * torch.randn(3, 2, generator=generator)
    weight, bias = torch.randn(3, 2, generator=generator), torch.randn(3, generator=generator)
    scale = 0.2 + 0.3 * torch.rand(3, generator=generator)
    if new:
        generator.manual_seed(1_000_000 + seed)
    c = torch.randint(3, (num_rows,), generator=generator)
    x = loc[c] + torch.randn(num_rows, 2, generator=generator)
    mean = (weight[c] * x).sum(-1) + bias[c]
    y = mean + scale[c] * torch.randn(num_rows, generator=generator)
    return x, y.unsqueeze(-1)


if __name__ == "__main__":
    main()
