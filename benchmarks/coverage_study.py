"""Coverage of the intervals of coefficients and of predictions, in simulated tables.

python benchmarks/coverage_study.py normal poisson --methods wald --level 0.95 --number 500
python benchmarks/coverage_study.py --methods fit hmc --rows 60 --number 100
"""

import argparse
import warnings
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import record
import torch

import pyro_moe
from pyro_moe import evaluation, models

# Lines of two components (intercept, slope), and the log-odds of the second (intercept, slope of z)
TRUTHS: dict[str, Any] = {
    "normal": ((1.0, 2.0), (8.0, -1.0), (-1.0, 0.5)),
    "student-t": ((1.0, 2.0), (8.0, -1.0), (-1.0, 0.5)),
    "poisson": ((0.5, 0.4), (3.2, -0.2), (-1.0, 0.5)),
    # One binary target tells little of its component: under a gate that hardly depends on z, two
    # logistic curves would be told from their mixture by the shape of the curve alone
    "bernoulli": ((-2.0, 1.0), (2.0, -1.0), (-0.5, 1.2)),
}
DRAWN = "bernoulli-drawn"  # log-odds from the prior of the posterior, other ones for each table
SIGMA = 1.0
NEW_ROWS = 200
DRAWS = 256
Frame = pd.DataFrame
Truth = tuple[tuple[float, float], ...]
METHODS: dict[str, Any] = {
    "wald": None,
    "fit": lambda fit: fit,
    "laplace": pyro_moe.laplace,
    "hmc": partial(pyro_moe.hmc, num_steps=100),  # half of the default: R̂ is near one
}


