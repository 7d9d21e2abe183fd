"""Each picture shows the rows that it should, in the place and the color that it should."""

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from matplotlib.colors import to_rgba
from torch.testing import assert_close

import pyro_moe
from pyro_moe import DataError, Rows, SiteError, datasets, evaluation, models, plots
from pyro_moe.plots import style
from pyro_moe.plots.images import _mosaic
from pyro_moe.plots.points import match
from pyro_moe.plots.training import running_median


def fitted(story, rows, **choices):
    settings = {"epochs": 2, "seed": 0, "prior": "none", "progress": False} | choices
    return pyro_moe.fit(story.model, story.guide, rows, **settings)


@pytest.fixture(scope="module")
def plane():
    """Rows of three clusters in the plane, and a DMVAE fitted to them."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(60) % 3
    centers = torch.tensor([[0.0, 0.0], [9.0, 0.0], [0.0, 9.0]])
    rows = Rows(centers[labels] + torch.randn(60, 2, generator=generator), labels=labels)
    return rows, fitted(models.DMVAE(2, 2, 3, hidden=(8,)), rows)


@pytest.fixture(scope="module")
def images():
    """Rows of 50 digits, and a DMVAE of ten components fitted to them."""
    rows = datasets.digits()[1].subsample(50, seed=0)
    return rows, fitted(models.DMVAE(64, 3, 10, hidden=(8,)), rows)


def points(axes):
    (collection,) = axes.collections
    return collection.get_offsets()


def expected_colors(groups, alpha=0.8):
    return [to_rgba(style.PALETTE[group], alpha) for group in groups]


def texts(axes):
    return sorted(text.get_text() for text in axes.texts)


def tile(axes, row, column, size=8):
    """The inner pixels of one image of a grid."""
    first = (row * (size + 2) + 1, column * (size + 2) + 1)
    grid = axes.images[0].get_array()
    return grid[first[0] : first[0] + size, first[1] : first[1] + size]


def ink(x, like):
    scaled = (x - like.min()) / (like.max() - like.min())
    gray = 1.0 - scaled.clamp(0, 1).reshape(8, 8, 1).numpy()
    return np.broadcast_to(gray, (8, 8, 3))


def test_every_picture_of_points(plane):
    rows, fit = plane
    figures = plots.pictures(fit, rows)
    assert set(figures) == {"history", "latent_map", "reconstructions", "generated", "gate_map"}


def test_every_picture_of_images(images):
    rows, fit = images
    figures = plots.pictures(fit, rows)
    assert set(figures) == {"history", "latent_map", "reconstructions", "generated"}


def test_pictures_leave_out_what_a_story_lacks(plane):
    rows, _ = plane
    gmm = fitted(models.GMM(2, 3), rows, loss="em")
    assert set(plots.pictures(gmm, rows)) == {"history", "generated", "gate_map"}
    vae = fitted(models.VAE(2, 2, hidden=(8,)), rows)
    without_c = {"history", "latent_map", "reconstructions", "generated"}
    assert set(plots.pictures(vae, rows)) == without_c


def test_pictures_leave_out_rows_that_are_neither_images_nor_points():
    rows = Rows(torch.randn(30, 5))
    fit = fitted(models.VaDE(5, 3, 2, hidden=(8,)), rows)
    assert set(plots.pictures(fit, rows)) == {"history", "latent_map"}
    message = "expected images, or x with 2 columns; got 5 columns"
    for draw in (plots.reconstructions, plots.gate_map):
        with pytest.raises(DataError, match=message):
            draw(fit, rows)
    with pytest.raises(DataError, match=message):
        plots.generated(fit)


def test_history_has_a_panel_for_each_phase(plane):
    rows, _ = plane
    story = models.DMVAE(2, 2, 3, hidden=(8,))
    fit = fitted(story, rows, epochs=3, initial_epochs=2, initialize="autoencoder")
    panels = plots.history(fit).axes
    assert [axes.get_title() for axes in panels] == ["autoencoder", "assigned", "training"]
    drawn = np.concatenate([axes.lines[0].get_ydata() for axes in panels])
    assert_close(drawn, np.array([record["elbo"] for record in fit.history]))
    assert [len(axes.lines[0].get_xdata()) for axes in panels] == [2, 1, 3]


def test_the_history_shows_every_epoch_and_the_last_ones_apart(plane):
    """Of a rise from -1e9 to -10 the last steps, of half a nat, are still seen."""
    _, fit = plane
    elbos = [-1e9, -1e4, -50.0, -12.0, -11.0, -10.5, -10.2, -10.1, -10.0]
    history = [{"phase": "training", "epoch": i, "elbo": e} for i, e in enumerate(elbos)]
    (axes,) = plots.history(pyro_moe.Fit(fit.programs, fit.data, history, fit.settings)).axes
    low, high = axes.get_ylim()
    assert low < elbos[0] < elbos[-1] < high
    places = axes.transScale.transform(np.column_stack([np.zeros(9), elbos]))[:, 1]
    span = places[-1] - places[0]
    assert (places[5] - places[4]) / span > 1e-10
    assert (places[2] - places[1]) / span > 0.0
    rows = np.linspace(-1.0, 0.0, 101)
    history = [{"phase": "training", "epoch": i, "elbo": e} for i, e in enumerate(rows)]
    (axes,) = plots.history(pyro_moe.Fit(fit.programs, fit.data, history, fit.settings)).axes
    assert axes.get_ylim()[0] < -1.0


def test_a_noisy_history_has_a_running_median(plane):
    _, fit = plane
    elbos = np.linspace(-2.0, -1.0, 60) + 0.2 * np.random.default_rng(0).normal(size=60)
    history = [{"phase": "training", "epoch": i, "elbo": e} for i, e in enumerate(elbos)]
    (axes,) = plots.history(pyro_moe.Fit(fit.programs, fit.data, history, fit.settings)).axes
    assert_close(axes.lines[1].get_ydata(), running_median(elbos))
    assert np.diff(running_median(elbos)).std() < 0.5 * np.diff(elbos).std()


def test_the_rootogram_counts_posteriors_and_the_uncertainty_is_in_order():
    posterior = np.array([[1.0, 0.0], [0.96, 0.04], [0.55, 0.45], [0.99999, 0.00001]])
    first, second = plots.rootogram(posterior).axes
    heights = np.array([bar.get_height() for bar in first.patches])
    assert_close(heights**2, np.array([0] * 11 + [1] + [0] * 7 + [3.0]))
    assert sum(bar.get_height() ** 2 for bar in second.patches) == pytest.approx(2)
    (axes,) = plots.uncertainty(posterior).axes
    shown = axes.collections[1].get_offsets()
    assert_close(shown, np.array([[1, 0.0], [2, 0.00001], [3, 0.04], [4, 0.45]]))


def test_the_classification_is_shown_where_components_differ():
    generator = np.random.default_rng(0)
    x, component = generator.normal(size=(60, 5)), np.arange(60) % 2
    x[:, [1, 3, 4]] += 6.0 * component[:, None]
    figure = plots.classification(x, np.eye(2)[component], ("a", "b", "c", "d", "e"))
    names = [(axes.get_xlabel(), axes.get_ylabel()) for axes in figure.axes]
    assert names == [("b", "d"), ("b", "e"), ("d", "e")]


def test_a_history_without_epochs_says_so(plane):
    _, fit = plane
    empty = pyro_moe.Fit(fit.programs, fit.data, [], fit.settings)
    (axes,) = plots.history(empty).axes
    assert axes.get_title() == "no epoch was completed"


def test_the_latent_map_shows_codes_by_component_and_by_label(plane):
    rows, fit = plane
    by_component, by_label = plots.latent_map(fit, rows).axes
    components = evaluation.gate(fit, rows).argmax(1).numpy()
    codes = evaluation.encode(fit, rows).numpy()
    for axes in (by_component, by_label):
        assert_close(np.asarray(points(axes)), codes, check_dtype=False)
    assert_close(
        by_component.collections[0].get_facecolors(), np.array(expected_colors(components))
    )
    assert texts(by_component) == sorted(map(str, np.unique(components)))
    assert texts(by_label) == ["0", "1", "2"]
    assert (by_component.get_xlabel(), by_component.get_ylabel()) == ("$z_1$", "$z_2$")


def test_labels_take_the_colors_of_their_components():
    labels = np.array([0, 0, 0, 1, 1, 2, 2])
    components = np.array([2, 2, 0, 0, 0, 1, 1])
    assert match(labels, components) == {0: 2, 1: 0, 2: 1}
    assert match(10**12 * labels - 1, components) == {-1: 2, 10**12 - 1: 0, 2 * 10**12 - 1: 1}
    assert match(labels, None) is None


def test_longer_codes_are_embedded_and_at_most_so_many(images):
    rows, fit = images
    by_component, by_label = plots.latent_map(fit, rows, max_rows=20).axes
    assert len(points(by_component)) == len(points(by_label)) == 20
    assert by_component.get_xlabel() == "t-SNE 1"
    few = plots.latent_map(fit, Rows(rows.x[:3])).axes  # too few to embed
    assert len(few) == 1
    assert few[0].get_xlabel() == "$z_1$"


def test_codes_of_length_one_are_counted(plane):
    rows, _ = plane
    fit = fitted(models.VaDE(2, 1, 3, hidden=(8,)), rows)
    for axes in plots.latent_map(fit, rows).axes:
        tops = {}
        for patch in axes.patches:
            tops[patch.get_x()] = max(
                tops.get(patch.get_x(), 0), patch.get_y() + patch.get_height()
            )
        assert sum(tops.values()) == len(rows)


def test_axes_of_the_plane_have_the_names_of_the_columns(plane):
    rows, fit = plane
    named = replace(rows, columns=("age", "weight"))
    for draw in (plots.gate_map, plots.reconstructions):
        for given, names in ((rows, ("x0", "x1")), (named, ("age", "weight"))):
            axes = draw(fit, given).axes[0]
            assert (axes.get_xlabel(), axes.get_ylabel()) == names
    with_names = replace(fit, columns=("age", "weight"))
    axes = plots.generated(with_names).axes[0]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("age", "weight")


def test_a_latent_map_wants_a_latent_site(plane):
    rows, _ = plane
    gmm = fitted(models.GMM(2, 3), rows)
    with pytest.raises(SiteError, match="expected a site 'z' in the guide"):
        plots.latent_map(gmm, rows)


def test_points_beside_their_reconstructions(plane):
    rows, fit = plane
    original, reconstruction = plots.reconstructions(fit, rows).axes
    assert_close(np.asarray(points(original)), rows.x.numpy(), check_dtype=False)
    expected = evaluation.reconstruct(fit, rows).numpy()
    assert_close(np.asarray(points(reconstruction)), expected, check_dtype=False)
    assert len(points(plots.reconstructions(fit, rows, num_rows=7).axes[0])) == 7


def test_images_beside_their_reconstructions(images):
    rows, fit = images
    rows = Rows(rows.x[:11], image_shape=rows.image_shape)
    original, reconstruction = plots.reconstructions(fit, rows).axes
    back = evaluation.reconstruct(fit, rows)
    for index in range(11):
        place = divmod(index, 8)
        np.testing.assert_allclose(tile(original, *place), ink(rows.x[index], rows.x), atol=1e-6)
        np.testing.assert_allclose(
            tile(reconstruction, *place), ink(back[index], rows.x), atol=1e-6
        )
    assert (tile(original, 1, 3) == 1.0).all()  # no image there: paper
    assert [axes.get_title() for axes in (original, reconstruction)] == [
        "Original",
        "Reconstruction",
    ]


def test_images_in_color_keep_their_channels():
    x = torch.linspace(0, 1, 2 * 12).reshape(2, 12)
    grid = _mosaic(x, (3, 2, 2), num_columns=2)
    assert grid.shape == (4, 8, 3)
    np.testing.assert_allclose(grid[1:3, 1:3], x[0].reshape(3, 2, 2).permute(1, 2, 0))
    np.testing.assert_allclose(grid[1:3, 5:7], x[1].reshape(3, 2, 2).permute(1, 2, 0))


def test_a_row_of_generated_images_for_each_component(images):
    rows, fit = images
    (axes,) = plots.generated(fit, image_shape=(1, 8, 8), num_samples=4, seed=3).axes
    assert [label.get_text() for label in axes.get_yticklabels()] == list("0123456789")
    for component in range(10):
        samples = evaluation.sample(fit, 4, component=component, noise=False, seed=3)
        for column, sample in enumerate(samples):
            np.testing.assert_allclose(
                tile(axes, component, column), ink(sample, rows.x), atol=1e-6
            )


def test_generated_points_are_those_of_each_component(plane):
    _, fit = plane
    original, new = plots.generated(fit, num_samples=5, seed=3).axes
    expected = [evaluation.sample(fit, 5, component=k, seed=3) for k in range(3)]
    assert_close(np.asarray(points(new)), torch.cat(expected).numpy(), check_dtype=False)
    colors = expected_colors(np.arange(3).repeat(5))
    assert_close(new.collections[0].get_facecolors(), np.array(colors))
    assert len(points(original)) == 15


def test_a_story_without_components_generates_in_one_color(plane):
    rows, _ = plane
    vae = fitted(models.VAE(2, 2, hidden=(8,)), rows)
    new = plots.generated(vae, num_samples=9).axes[1]
    assert len(points(new)) == 9
    assert texts(new) == []
    assert_close(new.collections[0].get_facecolors(), np.array([to_rgba(style.GRAY)]))


def test_the_gate_map_shades_by_component_and_certainty(plane):
    rows, fit = plane
    (axes,) = plots.gate_map(fit, rows, resolution=9).axes
    (image,) = axes.images
    left, right, bottom, top = image.get_extent()
    corner = torch.tensor([[left, bottom], [right, bottom], [left, top], [right, top]])
    g = evaluation.gate(fit, corner)
    shades = image.get_array()[[0, 0, -1, -1], [0, -1, 0, -1]]
    expected = np.array(expected_colors(g.argmax(1)))
    assert_close(shades[:, :3], expected[:, :3])
    opacity = 0.6 * (g.max(1).values.numpy() - 1 / 3) / (2 / 3)
    assert_close(shades[:, 3], opacity, rtol=1e-4, atol=1e-4, check_dtype=False)
    assert_close(np.asarray(points(axes)), rows.x.numpy(), check_dtype=False)
    assert left < rows.x[:, 0].min() < rows.x[:, 0].max() < right
    assert bottom < rows.x[:, 1].min() < rows.x[:, 1].max() < top


def test_one_component_is_certain_everywhere(plane):
    rows, _ = plane
    (axes,) = plots.gate_map(fitted(models.GMM(2, 1), rows), rows, resolution=4).axes
    assert_close(axes.images[0].get_array()[..., 3], np.full((4, 4), 0.6))


def test_pictures_are_the_same_for_the_same_seed(plane):
    _, fit = plane
    before = torch.get_rng_state()
    one, two = (points(plots.generated(fit, num_samples=5, seed=1).axes[1]) for _ in range(2))
    assert (one == two).all()
    assert (torch.get_rng_state() == before).all()


def test_no_text_is_clipped(plane, images):
    for rows, fit in (plane, images):
        for figure in plots.pictures(fit, rows).values():
            figure.savefig("/dev/null", format="png")
            frame = figure.bbox
            for axes in figure.axes:
                box = axes.get_tightbbox()
                assert box.x0 >= frame.x0 - 1
                assert box.y0 >= frame.y0 - 1
                assert box.x1 <= frame.x1 + 1
                assert box.y1 <= frame.y1 + 1


def test_pyplot_is_left_alone():
    program = "import sys, pyro_moe.plots; sys.exit('matplotlib.pyplot' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0  # noqa: S603


def test_predictions_beside_targets_with_their_intervals():
    x = torch.randn(40, 3, generator=torch.Generator().manual_seed(0))
    rows = Rows(x, torch.cat([x[:, :1] + 1.0, -x[:, :1]], 1), targets=("price", "area"))
    fit = fitted(models.ME(3, 2, 2), rows, initialize="keep", epochs=0)
    figure = plots.predictions(fit, rows)
    p = evaluation.predict(fit, rows)
    assert [axes.get_title() for axes in figure.axes] == ["price", "area"]
    for m, axes in enumerate(figure.axes):
        scatters = axes.collections[1::2]  # intervals and points by turns
        shown = np.concatenate([np.array(scatter.get_offsets()) for scatter in scatters])
        expected = torch.stack([p.mean[:, m], rows.y[:, m]], 1).double().numpy()
        assert_close(shown[np.lexsort(shown.T)], expected[np.lexsort(expected.T)])
        segments = np.concatenate([lines.get_segments() for lines in axes.collections[::2]])
        ends = torch.stack([p.quantile(0.05)[:, m], p.quantile(0.95)[:, m]], 1).double()
        found = torch.as_tensor(segments[:, :, 1])
        assert_close(found.sort(0).values, ends.sort(0).values, rtol=1e-4, atol=1e-4)
    assert "predictions" in plots.pictures(fit, rows)


def test_classes_are_counted_by_what_was_predicted():
    x = torch.randn(40, 3, generator=torch.Generator().manual_seed(0))
    y = torch.arange(40) % 3
    fit = fitted(models.ME(3, 3, 2, experts="categorical"), (x, y), initialize="keep", epochs=0)
    (axes,) = plots.predictions(fit, Rows(x, y)).axes
    predicted = evaluation.predict(fit, x).mean.argmax(-1)
    counts = np.array(axes.images[0].get_array())
    assert counts.sum() == 40
    for row in range(3):
        for column in range(3):
            assert counts[row, column] == ((y == row) & (predicted == column)).sum()


def test_predictions_want_targets(plane):
    rows, fit = plane
    with pytest.raises(DataError, match="expected rows with targets; got y=None"):
        plots.predictions(fit, rows)
