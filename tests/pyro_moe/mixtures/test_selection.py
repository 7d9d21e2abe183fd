"""K, story and family of a formula are chosen by the densities of `select`."""

import numpy as np
import pandas as pd
import pytest
import torch

import pyro_moe
from pyro_moe import MixtureFit, models, select_mixture
from pyro_moe.mixtures import FormulaFit
from pyro_moe.mixtures.formulas import columns_of, designed

BRIEF = {"restarts": 2, "num_components": [1, 2], "progress": False}


def test_a_held_out_density_is_that_of_a_mixture_of_the_other_rows(table):
    options = {**BRIEF, "num_components": [2], "prior": "none"}
    found = select_mixture("y ~ x + level | x", table, **options)
    held = found.log_densities.index
    fit = pyro_moe.mixture(
        "y ~ x + level | x", table.drop(index=held), restarts=2, prior="none", order="fitted"
    )
    expected = fit.predict(table.loc[held]).log_prob(torch.tensor(table["y"][held].to_numpy()))
    np.testing.assert_allclose(found.log_densities[2], expected, atol=5e-3)  # EM, not Newton


def test_the_recommended_choice_is_a_mixture_of_all_rows(table):
    found = select_mixture("y ~ x + level", table, folds=3, **BRIEF)
    assert found.num_components == 2
    assert isinstance(found.fit, MixtureFit)
    assert found.fit.nobs == len(table)
    assert ("y", "level[T.b]") in found.fit.params[0].index
    prior = found.fit.settings["prior"]
    again = pyro_moe.mixture("y ~ x + level", table, prior=pyro_moe.Prior(**prior))
    assert found.fit.llf == pytest.approx(again.llf, abs=1e-6)
    criteria = found.table.loc[2, ["log_likelihood", "parameters"]]
    np.testing.assert_allclose(criteria, [again.llf, again.df_model], rtol=1e-6)


def test_stories_and_families_are_compared_in_one_table(table):
    stories, families = ["me", "gmmmoe"], ["normal", "poisson"]
    found = select_mixture("count ~ x", table, story=stories, family=families, folds=2, **BRIEF)
    names = {f"{story} {family}" for story in stories for family in families}
    assert set(found.table.index.unique(0)) == names
    assert isinstance(found.fit, FormulaFit)
    assert found.fit.family in found.story


def test_weights_offsets_and_gaps_are_those_of_the_table(table):
    rows = table.assign(w=np.arange(len(table)) % 3)
    rows.loc[5, "x"] = None
    options = {**BRIEF, "family": "poisson", "offset": "log(time)", "missing": "drop"}
    found = select_mixture("count ~ x", rows, weights="w", folds=2, **options)
    kept = rows[(rows["w"] > 0) & rows["x"].notna()]
    assert len(found.log_densities) == len(kept)
    design, _ = designed(["count ~ x"], kept, offset="log(time)", weights="w")
    x, y = columns_of(design, kept)
    predictor = models.Predictor(columns=[0], offset_column=1)
    other = pyro_moe.select(
        lambda k: models.ME(2, 1, k, experts="poisson", predictor=predictor, gate_columns=[]),
        (x.to_numpy(), y.to_numpy()),
        weights=kept["w"].to_numpy(),
        folds=2,
        **BRIEF,
    )
    pd.testing.assert_frame_equal(
        found.table.drop(columns="seconds"), other.table.drop(columns="seconds")
    )


def test_log_densities_have_the_index_of_the_table(table):
    rows = table.assign(w=np.arange(len(table)) % 3).set_index(table["group"] + "!")
    found = select_mixture("y ~ x", rows, weights="w", **BRIEF)
    assert set(found.log_densities.index) <= set(rows.index[rows["w"] > 0])


def test_known_components_are_compared_with_more(table):
    rows = table.assign(known=np.where(np.arange(len(table)) < 8, table["component"], -1))
    options = {**BRIEF, "num_components": None, "restarts": 1}
    found = select_mixture("y ~ x", rows, labels="known", **options)
    assert found.table.index.tolist() == [2, 3, 4, 5, 6, 7]


def test_a_candidate_may_have_a_family_for_each_target(table):
    families = [("normal", "poisson"), ("student-t", "poisson")]
    found = select_mixture(["y ~ x", "count ~ x"], table, family=families, **BRIEF)
    assert set(found.table.index.unique(0)) == {
        "me normal and poisson",
        "me student-t and poisson",
    }
    assert found.fit.family in found.story


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"order": "x"}, r"expected options in \['epochs', .*; got \['order'\]"),
        ({"family": ["normal", "categorical"]}, "families of one kind of target"),
        ({"groups": "group"}, "expected no groups"),
        ({"story": ["me", "nothing"]}, "expected a story in"),
        ({"formula": None}, "expected a formula, or target="),
        ({"fit_options": {"seed": 3}}, "expected fit_options in"),
    ],
)
def test_what_is_refused(table, options, message):
    arguments = {"formula": "count ~ x", "data": table, "num_components": [1], **options}
    with pytest.raises(ValueError, match=message):
        select_mixture(progress=False, **arguments)
