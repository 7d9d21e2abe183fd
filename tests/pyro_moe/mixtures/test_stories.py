"""Other stories by formula are the fits of the same columns, with the same coding."""

import numpy as np
import pytest
import torch

import pyro_moe
from pyro_moe import DataError, MixtureFit, evaluation, mixture, models
from pyro_moe.mixtures import FormulaFit

SIZES = {"y_dim": 1, "num_components": 2}
BRIEF = {"epochs": 1, "progress": False}


def same(one, other):
    one, other = one.parameters(), other.parameters()
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


@pytest.mark.parametrize("story", ["deepmoe", "gmmmoe", "vademoe", "dvmoe"])
def test_a_story_by_formula_is_the_fit_of_its_columns(table, story):
    fit = mixture("y ~ x + level", table, story=story, epochs=1)
    x, y = fit.design.features(table), fit.design.target(table)
    options = {"z_dim": 3} if story in ("vademoe", "dvmoe") else {}
    plain = pyro_moe.runs.STORIES[story](x_dim=3, **SIZES, **options)
    other = pyro_moe.fit(plain.model, plain.guide, (x, y), **BRIEF)
    assert same(fit, other)
    assert torch.equal(fit.predict(table).mean, other.predict(x).mean)
    assert type(fit) is FormulaFit


def test_a_tree_by_formula_is_the_fit_of_its_columns(table):
    fit = mixture("y ~ x", table, story="hierarchicalme", num_components=(2, 2), epochs=1)
    plain = models.HierarchicalME(x_dim=1, y_dim=1, num_components=(2, 2))
    assert same(fit, pyro_moe.fit(plain.model, plain.guide, (table[["x"]], table["y"]), **BRIEF))


@pytest.mark.parametrize("story", [models.DeepMoE, models.DeepMoE(x_dim=1, **SIZES)])
def test_a_story_is_also_a_class_or_a_module(table, story):
    fit = mixture("y ~ x", table, story=story, epochs=1)
    assert same(fit, mixture("y ~ x", table, story="deepmoe", epochs=1))


def test_experts_and_a_neural_gate_read_their_columns_alone(table):
    fit = mixture("y ~ x | time", table, story="deepmoe", epochs=1)
    moved = table.assign(x=table["x"] + 1.0)
    gates = [pyro_moe.evaluation.gate(fit, rows) for rows in (table, moved)]
    assert torch.equal(*gates)
    later = table.assign(time=table["time"] + 0.1)
    means = [fit.story.experts(fit.features(rows)[0]).mean for rows in (table, later)]
    assert torch.equal(*means)


def test_an_offset_shifts_neural_mixtures_of_experts(table):
    fit = mixture(
        "count ~ x", table, story="deepmoe", family="poisson", offset="np.log(time)", epochs=1
    )
    twice = table.assign(time=2.0 * table["time"])
    np.testing.assert_allclose(fit.predict(twice).mean, 2.0 * fit.predict(table).mean, rtol=1e-6)


def test_weights_of_zero_leave_rows_out_and_equal_ones_have_no_effect(table):
    options = {"story": "dvmoe", "epochs": 1}
    first = np.arange(len(table)) < 120
    part = mixture("y ~ x", table.assign(w=1.0 * first), weights="w", **options)
    assert same(part, mixture("y ~ x", table[first].assign(w=1.0), weights="w", **options))
    assert len(part.data) == 2


def test_the_order_of_gate_columns_and_new_levels(table):
    fit = mixture(
        "y ~ x + level | level + x + time", table, story="dvmoe", epochs=1, unseen="reference"
    )
    new = table.head(3)
    first = fit.predict(new.assign(level="a")).mean
    assert torch.equal(fit.predict(new.assign(level="z")).mean, first)


def test_coefficients_of_experts_have_names_and_no_errors(table):
    fit = mixture("y ~ x | x + time", table, story="deepmoe", epochs=1)
    assert fit.params.index.tolist() == [
        (k, "y", term) for k in (0, 1) for term in ("Intercept", "x", "sigma")
    ]
    for name in ("bse", "llf", "aic"):
        assert not hasattr(fit, name)
    with pytest.raises(AttributeError, match=r"expected story='me'.*for 'bse'; got DeepMoE"):
        fit.bse  # noqa: B018


def test_the_classical_story_is_the_default(table):
    fit = mixture("y ~ x", table, restarts=1, story="me")
    assert isinstance(fit, MixtureFit)
    assert same(fit, mixture("y ~ x", table, restarts=1))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"story": "no"}, "expected a story in"),
        ({"story": "gmm"}, "expected a story with a target y"),
        ({"story": 3}, "expected the name of a story, its class"),
        ({"groups": "group"}, "expected a story whose targets are given c.*; got DVMoE"),
        ({"order": "x"}, "expected story='me' to order components; got 'dvmoe'"),
        ({"formula": "y ~ x | 1"}, "expected columns that the gate of 'dvmoe' reads"),
        ({"formula": "y ~ x | 0 + x"}, "expected an intercept of the gate of 'dvmoe'"),
        ({"formula": "y ~ x | time"}, "got 'x' of the experts alone: name it after"),
        (
            {"offset": "time"},
            "expected no offset with 'dvmoe'.*; got 'time': story='me' and 'deepmoe'",
        ),
        ({"story": "gmmmoe", "offset": "np.log(time)"}, "expected no offset with 'gmmmoe'"),
        ({"story": "vademoe", "trials": "time", "family": "binomial"}, "no trials with 'vademoe'"),
        ({"story_options": {"no": 1}}, "expected story_options of DVMoE"),
        ({"fit_options": {"no": 1}}, "expected fit_options in"),
        ({"fit_options": {"seed": 1}}, "expected fit_options in"),
        ({"story": "me", "fit_options": {"loss": "em"}}, "expected fit_options in"),
        ({"story": models.DeepMoE(1, 1, 2), "shared": ["x"]}, "expected experts of a module"),
        ({"story": models.DeepMoE(1, 1, 2), "story_options": {"a": 1}}, "no story_options with a"),
        ({"story": "vademoe", "story_options": {"context": "z"}, "formula": "y ~ 0 + x"}, "'x'"),
    ],
)
def test_what_a_story_cannot_have_is_said_in_one_line(table, options, message):
    with pytest.raises(ValueError, match=message) as caught:
        mixture(**{"formula": "y ~ x", "data": table, "story": "dvmoe", "epochs": 1, **options})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("story", ["deepmoe", "gmmmoe", "vademoe"])
def test_rows_of_a_group_are_from_one_component_in_other_stories(table, story, tmp_path):
    rows = table.assign(of_group=table["component"] + 0.1)
    formula = {"deepmoe": "y ~ x | of_group", "gmmmoe": "y ~ x"}.get(story, "y ~ x + time")
    fit = mixture(formula, rows, story=story, groups="group", epochs=2)
    assert fit.annotations.names == ("groups",)
    posterior = evaluation.posterior(fit, rows)
    by_group = rows["group"].factorize()[0]
    for group in range(3):
        mine = posterior[by_group == group]
        torch.testing.assert_close(mine, mine[:1].expand_as(mine))
    pyro_moe.runs.save(fit, tmp_path)
    assert pyro_moe.runs.fit_of(tmp_path, rows).restored is None


def test_the_columns_of_a_neural_gate_are_constant_in_a_group(table):
    with pytest.raises(DataError, match=r"constant in each group of 'group'; got .* 'x'"):
        mixture("y ~ x", table, story="deepmoe", groups="group")
