"""Columns named as parameters or functions are, and levels that no row has."""

import numpy as np
import pandas as pd
import pytest

import pyro_moe
from pyro_moe import DataError, mixture, models
from pyro_moe.mixtures.formulas import designed
from pyro_moe.mixtures.formulas.known import FUNCTIONS, names_of


@pytest.mark.parametrize("name", ["Intercept", "sigma", "df", "corr(y)"])
@pytest.mark.parametrize("formula", ["y ~ `{}`", "y ~ 1 | `{}`", "y ~ x:`{}`"])
def test_a_term_with_the_name_of_a_parameter_is_refused(table, name, formula):
    rows = table.assign(**{name: np.sin(table["x"])})
    if ":" in formula:  # it has another name
        assert designed([formula.format(name)], rows)[0].columns == (f"x:{name}",)
        return
    with pytest.raises(DataError, match="expected names of columns that are not those of param"):
        designed([formula.format(name)], rows)


@pytest.mark.parametrize("story", ["me", "deepmoe"])
def test_a_column_by_name_is_refused_in_every_story(table, story):
    rows = table.rename(columns={"x": "sigma"})
    with pytest.raises(DataError, match="got 'sigma': rename it"):
        mixture(data=rows, target="y", experts=["sigma"], gate=["sigma"], story=story)


def test_an_offset_or_a_shared_column_is_refused_as_well(table):
    rows = table.rename(columns={"x": "sigma", "time": "Intercept"})
    with pytest.raises(DataError, match="got 'Intercept': rename it"):
        designed(["count ~ level"], rows, offset="Intercept")
    with pytest.raises(DataError, match="got 'sigma': rename it"):
        designed(["y ~ sigma"], rows, shared=["sigma"])


def test_two_terms_of_one_name_are_refused(table):
    rows = table.assign(**{"level[T.b]": table["time"]})
    with pytest.raises(DataError, match=r"distinct names; got 'level\[T.b\]' of two"):
        designed(["y ~ level | `level[T.b]`"], rows)
    assert designed(["y ~ x + level | level + x"], rows)[0].columns[0] == "x"


@pytest.mark.parametrize(
    ("formulas", "names", "message"),
    [
        (["gate ~ x"], {"y": "gate"}, "other than 'gate'; got it: rename it"),
        (["y ~ x", "y ~ level"], {}, "distinct names; got 'y' twice"),
    ],
)
def test_targets_have_names_of_their_own(table, formulas, names, message):
    with pytest.raises(DataError, match=message):
        designed(formulas, table.rename(columns=names))


def test_classes_have_names_of_their_own(table):
    rows = table.assign(y=np.resize(["a", "gate", "z"], len(table)))
    with pytest.raises(DataError, match="targets and classes other than 'gate'"):
        designed(["y ~ x"], rows, classes="any")
    rows = table.assign(y=pd.Categorical(([0, 1, "1"] * len(table))[: len(table)], [0, 1, "1"]))
    with pytest.raises(DataError, match="distinct names; got '1' twice"):
        designed(["y ~ x"], rows, classes="any")


def test_without_a_formula_such_columns_are_in_backticks(table):
    """The coefficients are those of columns with other names."""

    def coefficients(x, y):
        story = models.ME(4, 1, 2).double()
        rows = pd.DataFrame(
            {name: table["x"] ** (i + 1) / 5**i for i, name in enumerate(x)} | {y: table["y"]}
        )
        data = rows[x], rows[y]
        return pyro_moe.fit(story.model, story.guide, data, epochs=3, progress=False).coefficients()

    found = coefficients(["sigma", "df", "Intercept", "corr(y)"], "gate")
    like = coefficients(["a", "b", "c", "d"], "y")
    np.testing.assert_array_equal(found["estimate"], like["estimate"])
    assert len(found) == 2 * 6 + 5
    assert found.loc[(1, "`gate`", "`sigma`"), "estimate"] == like.loc[(1, "y", "a"), "estimate"]


@pytest.mark.parametrize("name", sorted(FUNCTIONS))
def test_the_name_of_a_function_is_that_of_a_column(table, name):
    """Levels of such a factor are no functions of other columns of x, to be recomputed."""
    design, rows = designed([f"y ~ `{name}` + x"], table.rename(columns={"level": name}))
    assert design.variables.derived == ()
    design.variables.recomputed(design.features(rows))


@pytest.mark.parametrize(
    ("expression", "names"),
    [
        ("log(log)", {"log"}),
        ("np.log(np.abs(x)) + x.clip(0)", {"x"}),
        ("C(f, contr.treatment('a'))", {"f"}),
        ("C(f, Treatment(reference=`my base`))", {"f", "my base"}),
        ("scale * 2", {"scale"}),
    ],
)
def test_the_variables_of_an_expression(expression, names):
    assert names_of(expression) == names


def test_levels_that_no_row_has_are_left_out(table):
    rows = table.assign(level=pd.Categorical(table["level"], ["z", "b", "a", "c", "q"]))
    options = {"num_components": 1}
    fit = mixture("y ~ x + level | level", rows, **options)
    ordered = pd.Categorical(table["level"], ["b", "a", "c"])
    like = mixture("y ~ x + level | level", table.assign(level=ordered), **options)
    pd.testing.assert_series_equal(fit.params, like.params)
    mean = like.predict(table).mean
    assert fit.predict(rows).mean.equal(mean)
    assert fit.predict(table).mean.equal(mean)
    with pytest.raises(DataError, match=r"expected levels of 'level' in \['b', 'a', 'c'\]"):
        fit.predict(rows.assign(level=pd.Categorical(["z"] * len(rows), ["z"])))


def test_levels_that_are_lost_with_rows_left_out(table):
    rows = table.astype({"level": "category"})
    rows.loc[rows["level"] == "a", "x"] = np.nan
    design, kept = designed(["y ~ x + level"], rows, missing="drop", shared=["level"])
    assert design.columns == ("x", "level[T.c]")
    assert len(design.features(kept)) == (rows["level"] != "a").sum()
