"""Tables that the tests of mixtures share."""

import numpy as np
import pandas as pd
import pytest


def two_lines(number=160, seed=0):
    """Two regression lines, a factor, a count, groups of four rows, and an exposure."""
    rng = np.random.default_rng(seed)
    component = np.repeat(rng.integers(0, 2, number // 4), 4)
    x = rng.uniform(0.0, 5.0, number)
    level = rng.choice(["a", "b", "c"], number)
    mean = np.where(component, 1.0 + 2.0 * x, 9.0 - 1.5 * x) + 0.7 * (level == "b")
    time = rng.uniform(0.5, 4.0, number)
    rate = np.exp(np.where(component, 0.2 + 0.4 * x, 1.9 - 0.3 * x))
    return pd.DataFrame(
        {
            "x": x,
            "level": level,
            "y": mean + rng.normal(0.0, 0.8, number),
            "time": time,
            "count": rng.poisson(rate * time),
            "group": [f"g{i}" for i in np.repeat(np.arange(number // 4), 4)],
            "component": component,
        }
    )


@pytest.fixture(scope="session")
def table():
    return two_lines()


@pytest.fixture(scope="session")
def fitted(table):
    from pyro_moe import mixture

    return mixture("y ~ x + level | x", table, order="x", restarts=3)
