"""The rate of alarms of `criticism.check` for correct models and for models with one wrong part.

python benchmarks/false_alarms.py
python benchmarks/false_alarms.py --rows 60 300 2000 --restored --wrong 0

With --restored, each fit is saved, and checked as it is restored without its training rows. With
--posterior, it has the posterior of `laplace`.
"""

import argparse
import tempfile
from collections import Counter
from collections.abc import Callable
from typing import Any

import record
import torch

import pyro_moe
from pyro_moe import criticism, runs

LEVEL = 0.05
FITTED_ROWS, REPLICATES = 2000, 100
CHECKED = 4  # rows that are fitted for each that is checked
LOC = 4.0 * torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
SLOPE = torch.tensor([[1.0, -1.0], [2.0, 0.5], [-1.0, 1.0]])
BIAS = torch.tensor([0.0, 1.0, -1.0])
SCALE = torch.tensor([0.3, 0.5, 0.8])
Options = argparse.Namespace
Rows = tuple[torch.Tensor, ...]  # x, and y if there is one
Simulated = tuple[Rows, torch.Tensor]  # rows, and the component of each row


def main() -> None:
    """Simulate, fit, check, and count."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--true", type=int, default=100, help="simulations of each correct model")
    parser.add_argument("--wrong", type=int, default=20, help="simulations of each wrong model")
    parser.add_argument("--rows", type=int, nargs="+", default=[FITTED_ROWS], help="fitted rows")
    parser.add_argument("--posterior", action="store_true", help="check with parameters' errors")
    parser.add_argument("--restored", action="store_true", help="save and restore each fit")
    options = parser.parse_args()
    torch.set_num_threads(1)
    for num_rows in options.rows:
        for name, case in TRUE.items():
            rate("true", name, case, options.true, num_rows, options)
        for name, case in WRONG.items():
            rate("wrong", name, case, options.wrong, num_rows, options)


def rate(
    assumptions: str, name: str, case: "Case", number: int, num_rows: int, options: Options
) -> None:
    """Print and record how often the check of one case raises an alarm."""
    found = []
    for seed in range(number):
        found.append(checked(case, seed, num_rows, options))
        key = {"assumptions": assumptions, "case": name, "rows": num_rows}
        key |= {"restored": options.restored, "posterior": options.posterior}
        record.write("false_alarms", key | {"level": LEVEL, "seed": seed}, found[-1])
    if found:
        alarms = [one["most_surprising"] for one in found if one["p_value"] <= LEVEL]
        share = len(alarms) / number
        error = (share * (1 - share) / number) ** 0.5
        first = f"   {Counter(alarms).most_common(1)[0][0]}" if alarms else ""
        print(f"{num_rows} {assumptions:<7}{name:<42}{share:.3f} ± {error:.3f}{first}", flush=True)


def checked(case: "Case", seed: int, num_rows: int, options: Options) -> dict[str, Any]:
    """The smallest adjusted p-value of a model fitted to simulated rows, and its statistic."""
    story_name, arguments, simulate = case
    story = runs.STORIES[story_name](**arguments)
    generator = torch.Generator().manual_seed(seed)
    rows, component = simulate(num_rows, generator)
    new_rows, _ = simulate(num_rows // CHECKED, generator)
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
    if options.posterior:
        fit = pyro_moe.laplace(fit)
    if options.restored:
        with tempfile.TemporaryDirectory() as folder:
            runs.save(fit, folder, story_name=story_name, story_arguments=arguments)
            fit = runs.fit_of(folder, new_rows)
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


def two_classes(number: int, generator: torch.Generator) -> Simulated:
    """A binary target of three logistic experts under a softmax gate."""
    x, c = _softmax(number, generator)
    return (x, torch.bernoulli(_line(x, c).sigmoid(), generator=generator)), c


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


SIZES = {"x_dim": 2, "y_dim": 1, "num_components": 3}
Case = tuple[str, dict[str, Any], Callable[[int, torch.Generator], Simulated]]
TRUE: dict[str, Case] = {
    "GMM": ("gmm", {"x_dim": 2, "num_components": 3}, clusters),
    "GMMMoE": ("gmmmoe", SIZES, gated_by_clusters),
    "ME": ("me", SIZES, gated_by_softmax),
    "ME, classes": ("me", SIZES | {"y_dim": 3, "experts": "categorical"}, classes),
    "ME, counts": ("me", SIZES | {"experts": "poisson"}, counts),
    "ME, two classes": ("me", SIZES | {"experts": "bernoulli"}, two_classes),
    "ME, heavy tails": ("me", SIZES | {"experts": "student-t"}, heavy_tailed),
}
WRONG: dict[str, Case] = {
    "normal noise for heavy tails": ("me", SIZES, heavy_tailed),
    "two components for three": ("gmm", {"x_dim": 2, "num_components": 2}, clusters),
    "equal noise where it grows with x": ("me", SIZES | {"num_components": 1}, uneven),
    "Poisson for overdispersed counts": ("me", SIZES | {"experts": "poisson"}, overdispersed),
    "a Gaussian for skewed x": ("gmm", {"x_dim": 2, "num_components": 1}, skewed),
}


if __name__ == "__main__":
    main()
