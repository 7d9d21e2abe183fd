"""Later data are matched to the fitted data: columns by name, targets by shape and type."""

import re

import numpy as np
import pandas as pd
import pytest
import torch
from torch.testing import assert_close

import pyro_moe
from pyro_moe import DataError, DataWarning, Rows, criticism, evaluation, models, plots
from pyro_moe.criticism import figures

EXACT = {"rtol": 0, "atol": 0}
N = 60
GENERATOR = torch.Generator().manual_seed(0)
X = torch.randn(N, 3, generator=GENERATOR)
Y = torch.stack([X @ torch.tensor([1.0, -2.0, 3.0]), 5.0 + X[:, 1]], 1)
NAMES, TARGETS = ("dose", "age", "size"), ("price", "rent")
FRAME = pd.DataFrame(X.numpy(), columns=NAMES)
PRICES = pd.DataFrame(Y.numpy(), columns=TARGETS)
TURNED = FRAME[["size", "dose", "age"]]


def fitted(data, **choices):
    story = models.ME(3, 2, 2) if isinstance(data, tuple | Rows) else models.GMM(3, 2)
    options = {"loss": "em", "epochs": 3, "prior": "none", "progress": False} | choices
    return pyro_moe.fit(story.model, story.guide, data, **options)


@pytest.fixture(scope="module")
def fit():
    return fitted((FRAME, PRICES))


@pytest.fixture(scope="module")
def mixture():
    return fitted(FRAME)


def test_a_fit_has_the_names_of_its_columns_and_targets(fit):
    assert (fit.columns, fit.targets) == (NAMES, TARGETS)
    rows = Rows(X, Y, columns=NAMES, targets=TARGETS)
    assert (fitted(rows).columns, fitted(rows).targets) == (NAMES, TARGETS)
    assert (fitted((X, Y)).columns, fitted((X, Y)).targets) == (None, None)
    longer = fit.resume(epochs=4, progress=False)
    assert (longer.columns, longer.targets) == (NAMES, TARGETS)


class Polars:
    """What a data frame of another library has: names of columns, indices, and an array."""

    def __init__(self, frame):
        self.columns, self.shape, self._array = list(frame), frame.shape, frame.to_numpy()

    def to_numpy(self):
        return self._array

    def __array__(self, dtype=None, copy=None):
        return self._array

    def __getitem__(self, places):
        return self._array[places]


OTHERS = {
    "frame": TURNED,
    "rows": Rows(X[:, [2, 0, 1]], columns=tuple(TURNED)),
    "pair": (TURNED, PRICES),
    "other library": Polars(TURNED),
    "levels": FRAME.set_axis(pd.MultiIndex.from_tuples([(name,) for name in NAMES]), axis=1)[
        [("age",), ("dose",), ("size",)]
    ],
    "array": FRAME.to_numpy(),
    "numbers": FRAME.set_axis(range(3), axis=1),
}


@pytest.mark.parametrize("given", OTHERS)
def test_every_tool_matches_columns_by_name(given, fit, mixture):
    tools = [
        lambda data: evaluation.predict(fit, data).mean,
        lambda data: evaluation.gate(fit, data),
        lambda data: evaluation.gate(mixture, data),
        lambda data: evaluation.elbo(mixture, data),
        lambda data: evaluation.novelty(mixture, data, num_samples=1).log_density,
        lambda data: evaluation.novelty(mixture, X, reference=data, num_samples=1).reference,
        lambda data: evaluation.impute(mixture, data).mean,
        lambda data: criticism.health(mixture, data).shares,
    ]
    for tool in tools:
        assert_close(tool(OTHERS[given]), tool(FRAME), **EXACT)


def test_targets_are_matched_by_name(fit):
    expected = evaluation.elbo(fit, (FRAME, PRICES))
    turned = PRICES[["rent", "price"]]
    assert_close(evaluation.elbo(fit, (TURNED, turned)), expected, **EXACT)
    rows = Rows(X[:, [2, 0, 1]], Y.flip(1), None, None, tuple(TURNED), ("rent", "price"))
    assert_close(evaluation.elbo(fit, rows), expected, **EXACT)
    with pytest.raises(DataError) as caught:
        evaluation.elbo(fit, (FRAME, PRICES.rename(columns={"rent": "rate"})))
    assert str(caught.value) == (
        "expected 'rent' among the columns of y, as fitted; got 'price', 'rate'"
    )
    with pytest.raises(DataError, match="expected y with 2 columns, as fitted; got 1"):
        evaluation.elbo(fit, (FRAME, Y[:, 0]))


