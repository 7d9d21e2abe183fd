"""Points in the plane and histograms, colored and numbered by component."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patheffects import withStroke

from pyro_moe import evaluation
from pyro_moe.fitted import Fit
from pyro_moe.inference.errors import DataError, SiteError
from pyro_moe.rows import Rows, numbered

from .names import label
from .style import GRAY, color


def gate_of(fit: Fit, rows: Rows) -> np.ndarray | None:
    """The gate of rows, shape (N, K), or None for a story without ``c``."""
    try:
        return evaluation.gate(fit, rows).cpu().numpy()
    except SiteError:
        return None


def likeliest(fit: Fit, rows: Rows) -> np.ndarray | None:
    """The most probable component of each row, or None for a story without ``c``."""
    g = gate_of(fit, rows)
    return None if g is None else g.argmax(1)


def match(labels: np.ndarray, components: np.ndarray | None) -> dict[int, int] | None:
    """The component that matches each label best, by a one-to-one assignment."""
    from scipy.optimize import linear_sum_assignment

    if components is None:
        return None
    names, places = np.unique(labels, return_inverse=True)
    size = max(len(names), 1 + components.max())
    counts = np.zeros((size, size))
    np.add.at(counts, (places, components), 1)
    matched = linear_sum_assignment(counts, maximize=True)[1]
    return dict(zip(names.tolist(), matched.tolist(), strict=False))


def scatter(
    axes: Axes,
    points: np.ndarray,
    groups: np.ndarray | None,
    colors: dict[int, int] | None = None,
    *,
    numbers: bool = True,
) -> None:
    """Plot points in the plane, each group in its color and, if ``numbers``, with its number."""
    size = float(np.clip(6000 / len(points), 3, 16))
    if groups is None:
        axes.scatter(points[:, 0], points[:, 1], s=size, color=GRAY, linewidths=0)
        return
    chosen = groups if colors is None else [colors[group] for group in groups.tolist()]
    axes.scatter(
        points[:, 0], points[:, 1], s=size, c=list(map(color, chosen)), linewidths=0, alpha=0.8
    )
    if numbers:
        number_groups(axes, points, groups)


def number_groups(axes: Axes, points: np.ndarray, groups: np.ndarray) -> None:
    """Write each group's number at the point nearest to its median."""
    for group in np.unique(groups):
        members = points[groups == group]
        distances = np.linalg.norm(members - np.median(members, axis=0), axis=1)
        axes.annotate(
            str(group),
            members[distances.argmin()],
            ha="center",
            va="center",
            fontsize=12,
            fontweight="bold",
            path_effects=[withStroke(linewidth=3, foreground="white")],
        )


def histogram(
    axes: Axes, values: np.ndarray, groups: np.ndarray | None, colors: dict[int, int] | None
) -> None:
    """Plot a stacked histogram of the values of each group."""
    groups = np.zeros(len(values), dtype=int) if groups is None else groups
    present = np.unique(groups)
    axes.hist(
        [values[groups == group] for group in present],
        bins=60,
        stacked=True,
        color=[color(group if colors is None else colors[int(group)]) for group in present],
        label=[str(group) for group in present],
    )
    if len(present) > 1:
        axes.legend()


def label_plane(axes: Axes, names: tuple[str, ...] | None) -> None:
    """Name the two axes of the plane of x and give them the same scale."""
    first, second = names or numbered("x", 2)
    axes.set(xlabel=label(first), ylabel=label(second), aspect="equal")
    axes.locator_params(nbins=5)
    axes.label_outer()


def expect_image_or_plane(fit: Fit, image_shape: tuple[int, int, int] | None) -> None:
    """Check that rows of x are images or points in the plane.

    Raises:
        DataError: If they are neither.
    """
    if image_shape is None and fit.x_dim != 2:
        raise DataError(f"expected images, or x with 2 columns; got {fit.x_dim} columns")
