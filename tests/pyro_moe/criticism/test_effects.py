"""Experts of a formula are shown along its variables, and columns made of them follow."""

import numpy as np
import pandas as pd
import pytest
import torch

import pyro_moe
from pyro_moe.criticism import effects


@pytest.fixture(scope="module")
def table():
    random = np.random.default_rng(0)
    x, z = random.normal(size=(2, 200)) + 3.0
    f = random.choice(["north", "south", "west"], 200, p=[0.3, 0.5, 0.2])
    y = 1.0 + x * (f == "south") - x**2 + 0.3 * random.normal(size=200)
    return pd.DataFrame({"x": x, "z": z, "f": f, "y": y})


def test_axes_are_the_variables_of_experts(table):
    fit = pyro_moe.mixture("y ~ x * f + I(x**2) | z", table, num_components=2, restarts=1)
    shown = effects(fit, fit.rows())
    assert [shown.name(column) for column in shown.chosen] == ["x", "f"]
    assert shown.left_out == ()  # and not z, which the gate alone reads


def test_lines_are_at_rows_that_can_exist(table):
    fit = pyro_moe.mixture("y ~ x * f + I(x**2)", table, num_components=1)
    shown = effects(fit, fit.rows())
    most, median = table["f"].mode()[0], float(torch.tensor(table["x"].to_numpy()).median())
    assert shown.held == f"x = {median:.4g}, f = {most} (0)"
    at, mean, _ = shown.line(shown.chosen[0], 0)
    expected = fit.predict(pd.DataFrame({"x": at, "f": most})).mean
    np.testing.assert_allclose(mean, expected, rtol=1e-6)
    at, mean, _ = shown.line(shown.chosen[1], 0)
    assert at.tolist() == [0, 1, 2]
    levels = pd.DataFrame({"x": median, "f": ["north", "south", "west"]})
    np.testing.assert_allclose(mean, fit.predict(levels).mean, rtol=1e-6)
    axes = shown.figure().axes[1]
    assert [each.get_text() for each in axes.get_xticklabels()] == ["north", "south", "west"]


@pytest.mark.parametrize(
    ("formula", "names", "left"),
    [
        ("y ~ log(x) * f", ["log(x)", "f"], ()),
        ("y ~ 0 + f + x:f", ["f"], ("x:f[north]", "x:f[south]", "x:f[west]")),
    ],
)
def test_columns_that_cannot_vary_alone_are_no_axes(table, formula, names, left):
    fit = pyro_moe.mixture(formula, table.assign(x=table["x"].abs() + 0.1), num_components=1)
    shown = effects(fit, fit.rows())
    assert [shown.name(column) for column in shown.chosen] == names
    assert shown.left_out == left