def test_a_series_is_matched_by_its_name():
    story = models.ME(3, 1, 2)
    options = {"loss": "em", "epochs": 3, "prior": "none", "progress": False}
    fit = pyro_moe.fit(story.model, story.guide, (FRAME, PRICES["price"]), **options)
    assert fit.targets == ("price",)
    expected = evaluation.elbo(fit, (X, Y[:, 0]))
    for y in (PRICES["price"], PRICES[["price"]], Y[:, :1]):
        assert_close(evaluation.elbo(fit, (FRAME, y)), expected, **EXACT)
    with pytest.warns(DataWarning, match="columns of y alone; got also 'rent', left out"):
        assert_close(evaluation.elbo(fit, (FRAME, PRICES)), expected, **EXACT)
    with pytest.raises(DataError, match=r"expected 'price' among the columns of y, .* got 'rent'"):
        evaluation.elbo(fit, (FRAME, PRICES["rent"]))
    assert evaluation.predict(fit, (FRAME, PRICES["rent"])).mean.shape == (N, 1)


def test_a_missing_column_is_named(fit):
    with pytest.raises(DataError) as caught:
        evaluation.predict(fit, FRAME[["age", "dose"]].assign(width=1.0))
    assert str(caught.value) == (
        "expected 'size' among the columns of x, as fitted; got 'age', 'dose', 'width'"
    )


def test_further_columns_are_left_out_with_one_warning(fit, mixture, tmp_path):
    wider = TURNED.assign(name="text", id=range(N))
    message = "expected the fitted columns of x alone; got also 'name', 'id', left out"
    rows = Rows(torch.cat([torch.arange(N).unsqueeze(1), X], 1), Y, columns=("id", *NAMES))
    uses = [
        lambda data: evaluation.predict(fit, data).mean,
        lambda data: evaluation.gate(mixture, data),
        lambda data: torch.tensor(
            criticism.check(mixture, data, num_replicates=19).table["p_value"]
        ),
    ]
    for use in uses:
        with pytest.warns(DataWarning, match=f"^{message}$") as caught:
            given = use(wider)
        assert len(caught) == 1
        assert_close(given, use(FRAME), **EXACT)
    for use in (
        lambda: fit.report(tmp_path / "report.html", rows, num_replicates=19),
        lambda: plots.pictures(fit, rows),
        lambda: criticism.expert_table(fit, rows),
        lambda: criticism.experts(fit, rows),
        lambda: figures.replicates(fit, rows),
    ):
        with pytest.warns(DataWarning, match="got also 'id', left out$") as caught:
            use()
        assert len(caught) == 1


def test_what_a_plot_shows_is_in_the_fitted_order(fit):
    rows = Rows(X, Y, columns=NAMES, targets=TARGETS)
    turned = Rows(X[:, [2, 0, 1]], Y.flip(1), None, None, tuple(TURNED), ("rent", "price"))
    one, other = (criticism.expert_table(fit, each) for each in (rows, turned))
    pd.testing.assert_frame_equal(one, other)
    drawn = [criticism.experts(fit, each) for each in (rows, turned)]
    lines = [[axes.lines[0].get_ydata() for axes in figure.axes[:3]] for figure in drawn]
    np.testing.assert_array_equal(*lines)
    titles = [
        [axes.get_title() for axes in plots.predictions(fit, each).axes] for each in (rows, turned)
    ]
    assert titles[0] == titles[1] == ["price", "rent"]


def test_columns_without_names_go_by_position(fit):
    unnamed = fitted((X, Y))
    assert_close(
        evaluation.predict(unnamed, TURNED).mean, evaluation.predict(unnamed, X[:, [2, 0, 1]]).mean
    )
    with pytest.raises(DataError, match="expected x with 3 columns, as fitted; got 2"):
        evaluation.predict(unnamed, X[:, :2])
    with pytest.raises(DataError, match="expected x with 3 columns, as fitted; got 2"):
        evaluation.predict(fit, X[:, :2])


