"""Pictures of criticism show the numbers that they should."""

import math

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.colors import to_rgba
from matplotlib.patches import StepPatch
from scipy.stats import binom

from pyro_moe import DataError, Rows, evaluation, models
from pyro_moe.criticism import (
    Check,
    calibration,
    calibration_curve,
    effects,
    expert_table,
    experts,
    pit_histogram,
    replicates,
)
from pyro_moe.criticism.figures import _bins
from pyro_moe.plots.style import color

pytestmark = pytest.mark.usefixtures("double")


@pytest.fixture
def checked():
    """What a check finds of so many targets, of which some rows have none."""
    pit = torch.rand(200, 2)
    return Check(pd.DataFrame(), pit, num_rows=300, num_replicates=20)


def stairs(axes):
    steps = [patch for patch in axes.patches if isinstance(patch, StepPatch)]
    return [(*patch.get_data()[:2], patch.get_label()) for patch in steps]


# Calibration


def test_the_calibration_curve_is_that_of_the_transform(checked):
    (axes,) = calibration_curve(checked).axes
    table = calibration(checked.pit)
    (line,) = (line for line in axes.lines if line.get_label() == "data")
    np.testing.assert_allclose(line.get_xydata(), table[["level", "coverage"]])


def test_the_band_is_that_of_as_many_targets_as_there_are(checked):
    (axes,) = calibration_curve(checked).axes
    (band,) = axes.collections
    vertices = band.get_paths()[0].vertices
    level = calibration(checked.pit)["level"][9]
    at_level = vertices[np.isclose(vertices[:, 0], level)][:, 1]
    expected = binom.ppf([0.025, 0.975], 200, level) / 200
    np.testing.assert_allclose([at_level.min(), at_level.max()], expected)


def test_the_histogram_counts_each_column(checked):
    (axes,) = pit_histogram(checked, num_bins=5).axes
    for m, (heights, edges, label) in enumerate(stairs(axes)[-2:]):
        counts, _ = np.histogram(checked.pit[:, m], bins=5, range=(0, 1))
        np.testing.assert_allclose(heights, counts / 40)
        np.testing.assert_allclose(edges, np.linspace(0, 1, 6))
        assert label == f"data, y{m}"


@pytest.mark.parametrize("draw", [calibration_curve, pit_histogram])
def test_classes_have_no_calibration(draw):
    message = r"^expected a check of a target whose values have an order; got none$"
    with pytest.raises(DataError, match=message):
        draw(Check(pd.DataFrame(), None, 10, 20))


# Data beside replicates


def test_targets_are_beside_draws_of_the_prediction(fits, rows_of):
    fit = fits("me, two targets")
    rows = rows_of(fit, targets=("price", "cost"))
    figure = replicates(fit, rows, num_replicates=4, seed=2)
    made = evaluation.predict(fit, rows, seed=2).sample(4, seed=2)
    assert [axes.get_title() for axes in figure.axes] == ["price", "cost"]
    for m, axes in enumerate(figure.axes):
        *replicated, (heights, edges, label) = stairs(axes)
        assert label == "data"
        np.testing.assert_allclose(heights, np.histogram(rows.y[:, m], edges)[0])
        assert heights.sum() == len(rows)
        for draw, (counts, _, _) in zip(made[..., m], replicated, strict=True):
            clipped = draw.clamp(edges[0], edges[-1])
            np.testing.assert_allclose(counts, np.histogram(clipped, edges)[0])


def test_counts_have_a_bin_each(fits, rows_of):
    fit = fits("me, counts")
    (axes,) = replicates(fit, rows_of(fit), num_replicates=2).axes
    heights, edges, _ = stairs(axes)[-1]
    y = fit.data[1]
    assert (edges % 1 == 0.5).all()
    counted = {value: heights[np.searchsorted(edges, value) - 1] for value in y.unique().tolist()}
    assert counted == {value: (y == value).sum().item() for value in counted}


def test_shares_of_classes_are_beside_those_of_replicates(fits, rows_of):
    fit = fits("me, classes")
    (axes,) = replicates(fit, rows_of(fit), num_replicates=30).axes
    band, points = axes.collections
    y = fit.data[1]
    shares = np.bincount(y, minlength=3) / len(y)
    np.testing.assert_allclose(points.get_offsets(), np.stack([np.arange(3), shares], 1))
    made = evaluation.predict(fit, fit.data[0]).sample(30)
    replicated = torch.nn.functional.one_hot(made.long(), 3).double().mean(1)
    ends = np.quantile(replicated, (0.025, 0.975), axis=0)
    drawn = np.array([segment[:, 1] for segment in band.get_segments()])
    np.testing.assert_allclose(drawn, ends.T)


