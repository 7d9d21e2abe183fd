"""Fits whose groups of rows have one component are checked by groups."""

import numpy as np
import pandas as pd
import pytest
import torch

import pyro_moe
from pyro_moe import evaluation
from pyro_moe.criticism import check
from pyro_moe.criticism.replicates import Targets

GROUPS, EACH = 40, 5


@pytest.fixture(scope="module")
def table():
    generator = np.random.default_rng(1)
    group = np.repeat(np.arange(GROUPS), EACH)
    c = (generator.random(GROUPS) < 0.5)[group]
    x = generator.normal(size=len(group))
    y = np.where(c, 3.0 + x, -3.0 - x) + 0.5 * generator.normal(size=len(group))
    order = generator.permutation(len(group))
    return pd.DataFrame({"x": x, "y": y, "firm": [f"firm {i}" for i in group]}).iloc[order]


@pytest.fixture(scope="module")
def fit(table):
    return pyro_moe.mixture("y ~ x", table, num_components=2, groups="firm")


def test_posteriors_are_those_of_groups(fit, table):
    found = evaluation.posterior(fit, fit.training_rows)
    np.testing.assert_allclose(found, fit.posterior(), atol=1e-9)
    np.testing.assert_allclose(evaluation.posterior(fit, table), found, atol=1e-9)
    each = evaluation.posterior(fit, (fit.data[0], fit.data[1]))
    assert (each - found).abs().max() > 1e-6


def test_a_replicate_has_one_component_in_a_group(fit):
    groups = fit.groups_of()
    part = Targets(fit, fit.data, x_names=("x",), groups=groups)
    x, firsts = fit.data[0][:, 0], groups.unique(return_inverse=True)[1]
    shares = []
    for sample, _ in part.replicates(40):
        y = sample.y.reshape(-1)
        nearer = (y - (3 + x)).abs() < (y + 3 + x).abs()  # which of two lines
        by_group = torch.zeros(GROUPS).index_add(0, firsts, nearer.float())
        assert ((by_group <= 1) | (by_group >= EACH - 1)).all()  # but for rows between the lines
        shares.append(float((by_group > EACH / 2).float().mean()))
    upper = int(fit.params[:, "y", "Intercept"].argmax())
    assert np.mean(shares) == pytest.approx(float(fit.sizes["gate"][upper]), abs=0.04)
    # the share of groups varies as that of 40 draws, not as that of 200
    assert np.std(shares) > 1.5 * np.sqrt(0.25 / (GROUPS * EACH))


def test_the_check_of_a_true_model_is_not_surprised(fit, table):
    found = check(fit, num_replicates=60)
    assert found.surprises().empty
    assert str(check(fit, table, num_replicates=60)) == str(found)
    mean = found.table.query("statistic == 'mean' and component.isna()").iloc[0]
    g = float(fit.sizes["gate"].iloc[0])
    spread = 6.0 * np.sqrt(g * (1 - g) / GROUPS)  # of the mean of y, from that of groups alone
    assert mean["standard_deviation"] == pytest.approx(spread, rel=0.35)
