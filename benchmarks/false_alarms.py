"""The rate of alarms of `criticism.check` for correct models and for models with one wrong part.

python benchmarks/false_alarms.py
"""

import argparse
from collections import Counter
from collections.abc import Callable
from typing import Any

import record
import torch

import pyro_moe
from pyro_moe import criticism, models

LEVEL = 0.05
FITTED_ROWS, CHECKED_ROWS, REPLICATES = 2000, 500, 100
LOC = 4.0 * torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
SLOPE = torch.tensor([[1.0, -1.0], [2.0, 0.5], [-1.0, 1.0]])
BIAS = torch.tensor([0.0, 1.0, -1.0])
SCALE = torch.tensor([0.3, 0.5, 0.8])
Rows = tuple[torch.Tensor, ...]  # x, and y if there is one
Simulated = tuple[Rows, torch.Tensor]  # rows, and the component of each row


def main() -> None:
    """Simulate, fit, check, and count."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--true", type=int, default=100, help="simulations of each correct model")
    parser.add_argument("--wrong", type=int, default=20, help="simulations of each wrong model")
    options = parser.parse_args()
    torch.set_num_threads(1)
    for assumptions, cases, number in (
        ("true", TRUE, options.true),
        ("wrong", WRONG, options.wrong),
    ):
        for name, (story, simulate) in cases.items():
            runs = []
            for seed in range(number):
                runs.append(checked(story(), simulate, seed))
                key = {"assumptions": assumptions, "case": name, "level": LEVEL, "seed": seed}
                record.write("false_alarms", key, runs[-1])
            rate = sum(run["p_value"] <= LEVEL for run in runs) / number
            error = (rate * (1 - rate) / number) ** 0.5
            named = Counter(run["most_surprising"] for run in runs if run["p_value"] <= LEVEL)
            first = f"   {named.most_common(1)[0][0]}" if named else ""
            print(f"{assumptions:<7}{name:<42}{rate:.3f} ± {error:.3f}{first}", flush=True)


def checked(
    story: Any, simulate: Callable[[int, torch.Generator], Simulated], seed: int
) -> dict[str, Any]:
    """The smallest adjusted p-value of a model fitted to simulated rows, and its statistic."""
    generator = torch.Generator().manual_seed(seed)
    rows, component = simulate(FITTED_ROWS, generator)
    new_rows, _ = simulate(CHECKED_ROWS, generator)
    k = story.num_components
    # The true components exclude local optima, whose alarms would not be false.
    start = torch.nn.functional.one_hot(component % k, k).float()
    fit = pyro_moe.fit(
        story.model,
        story.guide,
        rows,
        loss="em",
        epochs=30,
        initialize=start,
        seed=seed,
        progress=False,
    )
    found = criticism.check(fit, new_rows, num_replicates=REPLICATES, seed=seed)
    first = found.table.sort_values(["adjusted_p_value", "p_value"], kind="stable").iloc[0]
    return {"p_value": found.p_value, "most_surprising": f"{first['statistic']} of {first['site']}"}


def clusters(number: int, generator: torch.Generator) -> Simulated:
    """Rows of a Gaussian mixture of three components."""
    c = torch.randint(3, (number,), generator=generator)
    x = LOC[c] + (1 + 0.3 * c.unsqueeze(-1)) * torch.randn(number, 2, generator=generator)
    return (x,), c


def gated_by_clusters(number: int, generator: torch.Generator) -> Simulated:
    """Rows of a Gaussian mixture, with targets of three affine experts."""
    (x,), c = clusters(number, generator)
    noise = torch.randn(number, generator=generator)
    return (x, _line(x, c) + SCALE[c] * noise), c


def gated_by_softmax(number: int, generator: torch.Generator) -> Simulated:
    """Targets of three affine experts under a softmax gate."""
    x, c = _softmax(number, generator)
    noise = torch.randn(number, generator=generator)
    return (x, _line(x, c) + SCALE[c] * noise), c


def classes(number: int, generator: torch.Generator) -> Simulated:
    """Three classes from softmax experts under a softmax gate."""
    x, c = _softmax(number, generator)
    logits = torch.einsum("nd,jd->nj", x, SLOPE) * (1 - c.unsqueeze(-1))
    return (x, torch.multinomial(logits.softmax(-1), 1, generator=generator).squeeze(-1)), c


def counts(number: int, generator: torch.Generator) -> Simulated:
    """Poisson counts of two log-affine experts under a softmax gate."""
    x, c = _softmax(number, generator)
    return (x, torch.poisson(_rate(x, c), generator=generator)), c


def overdispersed(number: int, generator: torch.Generator) -> Simulated:
    """Overdispersed counts: Poisson rates times gamma variables of mean 1 and variance 1/2."""
    x, c = _softmax(number, generator)
    gamma = -torch.rand(number, 2, generator=generator).log().mean(-1)
    return (x, torch.poisson(_rate(x, c) * gamma, generator=generator)), c


def heavy_tailed(number: int, generator: torch.Generator) -> Simulated:
    """Affine experts with Student's t noise of three degrees of freedom."""
    x, c = _softmax(number, generator)
    chi2 = torch.randn(number, 3, generator=generator).square().mean(-1)
    noise = torch.randn(number, generator=generator) / chi2.sqrt()
    return (x, _line(x, c) + SCALE[c] * noise), c


def uneven(number: int, generator: torch.Generator) -> Simulated:
    """One affine map with a noise scale that grows with the first column of x."""
    x = torch.randn(number, 2, generator=generator)
    noise = torch.randn(number, generator=generator)
    c = torch.zeros(number, dtype=torch.long)
    return (x, _line(x, c) + (0.3 * x[:, 0]).exp() * noise), c


def skewed(number: int, generator: torch.Generator) -> Simulated:
    """Two columns of a gamma distribution of shape four."""
    exponential = -torch.rand(number, 2, 4, generator=generator).log()
    return (exponential.mean(-1),), torch.zeros(number, dtype=torch.long)


def _softmax(number: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    x = 2 * torch.randn(number, 2, generator=generator)
    g = torch.einsum("nd,kd->nk", x, LOC).softmax(-1)
    return x, torch.multinomial(g, 1, generator=generator).squeeze(-1)


def _line(x: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
    return (SLOPE[c] * x).sum(-1) + BIAS[c]


def _rate(x: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
    return (1.5 + 0.2 * _line(x, c)).exp()


TRUE = {
    "GMM": (lambda: models.GMM(2, 3), clusters),
    "GMMMoE": (lambda: models.GMMMoE(2, 1, 3), gated_by_clusters),
    "ME": (lambda: models.ME(2, 1, 3), gated_by_softmax),
    "ME, classes": (lambda: models.ME(2, 3, 3, experts="categorical"), classes),
    "ME, counts": (lambda: models.ME(2, 1, 3, experts="poisson"), counts),
}
WRONG = {
    "normal noise for heavy tails": (lambda: models.ME(2, 1, 3), heavy_tailed),
    "two components for three": (lambda: models.GMM(2, 2), clusters),
    "equal noise where it grows with x": (lambda: models.ME(2, 1, 1), uneven),
    "Poisson for overdispersed counts": (
        lambda: models.ME(2, 1, 3, experts="poisson"),
        overdispersed,
    ),
    "a Gaussian for skewed x": (lambda: models.GMM(2, 1), skewed),
}


if __name__ == "__main__":
    main()
