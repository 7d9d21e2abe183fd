"""Texts of a table are levels of factors, and not numbers or names of rows."""

import numpy as np
import pandas as pd
import pytest

from pyro_moe import DataError, mixture

RNG = np.random.default_rng(0)
ROWS = pd.DataFrame({"x": RNG.normal(size=60), "y": RNG.normal(size=60)})
COMMAS = [f"{value:.2f}".replace(".", ",") for value in ROWS["x"]]


@pytest.mark.parametrize("formula", ["y ~ u", "y ~ x | u", "u ~ x", "y ~ x:u"])
def test_numbers_with_a_decimal_comma_are_no_levels(formula):
    rows = ROWS.assign(u=COMMAS)
    with pytest.raises(DataError, match=r"expected numbers in the column 'u'; got '.*decimal=','"):
        mixture(formula, rows, num_components=1)


def test_few_doses_with_a_decimal_comma_are_no_levels():
    rows = ROWS.assign(dose=np.where(ROWS.index % 2, "0,5", "1"))
    with pytest.raises(DataError, match=r"--decimal ,"):
        mixture("y ~ dose", rows, num_components=1)


@pytest.mark.parametrize("kind", [object, "string", "category"])
def test_names_of_rows_are_no_levels(kind):
    names = pd.Series([f"patient {number}" for number in range(60)], dtype=kind)
    with pytest.raises(DataError, match=r"got 60 levels of 'who' in 60 rows: leave out"):
        mixture("y ~ x + who", ROWS.assign(who=names), num_components=1)


@pytest.mark.parametrize("levels", [["1,2 to 3", "4"], ["a,b", "c"], ["2", "10"]])
def test_other_texts_are_levels(levels):
    rows = ROWS.assign(u=np.array(levels)[ROWS.index % 2])
    assert len(mixture("y ~ u", rows, num_components=1).params) == 3


def test_a_table_of_few_rows_may_have_a_level_for_most_of_them():
    rows = ROWS.head(12).assign(u=list("abcdefaabbcc"))
    assert len(mixture("y ~ u", rows, num_components=1).params) == 7
