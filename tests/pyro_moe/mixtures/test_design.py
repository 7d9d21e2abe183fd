"""Formulas: names, factors, gaps, and what is refused."""

import re

import numpy as np
import pandas as pd
import pytest

from pyro_moe import DataError, mixture
from pyro_moe.mixtures.formulas import designed


def test_an_offset_in_a_formula_is_the_option(table):
    a = mixture("count ~ x + offset(log(time)) | x", table, family="poisson", restarts=2)
    b = mixture("count ~ x | x", table, family="poisson", offset="log(time)", restarts=2)
    pd.testing.assert_series_equal(a.params, b.params)


def test_each_target_has_an_offset_of_its_own(table):
    formulas = ["count ~ x + offset(log(time))", "y ~ x"]
    both = mixture(formulas, table, family=["poisson", "normal"], num_components=1)
    count = mixture("count ~ x", table, family="poisson", num_components=1, offset="log(time)")
    y = mixture("y ~ x", table, num_components=1)
    assert both.llf == pytest.approx(count.llf + y.llf, abs=1e-8)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("log(time) - 1", lambda t: np.log(t["time"]) - 1),
        ("time / 10", lambda t: t["time"] / 10),
        ("-time", lambda t: -t["time"]),
        ("time**2 + x", lambda t: t["time"] ** 2 + t["x"]),
        ("log(time) - log(`lead time`)", lambda t: np.log(t["time"]) - np.log(t["lead time"])),
    ],
)
def test_operators_of_an_offset_are_those_of_arithmetic(table, text, value):
    rows = table.assign(**{"lead time": table["x"] + 1.0})
    for formula, offset in [("count ~ x", text), (f"count ~ x + offset({text})", None)]:
        design, _ = designed([formula], rows, offset=offset)
        np.testing.assert_allclose(design.features(rows).iloc[:, -1], value(rows))


@pytest.mark.parametrize("left", ["y - x", "y**2", "count / time", "y:x", "y + x:time"])
def test_targets_are_joined_by_plus_alone(table, left):
    with pytest.raises(ValueError, match="expected targets joined by '\\+', and I"):
        designed([f"{left} ~ level"], table)
    design, _ = designed(["I(y - x) ~ level"], table)
    np.testing.assert_allclose(design.target(table).iloc[:, 0], table["y"] - table["x"])


@pytest.mark.parametrize("story", ["me", "deepmoe", "gmmmoe"])
@pytest.mark.parametrize("name", ["x 1", "x-1", "a|b", "x~", 'q"t', "x[0]", "1|2"])
def test_columns_may_have_any_name(table, story, name):
    rows = table.rename(columns={"x": name})[[name, "y"]]
    epochs = None if story == "me" else 1
    for formula in (f"y ~ `{name}`", "y ~ ."):
        fit = mixture(formula, rows, num_components=1, story=story, restarts=1, epochs=epochs)
        assert ("y", name) in fit.params[0].index


@pytest.mark.parametrize("kind", ["datetime64[ns]", "timedelta64[ns]", "complex"])
@pytest.mark.parametrize("formula", ["y ~ when", "when ~ y", "y ~ 1 | when", "y ~ x:when"])
def test_times_are_no_numbers(table, kind, formula):
    rows = table.assign(when=np.arange(len(table)).astype(kind))
    with pytest.raises(DataError, match="expected numbers or texts in the column 'when'; got"):
        designed([formula], rows)


@pytest.mark.parametrize("name", ["1", "0", "2.5", 1])
def test_columns_whose_names_are_numbers_are_refused(table, name):
    rows = table.rename(columns={"x": name})[[name, "y"]]
    ways = [("y ~ .", {}), (None, {"target": "y", "experts": [name]}), ("y ~ 1", {"offset": name})]
    ways = ways if isinstance(name, str) else ways[:2]
    ways += [(f"y ~ `{name}`", {})] if isinstance(name, str) else []
    for formula, options in ways:
        with pytest.raises(DataError, match=f"texts and no numbers; got {name!r}: rename it"):
            mixture(formula, rows, **options)


