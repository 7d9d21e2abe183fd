"""Rows are made again as they were, by what JSON holds of their source."""

import json
import math
from dataclasses import asdict

import pandas as pd
import pytest
import torch
from torch.testing import assert_close

from pyro_moe import DataError, DataWarning, datasets
from pyro_moe.datasets.source import Source

EXACT = {"rtol": 0, "atol": 0}


def through_json(source):
    return Source(**json.loads(json.dumps(asdict(source))))


def same(rows, others):
    for one, other in zip(rows, others, strict=True):
        for part in ("x", "y", "labels"):
            first, second = getattr(one, part), getattr(other, part)
            assert (first is None) == (second is None)
            if first is not None:
                assert_close(first, second, **EXACT, equal_nan=True)


@pytest.fixture
def table(tmp_path):
    path = tmp_path / "my.csv"
    x = torch.randn(30, generator=torch.Generator().manual_seed(0)).tolist()
    animals = ["dog", "cat", None] * 10
    pd.DataFrame({"x": x, "animal": animals, "age": range(30)}).to_csv(path, index=False)
    return path


@pytest.mark.parametrize("made", [False, True])
def test_named_data(made):
    source = Source("digits", made_targets=made)
    train, test = datasets.load("digits")
    expected = datasets.piecewise_affine(train, test) if made else (train, test)
    assert source.recorded() == source
    same(through_json(source).rows(), expected)
    same(through_json(source).rows_again(), expected)
    with pytest.raises(DataError) as caught:
        source.rows_again("my.csv")
    assert str(caught.value) == "expected no other data than digits, which was fitted; got my.csv"


def test_the_folder_of_mnist_may_have_moved(monkeypatch):
    asked = []
    monkeypatch.setattr(
        datasets, "mnist", lambda root, binary: asked.append((root, binary)) or (1, 2)
    )
    source = Source("mnist", data_dir="here", binary=True)
    assert source.rows() == source.rows_again("there") == (1, 2)
    assert asked == [("here", True), ("there", True)]


def test_a_table_with_classes_and_without_some_of_them(table):
    source = Source(
        str(table), target=("animal",), missing_targets=True, classes={"animal": ("cat", "dog")}
    )
    train, test = rows = source.rows()
    values = torch.cat([train.y, test.y])
    assert len(train), len(test) == (24, 6)
    ages = torch.cat([train.x[:, 1], test.x[:, 1]])
    expected = torch.tensor([1.0, 0.0, math.nan], dtype=torch.float64).repeat(10)[ages.long()]
    assert_close(values, expected, **EXACT, equal_nan=True)
    recorded = through_json(source.recorded())
    assert recorded.name == str(table.absolute())
    same(recorded.rows(), rows)
    same(recorded.rows_again(), rows)


def test_the_notation_of_a_table_is_recorded(tmp_path):
    frame = pd.DataFrame({"id": range(10), "a": [n / 2 for n in range(10)], "y": range(10)})
    path, other = tmp_path / "my.csv", tmp_path / "other.csv"
    frame.to_csv(path, sep=";", decimal=",", encoding="utf-16-le", index=False)
    notation = {"sep": ";", "decimal": ",", "encoding": "utf-16-le"}
    source = Source(str(path), target=("y",), index=("id",), **notation)
    assert source.reading == notation
    recorded = through_json(source.recorded())
    same(recorded.rows_again(), source.rows())
    frame.drop(columns="id").to_csv(other, sep=";", decimal=",", encoding="utf-16-le", index=False)
    rows, _ = recorded.rows_again(other, columns=["a"])
    assert rows.x.flatten().tolist() == frame["a"].tolist()
    frame.to_csv(other, index=False)
    changed = {"sep": None, "decimal": ".", "encoding": None}
    same(recorded.rows_again(other, columns=["a"], **changed)[:1], (rows,))


def test_what_was_left_out_is_named_once(tmp_path):
    path = tmp_path / "my.csv"
    pd.DataFrame({"a": [0.5, 1.5, 2.5]}).to_csv(path)
    source = Source(str(path))
    with pytest.warns(DataWarning, match="left out column 'Unnamed: 0'"):
        rows = source.rows()
    same(source.recorded().rows_again(columns=rows[0].columns), rows)


def test_the_whole_path_is_recorded(table, monkeypatch):
    monkeypatch.chdir(table.parent)
    source = Source("my.csv", target=("age",), classes={})
    frame = pd.read_csv(table).drop(columns="animal")
    frame.to_csv("my.csv", index=False)
    recorded = source.recorded()
    assert recorded.name == str(table)
    monkeypatch.chdir("/")
    assert len(recorded.rows_again()[0]) == 24
    content = table.read_bytes()
    table.write_bytes(content.replace(b"29", b"30"))
    with pytest.raises(DataError, match="with the fitted content; got other content"):
        recorded.rows_again()
    table.write_bytes(content)
    recorded.rows_again()
