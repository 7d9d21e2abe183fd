"""Coverage of the 95 % intervals of coefficients of experts and gate, in simulated tables.

python benchmarks/coverage.py normal --number 500 --rows 200
"""

import argparse

import numpy as np
import pandas as pd

import pyro_moe

SLOPES = {"normal": ((1.0, 2.0), (8.0, -1.0)), "poisson": ((0.5, 0.4), (3.2, -0.2))}
GATE = (-1.0, 0.5)
SIGMA = 1.0


def simulated(family: str, number: int, rng: np.random.Generator) -> pd.DataFrame:
    """A table of two components, whose gate depends on z."""
    x, z = rng.uniform(0.0, 5.0, number), rng.normal(0.0, 1.5, number)
    component = rng.random(number) < 1.0 / (1.0 + np.exp(-(GATE[0] + GATE[1] * z)))
    lines = [a + b * x for a, b in SLOPES[family]]
    predictor = np.where(component, lines[1], lines[0])
    normal = family == "normal"
    y = predictor + SIGMA * rng.normal(size=number) if normal else rng.poisson(np.exp(predictor))
    return pd.DataFrame({"x": x, "z": z, "y": y, "component": component.astype(int)})


def truth(family: str) -> list[float]:
    """The parameters in the order of `MixtureFit.params`."""
    scale = [SIGMA] if family == "normal" else []
    first, second = SLOPES[family]
    return [*first, *scale, *second, *scale, *GATE]


def main() -> None:
    """Print the share of tables whose interval covers the truth, for each parameter."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("family", choices=SLOPES)
    parser.add_argument("--number", type=int, default=500, help="tables")
    parser.add_argument("--rows", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    rng = np.random.default_rng(arguments.seed)
    covered, expected = [], np.array(truth(arguments.family))
    for _ in range(arguments.number):
        table = simulated(arguments.family, arguments.rows, rng)
        fit = pyro_moe.mixture(
            "y ~ x | z",
            table,
            family=arguments.family,
            initialize=table["component"].to_numpy(),  # the labels: the maximum is a local one
            order="Intercept",
        )
        interval = fit.conf_int()
        covered.append((interval["lower"] <= expected) & (expected <= interval["upper"]))
    shares = pd.DataFrame(covered).mean()
    print(f"{arguments.family}, {arguments.number} tables of {arguments.rows} rows")
    print(shares.round(3).to_string())
    print(f"all {shares.mean():.3f}")


if __name__ == "__main__":
    main()