def test_a_dot_is_all_columns_that_nothing_else_names(table):
    design, _ = designed(
        ["log(count + 1) ~ . - component", "y ~ x | ."],
        table,
        offset="log(time)",
        groups="group",
    )
    assert [list(spec.column_names) for spec in design.experts] == [
        ["Intercept", "x", "level[T.b]", "level[T.c]"],
        ["Intercept", "x"],
    ]
    assert set(design.gate_terms) == {"x", "level[T.b]", "level[T.c]", "component"}


def test_levels_are_remembered(table, fitted):
    new = pd.DataFrame({"x": [1.0, 2.0], "level": ["c", "c"]})
    x = fitted.design.features(new)
    assert x.to_numpy().tolist() == [[1.0, 0.0, 1.0], [2.0, 0.0, 1.0]]
    assert x.columns.tolist() == ["x", "level[T.b]", "level[T.c]"]


@pytest.mark.parametrize("kind", ["category", "string", "object"])
def test_factors_of_every_type_are_coded_alike(table, kind):
    design, _ = designed(["y ~ level"], table.astype({"level": kind}))
    assert design.features(table)["level[T.b]"].sum() == (table["level"] == "b").sum()


@pytest.mark.parametrize("term", ["level", "C(level)"])
def test_a_new_level_is_an_error_or_the_reference(table, term):
    new = pd.DataFrame({"level": ["z", "b"]})
    design, _ = designed([f"y ~ {term}"], table)
    with pytest.raises(
        DataError, match=r"expected levels of 'level' in \['a', 'b', 'c'\].*got 'z'"
    ):
        design.features(new)
    design, _ = designed([f"y ~ {term}"], table, unseen="reference")
    assert design.features(new).to_numpy().tolist() == [[0.0, 0.0], [1.0, 0.0]]


def test_booleans_and_nullable_columns(table):
    rows = table.assign(flag=table["x"] > 2, whole=pd.array(range(len(table)), dtype="Int64"))
    design, _ = designed(["y ~ flag + whole"], rows)
    np.testing.assert_array_equal(design.features(rows)["whole"], np.arange(len(table)))
    assert set(design.features(rows)["flag"]) == {0.0, 1.0}


def test_transformations_keep_the_constants_of_the_training_rows(table):
    design, _ = designed(["y ~ center(x)"], table)
    new = design.features(table.assign(x=table["x"] + 1.0))
    np.testing.assert_allclose(new.iloc[:, 0].mean(), 1.0)


def test_names_with_dots_and_blanks(table):
    rows = table.rename(columns={"x": "lead.time", "y": "price (EUR)", "level": "my level"})
    fit = mixture(
        "`price (EUR)` ~ `lead.time` + np.log(`lead.time` + 1) + C(`my level`)",
        rows,
        num_components=1,
    )
    assert list(fit.params[0, "price (EUR)"].index[:2]) == ["Intercept", "lead.time"]


@pytest.mark.parametrize("column", ["x", "level", "w", "group"])
def test_gaps_are_an_error_that_names_the_choices_or_are_left_out(table, column):
    rows = table.assign(w=1.0)
    rows[column] = rows[column].astype(object)
    rows.loc[[3, 8], column] = None
    if column in ("x", "w"):
        rows[column] = rows[column].astype(float)
    options = {"weights": "w", "groups": "group"}
    with pytest.raises(
        DataError, match=rf"'{column}'.*got 2 of 160 missing.*missing='drop'|weights 'w'"
    ):
        designed(["y ~ x + level"], rows, **options)
    assert len(designed(["y ~ x + level"], rows, missing="drop", **options)[1]) == 158


