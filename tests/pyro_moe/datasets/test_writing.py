"""What spreadsheets would take for formulas is text."""

import csv

import numpy as np
import pandas as pd
import pytest

from pyro_moe.datasets import writing

FORMULAS = ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "\n=1", "=HYPERLINK(1)", "\uff1d1"]
OTHERS = ["a=1", "1-1", "a@b", "", "'=1", "ü", "a\r=1", "a\n=1", 'a"=1', "a,=1"]


def written(path, table, **options):
    writing.write(path, table, **options)
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.reader(file))


@pytest.mark.parametrize("text", FORMULAS)
def test_formulas_are_escaped_and_may_be_kept(text, tmp_path):
    table = pd.DataFrame({text: [text, "a"], "n": [-1.5, 2.0]})
    path = tmp_path / "my.csv"
    assert written(path, table) == [[f"'{text}", "n"], [f"'{text}", "-1.5"], ["a", "2.0"]]
    assert written(path, table, escape=False) == [[text, "n"], [text, "-1.5"], ["a", "2.0"]]


@pytest.mark.parametrize("text", OTHERS)
def test_other_texts_stay_and_are_one_cell(text, tmp_path):
    table = pd.DataFrame({"x": [text, "a"], "n": [1, 2]})
    assert written(tmp_path / "my.csv", table) == [["x", "n"], [text, "1"], ["a", "2"]]


def test_numbers_stay_numbers(tmp_path):
    table = pd.DataFrame({"-a": [-1.25, np.nan], "b": [-3, 4], "c": [True, False]})
    found = written(tmp_path / "my.csv", table)
    assert found == [["'-a", "b", "c"], ["-1.25", "-3", "True"], ["", "4", "False"]]
    assert written(tmp_path / "my.csv", pd.DataFrame({"a": []})) == [["a"]]
    twice = pd.DataFrame([["=1", -2]], columns=["a", "a"])
    assert written(tmp_path / "my.csv", twice) == [["a", "a"], ["'=1", "-2"]]