def test_rows_without_a_target_are_not_shown(fits, rows_of):
    fit = fits("me, missing targets")
    (axes,) = replicates(fit, rows_of(fit), num_replicates=2).axes
    known = (~fit.data[1].isnan()).sum().item()
    assert [heights.sum() for heights, _, _ in stairs(axes)] == [known] * 3


def test_without_a_target_columns_of_x_are_beside_new_rows(fits, rows_of):
    fit = fits("gmm")
    rows = rows_of(fit, columns=("age", "weight"))
    figure = replicates(fit, rows, num_replicates=3, max_columns=1, seed=5)
    (axes,) = figure.axes
    assert axes.get_title() == "age"
    *replicated, (heights, edges, _) = stairs(axes)
    np.testing.assert_allclose(heights, np.histogram(rows.x[:, 0], edges)[0])
    for s, (counts, _, _) in enumerate(replicated):
        made = evaluation.sample(fit, len(rows), seed=5 + s)[:, 0].clamp(edges[0], edges[-1])
        np.testing.assert_allclose(counts, np.histogram(made, edges)[0])


def test_panels_without_a_column_are_not_shown(as_it_is):
    story = models.GMM(4, 1)
    fit = as_it_is(story.model, story.guide, torch.randn(50, 4))
    figure = replicates(fit, Rows(fit.data[0], columns=tuple("abcd")), num_replicates=2)
    shown = [axes.get_title() for axes in figure.axes if axes.get_visible()]
    assert shown == ["a", "b", "c", "d"]


@pytest.mark.parametrize(("number", "bins"), [(9, 10), (100, 20), (1000, 40)])
def test_few_rows_have_few_bins(as_it_is, number, bins):
    story = models.GMM(1, 1)
    fit = as_it_is(story.model, story.guide, torch.randn(number, 1))
    (axes,) = replicates(fit, Rows(fit.data[0]), num_replicates=2).axes
    assert {len(heights) for heights, _, _ in stairs(axes)} == {bins}


def test_images_are_beside_new_images(as_it_is):
    story = models.VAE(16, 2, hidden=(4,))
    x = torch.rand(9, 16)
    figure = replicates(as_it_is(story.model, story.guide, x), Rows(x, image_shape=(1, 4, 4)))
    assert [axes.get_title() for axes in figure.axes] == ["Data", "Replicates"]
    shown = figure.axes[0].images[0].get_array()
    ink = 1 - (x - x.min()) / (x.max() - x.min())
    np.testing.assert_allclose(shown[1:5, 1:5, 0], ink[0].reshape(4, 4), atol=1e-6)
    assert figure.axes[1].images[0].get_array().shape == shown.shape


# Experts


def test_lines_are_what_each_expert_says_where_it_rules(fits, rows_of):
    fit = fits("me")
    rows = rows_of(fit, columns=("age", "weight"), targets=("price",))
    figure = experts(fit, rows)
    assert [axes.get_xlabel() for axes in figure.axes] == ["age", "weight"]
    assert figure.axes[0].get_ylabel() == "price"
    likeliest = evaluation.posterior(fit, rows).argmax(-1)
    for d, axes in enumerate(figure.axes):
        assert [line.get_label() for line in axes.lines] == ["0", "1"]
        for k, line in enumerate(axes.lines):
            own = rows.x[likeliest == k]
            along, said = line.get_data()
            assert to_rgba(line.get_color()) == to_rgba(color(k))
            np.testing.assert_allclose(along[[0, -1]], [own[:, d].min(), own[:, d].max()])
            grid = own.median(0).values.repeat(len(along), 1)
            grid[:, d] = torch.as_tensor(along)
            expected = fit.story.experts(grid).mean[:, k, 0]
            np.testing.assert_allclose(said, expected.detach(), rtol=1e-6)


def test_the_band_and_the_points_are_those_of_the_expert(fits, rows_of):
    """The mean ± 1.645 σ, and rows moved to the medians of the other columns."""
    fit = fits("me")
    rows = rows_of(fit)
    likeliest = evaluation.posterior(fit, rows).argmax(-1)
    shown = effects(fit, rows)
    assert shown.adjusted
    _, mean, deviation = shown.line(1, 0)
    scale = fit.story.experts.scales()[0, 0].item()
    np.testing.assert_allclose(deviation[:, 0], scale)
    band = shown.figure().axes[1].collections[0].get_paths()[0].vertices
    np.testing.assert_allclose(band[:, 1].min(), (mean - 1.645 * deviation).min(), rtol=1e-6)
    own = rows.x[likeliest == 0]
    where, target = shown.points(1, 0)
    np.testing.assert_allclose(where, own[:, 1])
    moved = own.median(0).values.repeat(len(own), 1)
    moved[:, 1] = own[:, 1]
    means = [fit.story.experts(x).mean[:, 0].detach() for x in (own, moved)]
    np.testing.assert_allclose(target, fit.data[1][likeliest == 0] - means[0] + means[1])


