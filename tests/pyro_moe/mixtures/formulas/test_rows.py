"""Which rows of a table are fitted, and where they are in it."""

import numpy as np
import pandas as pd
import pytest
import torch

from pyro_moe import DataError, mixture, runs

FAST = {"restarts": 1, "order": "x"}


@pytest.fixture
def gaps(table):
    """A table with an index of its own, gaps in four columns, and rows of weight zero."""
    rows = table.assign(w=np.arange(len(table)) % 3 + 1.0)
    rows.loc[[3, 50], "x"] = np.nan
    rows.loc[[7], "level"] = None
    rows.loc[[11], "y"] = np.nan
    rows.loc[[20], "w"] = np.nan
    rows.loc[[30, 31], "w"] = 0.0
    return rows.set_axis([f"r{i}" for i in range(len(rows))][::-1])


def test_rows_have_the_index_of_the_table(table):
    filtered = table[table["x"] > 2.0].sample(frac=1.0, random_state=0)
    fit = mixture("y ~ x", filtered, **FAST)
    for found in (fit.classify(), fit.posterior(), fit.relabel([1, 0]).classify()):
        pd.testing.assert_index_equal(found.index, filtered.index)
    assigned = table.assign(k=fit.classify())
    np.testing.assert_array_equal(assigned["k"].dropna().index, filtered.index.sort_values())
    plain = mixture("y ~ x", filtered.reset_index(drop=True), **FAST)
    np.testing.assert_array_equal(plain.posterior(), fit.posterior())
    assert plain.posterior().index.tolist() == list(range(len(filtered)))


def test_an_index_may_have_a_label_twice(table):
    rows = table.set_axis(np.arange(len(table)) // 2)
    fit = mixture("y ~ x + level + C(level):time | level", rows, restarts=1)
    like = mixture("y ~ x + level + C(level):time | level", table, restarts=1)
    np.testing.assert_array_equal(fit.params, like.params)
    assert fit.classify().index.tolist() == rows.index.tolist()


def test_rows_that_are_left_out_have_no_component_and_are_counted(gaps):
    options = {"weights": "w", "missing": "drop", **FAST}
    fit = mixture("y ~ x + level", gaps, **options)
    kept = gaps.dropna()
    kept = kept[kept["w"] > 0]
    assert fit.classify().index.tolist() == kept.index.tolist()
    assert fit.left_out == 7
    note = f"7 of {len(gaps)} rows are left out: they have gaps or no weight."
    assert note in str(fit.summary())
    like = mixture("y ~ x + level", kept, weights="w", **FAST)
    assert fit.llf == like.llf
    assert "left out" not in str(like.summary())


def test_a_missing_weight_is_an_error_unless_rows_are_dropped(gaps):
    with pytest.raises(
        DataError, match=r"expected weights 'w' of at least 0; got .*nan.* in row 20"
    ):
        mixture("y ~ time", gaps, weights="w")
    wrong = gaps.assign(w=np.where(np.arange(len(gaps)) == 40, -1.0, gaps["w"]))
    with pytest.raises(
        DataError, match=r"expected weights 'w' of at least 0; got .*1.0.* in row 40"
    ):
        mixture("y ~ time", wrong, weights="w", missing="drop")


@pytest.mark.parametrize("kind", ["labels", "array", "responsibilities", "kept"])
def test_the_start_of_rows_left_out_is_left_out(gaps, kind):
    number = len(gaps)
    labels = gaps["component"].to_numpy()
    there = gaps[["x", "level", "y"]].notna().all(axis=1).to_numpy()
    soft = torch.eye(2)[torch.tensor(labels.tolist())] * 0.8 + 0.1
    start, of_kept = {
        "labels": (labels.tolist(), labels[there]),
        "array": (pd.Series(labels, gaps.index), labels[there]),
        "responsibilities": (soft, soft[torch.tensor(there.tolist())]),
        "kept": (labels[there], labels[there]),
    }[kind]
    options = {"missing": "drop", "order": "fitted", "epochs": 1}
    fit = mixture("y ~ x + level", gaps, initialize=start, **options)
    like = mixture("y ~ x + level", gaps[there], initialize=of_kept, order="fitted", epochs=1)
    assert len(there) == number > there.sum()
    np.testing.assert_array_equal(fit.params, like.params)


def test_a_restored_fit_has_the_index_of_the_table_that_it_is_given(gaps, tmp_path):
    fit = mixture("y ~ x + level", gaps, weights="w", missing="drop", **FAST)
    runs.save(fit, tmp_path / "run", data_name="gaps")
    restored, _, _ = runs.restore(tmp_path / "run", gaps)
    pd.testing.assert_series_equal(restored.classify(), fit.classify())
    assert restored.left_out == fit.left_out == 7
    other = runs.restore(tmp_path / "run", gaps.reset_index(drop=True))[0].classify()
    np.testing.assert_array_equal(other.index, np.flatnonzero(gaps.index.isin(fit.index)))


def test_other_stories_know_their_rows(gaps):
    options = {"missing": "drop", "epochs": 1}
    fit = mixture("y ~ x + time | x + time", gaps, story="deepmoe", **options)
    assert fit.index.tolist() == gaps.index[gaps[["x", "y"]].notna().all(axis=1)].tolist()
    assert fit.left_out == 3
