"""A row of weight w counts as w rows, wherever a fit is judged."""

import re

import numpy as np
import pandas as pd
import pytest
import torch
from torch.testing import assert_close

import pyro_moe
from pyro_moe import criticism, evaluation
from pyro_moe.cli.fits.scoring import scores
from pyro_moe.selection import compare_log_densities

FAST = {"family": "poisson", "num_components": 2, "restarts": 2}


@pytest.fixture(scope="module")
def short():
    random = np.random.default_rng(0)
    counts = pd.DataFrame({"y": random.poisson(np.where(random.random(300) < 0.7, 2, 9))})
    return counts.value_counts(sort=False).rename("w").reset_index()


@pytest.fixture(scope="module")
def long(short):
    return short.loc[short.index.repeat(short["w"]), ["y"]].reset_index(drop=True)


@pytest.fixture(scope="module")
def fits(short, long):
    return (
        pyro_moe.mixture("y ~ 1", short, weights="w", **FAST),
        pyro_moe.mixture("y ~ 1", long, **FAST),
    )


def test_rows_count_as_their_weights_say(fits, short, long):
    weighted, repeated = fits
    assert_close(weighted.weights_of(), torch.tensor(short["w"].to_numpy(float)))
    assert_close(weighted.weights_of(short), weighted.weights_of())
    assert repeated.weights_of() is None
    assert weighted.weights_of(short.drop(columns="w")) is None
    assert weighted.total == repeated.total == 300
    assert_close(weighted.repeated().y, repeated.rows().y)
    assert "300 rows (replication weights of" in pyro_moe.fitted.brief.brief(weighted)


def test_arviz_has_the_repeated_rows(fits, short):
    one, other = (criticism.to_arviz(fit, num_draws=8) for fit in fits)
    for group in ("observed_data", "log_likelihood"):
        values, expected = (each[group]["y"].to_numpy() for each in (one, other))
        assert values.shape == expected.shape
        np.testing.assert_allclose(np.sort(values, -1), np.sort(expected, -1), atol=1e-5)
    again = criticism.to_arviz(fits[0], short, num_draws=8)
    assert again.observed_data["y"].shape == (300,)


def test_scores_are_those_of_repeated_rows(fits, short):
    weighted, repeated = fits
    assert weighted.score() == pytest.approx(repeated.score(), rel=1e-9)
    assert weighted.score(short) == pytest.approx(repeated.score(), rel=1e-9)
    one, other = (scores(fit, fit.rows()) for fit in fits)
    assert one == pytest.approx(other, rel=1e-6)
    assert (
        criticism.summary(weighted).splitlines()[3:] == criticism.summary(repeated).splitlines()[3:]
    )


def test_health_and_checks_are_those_of_repeated_rows(fits):
    one, other = map(criticism.health, fits)
    assert (one.num_rows, one.overlap) == pytest.approx((other.num_rows, other.overlap), rel=1e-6)
    assert_close(one.shares, other.shares)
    one, other = (criticism.check(fit, num_replicates=20) for fit in fits)
    pd.testing.assert_frame_equal(one.table, other.table, rtol=1e-6)
    assert_close(one.pit, other.pit)
    assert (one.num_rows, one.ratio) == (300, 1.0)


def test_experts_are_those_of_repeated_rows(fits):
    one, other = (criticism.expert_table(fit, fit.rows()) for fit in fits)
    pd.testing.assert_frame_equal(one, other, rtol=1e-6)


def test_the_page_is_that_of_repeated_rows_but_for_the_weights_and_the_training(fits, tmp_path):
    pages = []
    for place, fit in enumerate(fits):
        path = fit.report(tmp_path / f"{place}.html", num_replicates=20)
        text = re.sub('src="[^"]*"', "", path.read_text(encoding="utf-8"))
        pages.append(text.split("<h2>Training</h2>")[0])
    said = re.findall(r"<tr><td[^>]*>Weights</td><td[^>]*>([^<]*)</td></tr>", pages[0])
    (number,) = {len(fits[0].data[0])}
    assert said == [f"replication weights of {number} rows, with the sum 300"]
    without = re.sub(r"<tr><td[^>]*>Weights</td><td[^>]*>[^<]*</td></tr>", "", pages[0])
    assert without == pages[1]
    assert ">300 for fitting<" in pages[1]


def test_comparisons_are_those_of_repeated_rows(fits, short):
    table = pd.DataFrame(np.random.default_rng(1).normal(size=(len(short), 2)))
    times = torch.tensor(short["w"].to_numpy())
    long = table.loc[table.index.repeat(short["w"])]
    pd.testing.assert_frame_equal(compare_log_densities(table, times), compare_log_densities(long))
    weighted, repeated = fits
    one = criticism.compare({"a": weighted}, short)
    other = criticism.compare({"a": repeated}, repeated.data)
    pd.testing.assert_frame_equal(one, other, rtol=1e-6)


def test_weights_of_one_change_nothing(long):
    table = long.iloc[:60].assign(w=1)
    fit = pyro_moe.mixture("y ~ 1", table, weights="w", **FAST)
    same = pyro_moe.mixture("y ~ 1", table, **FAST)
    assert fit.weights_of() is None
    assert fit.score(table) == evaluation.score(fit, fit.data)
    assert pyro_moe.fitted.brief.weights_in_words(fit) is None
    tables = [criticism.check(each, num_replicates=10).table for each in (fit, same)]
    pd.testing.assert_frame_equal(*tables, rtol=1e-6)


def test_sampling_weights_have_a_mean_of_one_and_stand_once(short):
    fit = pyro_moe.mixture("y ~ 1", short, weights="w", weight_type="sampling", **FAST)
    weights = fit.weights_of(short)
    assert_close(weights, torch.tensor((short["w"] / short["w"].mean()).to_numpy()))
    assert fit.repeats_of(short) is None
    each = fit.predict(short).log_prob(short["y"].to_numpy())
    assert fit.score(short) == pytest.approx(float((weights * each).sum() / len(short)), rel=1e-9)
    assert criticism.check(fit, short, num_replicates=5).num_rows == len(short)


@pytest.mark.parametrize("score", ["accuracy", "nmi", "ari"])
def test_clusterings_are_scored_as_repeated_rows(score):
    clusters, labels = torch.tensor([0, 0, 1, 1, 2]), torch.tensor([1, 0, 0, 0, 2])
    times = torch.tensor([4, 1, 3, 2, 5])
    long = [part.repeat_interleave(times) for part in (clusters, labels)]
    one = evaluation.clustering_scores(clusters, labels, times)
    assert one[score] == pytest.approx(evaluation.clustering_scores(*long)[score], rel=1e-12)