def test_of_classes_lines_are_the_probability_of_each(fits, rows_of):
    fit = fits("me, classes")
    figure = experts(fit, rows_of(fit), max_columns=1, classes=("a", "b", "c"))
    assert [axes.get_ylabel() for axes in figure.axes] == ["P(y = a)", "P(y = b)", "P(y = c)"]
    likeliest = evaluation.posterior(fit, fit.data).argmax(-1)
    column = effects(fit, rows_of(fit), max_columns=1).chosen[0]
    for m, axes in enumerate(figure.axes):
        line = axes.lines[0]
        k = int(line.get_label())
        grid = fit.data[0][likeliest == k].median(0).values.repeat(40, 1)
        grid[:, column] = torch.as_tensor(line.get_xdata())
        expected = fit.story.experts(grid).probs[:, k, m]
        np.testing.assert_allclose(line.get_ydata(), expected.detach(), rtol=1e-6)


def test_columns_that_matter_are_shown_and_the_others_named(as_it_is):
    story = models.ME(4, 1, 2)
    with torch.no_grad():
        story.experts.network.weight.zero_()
        story.experts.network.weight[0, 0, 2] = 3.0
        story.experts.network.weight[1, 0, 0] = 1.0
    x, y = torch.randn(60, 4), torch.randn(60, 1)
    fit = as_it_is(story.model, story.guide, x, y)
    rows = Rows(x, y, columns=("a", "b", "c", "d"))
    shown = effects(fit, rows)
    assert (shown.chosen, shown.left_out) == ([0, 2], ("b", "d"))
    assert effects(fit, rows, max_columns=1).chosen == [2]


def test_the_table_says_where_each_expert_rules_and_how_well(fits, rows_of):
    fit = fits("me")
    table = expert_table(fit, rows_of(fit))
    x, y = fit.data
    g, said = fit.story.gate(x).probs.detach(), fit.story.experts(x)
    log_density = fit.story(x).log_prob(y).detach()
    likeliest = evaluation.posterior(fit, fit.data).argmax(-1)
    for k, row in table.iterrows():
        own = likeliest == k
        expected = {
            "component": k,
            "share": g[:, k].mean(),
            "rows": own.sum(),
            "log_density": log_density[own].mean(),
            "mean": said.mean[own, k, 0].mean().detach(),
            "standard_deviation": said.variance[own, k, 0].sqrt().mean().detach(),
        }
        for name, value in expected.items():
            assert row[name] == pytest.approx(float(value), rel=1e-6), name


def test_of_classes_the_table_has_their_probabilities(fits, rows_of):
    fit = fits("me, classes")
    table = expert_table(fit, rows_of(fit), classes=("a", "b", "c"))
    x = fit.data[0]
    own = evaluation.posterior(fit, fit.data).argmax(-1) == 1
    expected = fit.story.experts(x).probs[own, 1].mean(0).detach()
    np.testing.assert_allclose(table.loc[1, ["P(a)", "P(b)", "P(c)"]].astype(float), expected)


def test_an_expert_that_rules_nowhere_has_no_mean(as_it_is):
    story = models.ME(1, 1, 2)
    with torch.no_grad():
        for parameter in story.gate.parameters():
            parameter.zero_()
        next(p for name, p in story.gate.named_parameters() if "bias" in name)[0, 0] = 500.0
    x, y = torch.randn(20, 1), torch.randn(20, 1)
    table = expert_table(as_it_is(story.model, story.guide, x, y), Rows(x, y))
    assert table["rows"].tolist() == [20, 0]
    assert math.isnan(table["mean"][1])
    assert math.isfinite(table["mean"][0])


def test_rows_without_a_target_are_not_in_the_table(fits, rows_of):
    fit = fits("me, missing targets")
    assert expert_table(fit, rows_of(fit))["rows"].sum() == (~fit.data[1].isnan()).sum()


def test_whole_numbers_that_are_far_apart_have_few_bins():
    assert len(_bins(np.array([0.0, 1e30]))) < 50
    assert len(_bins(np.array([0.0, 3.0]))) == 7
