"""Codes of rows, reconstructions, and what components generate."""

import math
from functools import partial

import numpy as np
import torch
from matplotlib.figure import Figure
from sklearn.manifold import TSNE

from pyro_moe import evaluation
from pyro_moe.fitted import Fit
from pyro_moe.rows import Rows

from .images import show_images
from .points import (
    expect_image_or_plane,
    gate_of,
    histogram,
    label_plane,
    likeliest,
    match,
    scatter,
)
from .style import panels_of


def latent_map(fit: Fit, rows: Rows, *, max_rows: int = 2000, seed: int = 0) -> Figure:
    """The codes of rows, colored by component, and in a second panel by label if that is known.

    Two-dimensional codes as they are; longer ones by t-SNE, which shows neighborhoods but no
    distances; a histogram of one-dimensional ones. A label has the color of the component
    that it goes best with.

    Args:
        fit: A fitted story with a site ``z``.
        rows: Rows to show.
        max_rows: The most to show; t-SNE takes seconds for each thousand.
        seed: Decides which rows are shown, and the start of t-SNE.

    Raises:
        SiteError: If the guide has no site ``z``.
    """
    rows = rows.subsample(max_rows, seed)
    codes = evaluation.encode(fit, rows).cpu().numpy()
    components = likeliest(fit, rows)
    views: list[tuple[str, np.ndarray | None, np.ndarray | None]] = []
    if components is not None:
        views.append(("Components", components, None))
    if rows.labels is not None:
        labels = rows.labels.cpu().numpy()
        views.append(("Labels", labels, match(labels, components)))
    views = views or [("Codes", None, None)]
    points, names = _plane(codes, seed)
    figure, panels = panels_of(len(views), sharex=True, sharey=True)
    for axes, (title, group, colors) in zip(panels, views, strict=True):
        if points.shape[1] == 1:
            histogram(axes, points[:, 0], group, colors)
        else:
            scatter(axes, points, group, colors)
        axes.set(title=title, xlabel=names[0])
        if names[0] == "t-SNE 1":  # a scale would claim that distances mean something
            axes.set(xticks=[], yticks=[])
    panels[0].set_ylabel(names[1])
    return figure


def _plane(codes: np.ndarray, seed: int) -> tuple[np.ndarray, tuple[str, str]]:
    """Codes in at most two dimensions, and the names of the axes."""
    if codes.shape[1] == 1:
        return codes, ("z", "rows")
    if codes.shape[1] == 2 or len(codes) < 4:  # t-SNE wants neighbors
        return codes[:, :2], ("$z_1$", "$z_2$")
    embedding = TSNE(perplexity=min(30.0, (len(codes) - 1) / 3), init="pca", random_state=seed)
    return embedding.fit_transform(codes), ("t-SNE 1", "t-SNE 2")


def reconstructions(fit: Fit, rows: Rows, *, num_rows: int | None = None, seed: int = 0) -> Figure:
    """Rows beside what the story makes of their codes: images, or points in the plane.

    Args:
        fit: A fitted story with sites ``z`` and ``x``.
        rows: Rows of images or of two columns.
        num_rows: The most to show; 40 images or 2,000 points if None.
        seed: Decides which rows are shown.

    Raises:
        DataError: If rows are neither images nor points in the plane.
        SiteError: If the guide has no site ``z``, or the model no site ``x``.
    """
    expect_image_or_plane(fit, rows.image_shape)
    rows = rows.subsample(num_rows or (2000 if rows.image_shape is None else 40), seed)
    both = {"Original": rows.x, "Reconstruction": evaluation.reconstruct(fit, rows)}
    if rows.image_shape is not None:
        figure, panels = panels_of(2, height=0.5 + 0.56 * math.ceil(len(rows) / 8))
        for axes, x in zip(panels, both.values(), strict=True):
            show_images(axes, x, rows.image_shape, num_columns=8, like=rows.x)
    else:
        figure, panels = panels_of(2, sharex=True, sharey=True)
        components = likeliest(fit, rows)
        for axes, x in zip(panels, both.values(), strict=True):
            scatter(axes, x.cpu().numpy(), components)
            label_plane(axes)
    for axes, title in zip(panels, both, strict=True):
        axes.set_title(title)
    return figure


def generated(
    fit: Fit,
    *,
    image_shape: tuple[int, int, int] | None = None,
    num_samples: int | None = None,
    seed: int = 0,
) -> Figure:
    """What each component generates: a row of images, or points beside those that were fitted.

    Images are means of x given z, points are draws of x itself.

    Args:
        fit: A fitted story with a site ``x``; one without ``c`` shows samples of the whole.
        image_shape: ``(channels, height, width)`` if a row of x is a flattened image.
        num_samples: Samples of each component; 10 images or 400 points if None.
        seed: Seed of the draws.

    Raises:
        DataError: If rows are neither images nor points in the plane.
        SiteError: If the model has no site ``x``.
    """
    expect_image_or_plane(fit, image_shape)
    x, *others = fit.data
    fitted = Rows(x, others[0] if others else None)
    first = gate_of(fit, fitted.subsample(1, seed))
    choices: list[int | None] = [None] if first is None else list(range(first.shape[1]))
    num_samples = num_samples or (400 if image_shape is None else 10)
    draw = partial(evaluation.sample, fit, num_samples, noise=image_shape is None, seed=seed)
    samples = torch.cat([draw(component=choice) for choice in choices])
    if image_shape is not None:
        return _generated_images(samples, image_shape, len(choices), like=x)
    shown = fitted.subsample(len(samples), seed)
    figure, panels = panels_of(2, sharex=True, sharey=True)
    drawn_from = np.arange(len(choices)).repeat(num_samples)
    scatter(panels[0], shown.x.cpu().numpy(), likeliest(fit, shown))
    scatter(panels[1], samples.cpu().numpy(), None if first is None else drawn_from)
    for axes, title in zip(panels, ("Fitted", "Generated"), strict=True):
        axes.set_title(title)
        label_plane(axes)
    return figure


def _generated_images(
    samples: torch.Tensor, image_shape: tuple[int, int, int], num_rows: int, like: torch.Tensor
) -> Figure:
    num_columns = len(samples) // num_rows
    size = (0.9 + 0.5 * num_columns, 0.5 + 0.5 * num_rows)
    figure = Figure(figsize=size, layout="compressed")
    axes = figure.add_subplot()
    show_images(axes, samples, image_shape, num_columns, like)
    axes.set_title("Generated")
    if num_rows > 1:
        pitch = image_shape[1] + 2
        middles = [pitch * (row + 0.5) - 0.5 for row in range(num_rows)]
        axes.set_yticks(middles, labels=[str(row) for row in range(num_rows)], fontsize=11)
        axes.set_ylabel("component")
    return figure