def main() -> None:
    """Print and record the share of tables whose interval covers the truth."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("families", nargs="*", default=list(TRUTHS), metavar="family")
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
            study(family, rows, options)


def study(family: str, rows: int, options: argparse.Namespace) -> None:
    """Record how often the intervals of methods cover, in tables that are fitted once each."""
    covered: dict[str, list[dict[str, float]]] = {method: [] for method in options.methods}
    of_fits = [method for method in options.methods if method != "wald"]
    for number in range(options.number):
        rng = np.random.default_rng((options.seed, number))
        truth = drawn(rng) if family == DRAWN else TRUTHS[family]
        table, new = (simulated(family, truth, n, rng) for n in (rows, NEW_ROWS))
        if "wald" in covered:
            covered["wald"].append(wald(family, truth, table, options.level))
        fit = fitted(family, table, number) if of_fits else None
        for method in of_fits:
            posterior = METHODS[method](fit)
            covered[method].append(by_draws(posterior, family, truth, new, options.level))
    for method, shares in covered.items():
        key = {"family": family, "rows": rows, "method": method, "level": options.level}
        written(key, Frame(shares))


def written(key: dict[str, Any], shares: Frame) -> None:
    """Print and record the means of shares over tables, with standard errors."""
    parameters = shares.drop(columns="predictions", errors="ignore").mean(axis=1)
    measured = {"tables": len(shares), "each": shares.mean().to_dict()}
    for name, each in {"parameters": parameters, "predictions": shares.get("predictions")}.items():
        if each is not None and each.notna().any():
            measured |= {name: each.mean(), f"{name}_error": each.std() / len(each) ** 0.5}
            print(*key.values(), name, f"{each.mean():.3f} ± {measured[f'{name}_error']:.3f}")
    print(shares.mean().round(3).to_dict(), flush=True)
    record.write("coverage", key, measured)


def drawn(rng: np.random.Generator) -> Truth:
    """Lines of logits and log-odds from the prior, and the line of the larger slope first."""
    standard = rng.normal(0.0, 2.5, (3, 2))
    standard[:2, 1] /= 2.5 * (2.5**-2 + 0.04) ** 0.5  # and the ridge of the experts
    slopes = standard[:, 1] / np.array([*[5.0 / 12.0**0.5] * 2, 1.5])
    intercepts = standard[:, 0] - slopes * np.array([2.5, 2.5, 0.0])
    one, other, gate = zip(intercepts, slopes, strict=True)
    return (one, other, gate) if one[1] > other[1] else (other, one, (-gate[0], -gate[1]))


def simulated(family: str, truth: Truth, number: int, rng: np.random.Generator) -> Frame:
    """A table of two components, whose gate depends on z."""
    *lines, gate = truth
    x, z = rng.uniform(0.0, 5.0, number), rng.normal(0.0, 1.5, number)
    component = rng.random(number) < 1.0 / (1.0 + np.exp(-(gate[0] + gate[1] * z)))
    first, second = (a + b * x for a, b in lines)
    predictor = np.where(component, second, first)
    if family == "poisson":
        y = rng.poisson(np.exp(predictor))
    elif family in ("bernoulli", DRAWN):
        y = rng.random(number) < 1.0 / (1.0 + np.exp(-predictor))
    else:
        noise = rng.normal(size=number) if family == "normal" else rng.standard_t(4.0, number)
        y = predictor + SIGMA * noise
    return Frame({"x": x, "z": z, "y": y.astype(float), "component": component.astype(int)})


def wald(family: str, truth: Truth, table: Frame, level: float) -> dict[str, float]:
    """Whether the intervals of `MixtureFit.conf_int` cover each parameter."""
    fit = pyro_moe.mixture(
        "y ~ x | z",
        table,
        family=family,
        initialize=table["component"].to_numpy(),  # the labels: the maximum is a local one
        order="Intercept",
    )
    scale = {"normal": [SIGMA], "student-t": [SIGMA]}.get(family, [])
    first, second, gate = truth
    expected = np.array([*first, *scale, *second, *scale, *gate])
    interval = fit.conf_int(1.0 - level).drop(index="df", level=2, errors="ignore")
    covered = (interval["lower"] <= expected) & (expected <= interval["upper"])
    return {" ".join(map(str, name)): float(value) for name, value in covered.items()}


def fitted(family: str, table: Frame, seed: int) -> pyro_moe.Fit:
    """The fit under the weak prior, begun at the labels.

    The default prior of few rows is made from the rows, which would be counted twice.
    """
    family = family.removesuffix("-drawn")
    columns = models.Predictor(columns=(0,))
    story = models.ME(2, 1, 2, experts=family, predictor=columns, gate_columns=(1,))
    start = torch.nn.functional.one_hot(torch.as_tensor(table["component"].to_numpy()), 2)
    rows = (table[["x", "z"]].to_numpy(), table[["y"]].to_numpy())
    return pyro_moe.fit(
        story.model,
        story.guide,
        rows,
        initialize=start.float(),
        prior="weak",
        seed=seed,
        progress=False,
    )


def by_draws(
    fit: pyro_moe.Fit, family: str, truth: Truth, new: Frame, level: float
) -> dict[str, float]:
    """Whether quantiles of draws cover each coefficient, and the share of new rows covered.

    The component of the larger slope is the first, in the truth and in each draw. A fit without
    draws has no intervals of coefficients.
    """
    family = family.removesuffix("-drawn")
    points = np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])  # (x, z)
    prediction = predicted(fit, np.concatenate([points, new[["x", "z"]].to_numpy()]))
    y = torch.as_tensor(np.concatenate([np.ones(len(points)), new["y"].to_numpy()]))
    shares = {"predictions": share_of_rows(prediction, family, y, level, len(points))}
    if len(prediction.distributions) == 1:
        return shares
    means = torch.stack([p.mean[: len(points), :, 0] for p in prediction.distributions]).double()
    links = {"poisson": torch.log, "bernoulli": torch.logit}
    eta = links.get(family, lambda mean: mean)(means)  # (S, 3, K)
    logs = prediction.log_weights
    odds = logs[..., 1] - logs[..., 0]
    lines = torch.stack([eta[:, 0], eta[:, 1] - eta[:, 0]], -1)  # (S, K, 2)
    gate = torch.stack([odds[:, 0], odds[:, 2] - odds[:, 0]], -1)
    swap = (lines[:, 0, 1] < lines[:, 1, 1])[:, None]
    lines = torch.where(swap.unsqueeze(-1), lines.flip(1), lines)
    found = torch.cat([lines.flatten(1), torch.where(swap, -gate, gate)], 1)
    names, expected = ("a1", "b1", "a2", "b2", "gate", "gate z"), np.ravel(truth)
    tail = (1.0 - level) / 2.0
    # Of S draws and the truth, all ranks are equally likely: Weibull's quantiles have no bias
    low, high = np.quantile(found, [tail, 1.0 - tail], axis=0, method="weibull")
    return (
        dict(zip(names, map(float, (low <= expected) & (expected <= high)), strict=True)) | shares
    )


def predicted(fit: pyro_moe.Fit, x: np.ndarray) -> evaluation.Prediction:
    """What `evaluation.predict` gives, in less time: draws of the parameters, and no traces."""
    if not hasattr(fit.story, "q"):
        return evaluation.predict(fit, x)
    (features,) = fit.features(x)[:1]
    story = fit.story.programs.story
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(0)
        named = fit.story.named(fit.story.q().sample((DRAWS,)))
        each = [
            torch.func.functional_call(story, {name: v[s] for name, v in named.items()}, features)
            for s in range(DRAWS)
        ]
    weights = torch.stack([p.log_weights for p in each])
    return evaluation.Prediction(weights, tuple(p.component_distribution for p in each))


def share_of_rows(
    prediction: evaluation.Prediction, family: str, y: torch.Tensor, level: float, first: int
) -> float:
    """The share of rows from a first one on in the interval; ranks of ties are drawn at random."""
    mass = prediction.log_prob(y).exp()
    generator = torch.Generator().manual_seed(0)
    drawn = torch.rand(len(y), generator=generator, dtype=torch.float64)
    if family == "bernoulli":
        rank = torch.where(y > 0, 1.0 - mass, 0.0) + drawn * mass
    else:
        rank = prediction.cdf(y).flatten()
        rank = rank - drawn * mass if family == "poisson" else rank
    tail = (1.0 - level) / 2.0
    return ((tail <= rank) & (rank <= 1.0 - tail))[first:].double().mean().item()


if __name__ == "__main__":
    main()
