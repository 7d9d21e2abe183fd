"""Coverage of the intervals of coefficients and of predictions, in simulated tables.

python benchmarks/coverage.py normal poisson --methods wald --level 0.95 --number 500
python benchmarks/coverage.py --methods fit laplace hmc --rows 60 300 --number 100
"""

import argparse
import warnings
from typing import Any

import numpy as np
import pandas as pd
import record
import torch

import pyro_moe
from pyro_moe import evaluation, models

SLOPES = {
    "normal": ((1.0, 2.0), (8.0, -1.0)),
    "student-t": ((1.0, 2.0), (8.0, -1.0)),
    "poisson": ((0.5, 0.4), (3.2, -0.2)),
    "bernoulli": ((-3.0, 1.6), (3.0, -1.6)),
}
GATE = (-1.0, 0.5)
SIGMA = 1.0
NEW_ROWS = 1000
DRAWS = 256
Frame = pd.DataFrame


def main() -> None:
    """Print and record the share of tables whose interval covers the truth."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("families", nargs="*", default=list(SLOPES), metavar="family")
    parser.add_argument("--methods", nargs="+", default=["wald"], choices=METHODS)
    parser.add_argument("--number", type=int, default=100, help="tables")
    parser.add_argument("--rows", type=int, nargs="+", default=[200])
    parser.add_argument("--level", type=float, default=0.9)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    for family in options.families:
        for rows in options.rows:
            for method in options.methods:
                study(family, rows, method, options)


def study(family: str, rows: int, method: str, options: argparse.Namespace) -> None:
    """Fit tables by one method, and record how often its intervals cover."""
    rng = np.random.default_rng(options.seed)
    covered = []
    for number in range(options.number):
        tables = simulated(family, rows, rng), simulated(family, NEW_ROWS, rng)
        covered.append(METHODS[method](family, *tables, options.level, number))
    shares = Frame(covered)
    of_tables = {
        "parameters": shares.drop(columns="predictions", errors="ignore").mean(axis=1),
        "predictions": shares["predictions"] if "predictions" in shares else pd.Series(dtype=float),
    }
    found = {name: each.dropna() for name, each in of_tables.items() if each.notna().any()}
    key = {"family": family, "rows": rows, "method": method, "level": options.level}
    measured = {"tables": options.number, "each": shares.mean().to_dict()}
    for name, each in found.items():
        measured |= {name: each.mean(), f"{name}_error": each.std() / len(each) ** 0.5}
        print(*key.values(), name, f"{each.mean():.3f} ± {measured[f'{name}_error']:.3f}")
    print(shares.mean().round(3).to_dict(), flush=True)
    record.write("coverage", key, measured)


def simulated(family: str, number: int, rng: np.random.Generator) -> Frame:
    """A table of two components, whose gate depends on z."""
    x, z = rng.uniform(0.0, 5.0, number), rng.normal(0.0, 1.5, number)
    component = rng.random(number) < 1.0 / (1.0 + np.exp(-(GATE[0] + GATE[1] * z)))
    lines = [a + b * x for a, b in SLOPES[family]]
    predictor = np.where(component, lines[1], lines[0])
    if family == "poisson":
        y = rng.poisson(np.exp(predictor))
    elif family == "bernoulli":
        y = rng.random(number) < 1.0 / (1.0 + np.exp(-predictor))
    else:
        noise = rng.normal(size=number) if family == "normal" else rng.standard_t(4.0, number)
        y = predictor + SIGMA * noise
    return Frame({"x": x, "z": z, "y": y.astype(float), "component": component.astype(int)})


def wald(family: str, table: Frame, _: Frame, level: float, __: int) -> dict[Any, bool]:
    """Whether the intervals of `MixtureFit.conf_int` cover each parameter."""
    fit = pyro_moe.mixture(
        "y ~ x | z",
        table,
        family=family,
        initialize=table["component"].to_numpy(),  # the labels: the maximum is a local one
        order="Intercept",
    )
    scale = {"normal": [SIGMA], "student-t": [SIGMA]}.get(family, [])
    first, second = SLOPES[family]
    expected = np.array([*first, *scale, *second, *scale, *GATE])
    interval = fit.conf_int(1.0 - level)
    covered = (interval["lower"] <= expected) & (expected <= interval["upper"])
    return {" ".join(map(str, name)): value for name, value in covered.items()}


def plug_in(family: str, table: Frame, new: Frame, level: float, seed: int) -> dict[Any, float]:
    """The share of new rows whose intervals, without uncertainty of parameters, cover."""
    return {"predictions": share_of_rows(fitted(family, table, seed), family, new, level)}


def laplace(family: str, table: Frame, new: Frame, level: float, seed: int) -> dict[Any, float]:
    """Whether the intervals of a normal posterior cover."""
    return by_draws(pyro_moe.laplace(fitted(family, table, seed)), family, new, level)


def hmc(family: str, table: Frame, new: Frame, level: float, seed: int) -> dict[Any, float]:
    """Whether the intervals of draws from the posterior cover."""
    return by_draws(pyro_moe.hmc(fitted(family, table, seed)), family, new, level)


METHODS = {"wald": wald, "fit": plug_in, "laplace": laplace, "hmc": hmc}


def fitted(family: str, table: Frame, seed: int) -> pyro_moe.Fit:
    """The default fit, begun at the labels."""
    columns = models.Predictor(columns=(0,))
    story = models.ME(2, 1, 2, experts=family, predictor=columns, gate_columns=(1,))
    start = torch.nn.functional.one_hot(torch.as_tensor(table["component"].to_numpy()), 2)
    rows = (table[["x", "z"]].to_numpy(), table[["y"]].to_numpy())
    return pyro_moe.fit(
        story.model, story.guide, rows, initialize=start.float(), seed=seed, progress=False
    )


def by_draws(fit: pyro_moe.Fit, family: str, new: Frame, level: float) -> dict[Any, float]:
    """Whether quantiles of draws cover each coefficient, and the share of new rows covered."""
    points = np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])  # (x, z)
    prediction = evaluation.predict(fit, points, num_samples=DRAWS)
    means = torch.stack([p.mean[..., 0] for p in prediction.distributions]).double()
    links = {"poisson": torch.log, "bernoulli": torch.logit}
    eta = links.get(family, lambda mean: mean)(means)  # (S, 3, K)
    logs = prediction.log_weights.double()
    odds = logs[..., 1] - logs[..., 0]
    pairs = [(eta[:, 0, k], eta[:, 1, k] - eta[:, 0, k]) for k in range(2)]
    found = [*pairs[0], *pairs[1], odds[:, 0], odds[:, 2] - odds[:, 0]]
    names = ("a1", "b1", "a2", "b2", "gate", "gate z")
    truth = np.array([*SLOPES[family][0], *SLOPES[family][1], *GATE])
    tail = (1.0 - level) / 2.0
    bounds = torch.stack([each.quantile(torch.tensor([tail, 1 - tail]).double()) for each in found])
    inside = (bounds[:, 0].numpy() <= truth) & (truth <= bounds[:, 1].numpy())
    shares = dict(zip(names, map(float, inside), strict=True))
    return {**shares, "predictions": share_of_rows(fit, family, new, level)}


def share_of_rows(fit: pyro_moe.Fit, family: str, new: Frame, level: float) -> float:
    """The share of new rows in the interval; ranks of equal values are drawn at random."""
    y = torch.as_tensor(new["y"].to_numpy())
    prediction = evaluation.predict(fit, new[["x", "z"]].to_numpy(), num_samples=DRAWS)
    mass = prediction.log_prob(y.unsqueeze(-1)).exp().double()
    generator = torch.Generator().manual_seed(0)
    drawn = torch.rand(len(y), generator=generator, dtype=torch.float64)
    if family == "bernoulli":
        rank = torch.where(y > 0, 1.0 - mass, 0.0) + drawn * mass
    else:
        rank = prediction.cdf(y.unsqueeze(-1)).double().flatten()
        rank = rank - drawn * mass if family == "poisson" else rank
    tail = (1.0 - level) / 2.0
    return ((tail <= rank) & (rank <= 1.0 - tail)).double().mean().item()


if __name__ == "__main__":
    main()