@pytest.mark.parametrize(
    ("formula", "message"),
    [
        ("y ~ x + I(2 * x)", r"linearly independent columns of the experts; got 'I\(2 \* x\)'"),
        ("y ~ x | time + I(3 * time + 1)", "linearly independent columns of the gate"),
        ("y ~ x + I(0 * x + 4)", "linearly independent columns"),
        ("y ~ nothing", "expected a column 'nothing'"),
        ("y ~ np.log(x - 100)", "finite values"),
        ("y ~ unknown(x)", "can be computed"),
    ],
)
def test_what_the_data_cannot_give(table, formula, message):
    with pytest.raises(DataError, match=message), np.errstate(all="ignore"):
        designed([formula], table)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"formula": "x + y"}, "expected a formula"),
        ({"formula": "y ~ x | x | x"}, "one '|'"),
        ({"formula": "y ~ (x"}, "expected a formula"),
        ({"formula": None}, "expected a formula, or target="),
        ({"formula": "cbind(y, x) ~ time"}, "expected targets joined by '+'.*got cbind(y, x)"),
        ({"formula": "y ~ x | offset(time)"}, "expected an offset of the experts, before '|'"),
        ({"formula": "y ~ x:offset(time)"}, "expected one term offset(…) by itself"),
        ({"formula": "y ~ x + offset(time)", "offset": "time"}, "expected one offset; got 'time'"),
        ({"formula": "y ~ x", "target": "y"}, "expected a formula, or target="),
        ({"formula": ["y ~ x | x", "count ~ x | x"]}, "expected one gate"),
        ({"family": "gamma"}, "expected family in"),
        ({"shared": ["z"]}, "expected shared terms among"),
        ({"shared": ["sigma"], "family": "poisson"}, "expected normal experts to share a scale"),
        ({"missing": "no"}, "expected missing in"),
        ({"unseen": "no"}, "expected unseen in"),
        ({"family": "binomial"}, "expected a column of trials"),
        ({"num_components": 0}, "num_components of at least 1"),
        ({"formula": "y + x ~ time", "family": ["normal"] * 3}, "a family for each of 2 targets"),
        ({"family": "categorical", "formula": "level ~ x", "offset": "time"}, "no offset"),
    ],
)
def test_arguments_that_are_refused(table, options, message):
    with pytest.raises(ValueError, match=re.escape(message).replace(r"\.\*", ".*")):
        mixture(**{"formula": "y ~ x", "data": table, **options})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weights": "x_"}, "expected a column 'x_'"),
        ({"weights": "level"}, "expected weights 'level' of at least 0; got"),
        ({"groups": "group", "formula": "y ~ x | x"}, "constant in each group of 'group'"),
        ({"formula": "y ~ x", "family": "bernoulli"}, r"expected 0 and 1, or two texts, .*got \["),
        ({"formula": "level ~ x"}, "numbers in the target 'level'; got 'a': .*'categorical'"),
        ({"data": 3}, "expected a table"),
        ({"data": {"x": [], "y": []}}, "with rows"),
        ({"family": "binomial", "formula": "count ~ x", "trials": "x"}, "at most the trials"),
    ],
)
def test_data_that_are_refused(table, options, message):
    with pytest.raises(DataError, match=message):
        mixture(**{"formula": "y ~ x", "data": table, **options})


def test_a_column_that_is_absent_in_new_rows(table, fitted):
    with pytest.raises(DataError, match="expected a column 'level'"):
        fitted.predict(table[["x"]])


def test_a_mapping_is_a_table(table):
    fit = mixture("y ~ x", {"x": table["x"].tolist(), "y": table["y"].tolist()}, num_components=1)
    assert fit.nobs == len(table)


def test_columns_of_one_name_are_refused(table):
    twice = pd.concat([table, 2 * table[["x"]]], axis=1)
    with pytest.raises(DataError, match="expected columns with distinct names; got 'x' twice"):
        designed(["y ~ x"], twice)