def test_numbers_that_pandas_gives_are_positions():
    numbered = FRAME.set_axis(range(3), axis=1)
    for data in (numbered, numbered[[2, 0, 1]], X):
        fit = fitted(data)
        expected = evaluation.gate(fit, numbered)
        assert_close(evaluation.gate(fit, numbered[[1, 2, 0]]), expected, **EXACT)
    years = FRAME.set_axis([1990, 2000, 2010], axis=1)
    assert fitted(years).columns == ("1990", "2000", "2010")


def test_levels_of_a_label_are_joined():
    labels = pd.MultiIndex.from_tuples([("a", "x"), ("a", "y"), ("b", 1)])
    assert fitted(FRAME.set_axis(labels, axis=1)).columns == ("a.x", "a.y", "b.1")


def test_two_columns_of_one_name_are_an_error(mixture):
    twice = FRAME.set_axis(["dose", "age", "dose"], axis=1)
    message = "expected columns of x with distinct names; got 'dose' twice"
    with pytest.raises(DataError, match=message):
        evaluation.gate(mixture, twice)
    with pytest.raises(DataError, match=message):
        fitted(twice)
    with pytest.raises(DataError, match=message):
        evaluation.gate(mixture, Rows(X, columns=("dose", "age", "dose")))


def test_each_column_of_rows_has_a_name_if_one_has(mixture):
    for rows in (
        Rows(X, Y, columns=("dose", "age")),
        Rows(X, Y, columns=NAMES, targets=("price",)),
    ):
        width, of = (3, "x") if len(rows.columns) == 2 else (2, "y")
        message = f"expected {width} names of columns of {of}; got {width - 1}"
        with pytest.raises(DataError, match=message):
            evaluation.elbo(mixture, rows)
        with pytest.raises(DataError, match=message):
            fitted(rows)


# Targets


def test_classes_may_come_as_floating_point_numbers():
    story = models.ME(3, 3, 2, experts="categorical")
    classes = torch.arange(N) % 3
    fit = pyro_moe.fit(
        story.model, story.guide, (X, classes), epochs=2, prior="none", progress=False
    )
    expected = evaluation.elbo(fit, (X, classes))
    for y in (classes.double(), classes.unsqueeze(1), classes.numpy().astype(np.int8)):
        assert_close(evaluation.elbo(fit, (X, y)), expected, **EXACT)
    message = "expected integers in y, as fitted; got 0.5 in row 4"
    with pytest.raises(DataError, match=re.escape(message)):
        evaluation.elbo(fit, (X, classes.double().index_fill(0, torch.tensor([4]), 0.5)))


def test_whole_numbers_are_taken_for_targets_that_were_not():
    story = models.ME(3, 1, 2)
    y = (100 * Y[:, :1]).round()
    fit = pyro_moe.fit(story.model, story.guide, (X, y), epochs=2, prior="none", progress=False)
    assert_close(evaluation.elbo(fit, (X, y.long())), evaluation.elbo(fit, (X, y)), **EXACT)


IMPOSSIBLE = {
    "categorical": (torch.arange(N) % 3, 5, r"IntegerInterval\(lower_bound=0, upper_bound=2\)"),
    "poisson": (torch.arange(N) % 3, -1, r"IntegerGreaterThan\(lower_bound=0\)"),
    "bernoulli": (torch.arange(N) % 2, 2, r"Boolean\(\)"),
}


@pytest.mark.parametrize("experts", IMPOSSIBLE)
def test_a_target_that_the_model_does_not_have_is_named(experts):
    y, impossible, support = IMPOSSIBLE[experts]
    story = models.ME(3, 3 if experts == "categorical" else 1, 2, experts=experts)
    fit = pyro_moe.fit(story.model, story.guide, (X, y), epochs=1, prior="none", progress=False)
    later = y.index_fill(0, torch.tensor([4]), impossible)
    for tool in (
        evaluation.elbo,
        evaluation.importance_weighted_bound,
        lambda fit, data: criticism.to_arviz(fit, data, num_draws=8),
    ):
        message = f"in the support of its distribution, {support}; got {impossible} in row 4$"
        with pytest.raises(DataError, match=f"^expected values of site 'y' {message}"):
            tool(fit, (X, later))
