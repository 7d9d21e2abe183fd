"""The gate in the plane of x."""

import numpy as np
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from pyro_moe import evaluation
from pyro_moe.fitted import Fit, strange_rows_expected
from pyro_moe.inference.errors import DataError
from pyro_moe.rows import Rows

from .points import expect_image_or_plane, label_plane, number_groups
from .style import color, margin, panels_of


@strange_rows_expected()
def gate_map(fit: Fit, rows: Rows, *, resolution: int = 200, seed: int = 0) -> Figure:
    """Plot the most probable component at each point of the plane.

    A region has the color of its most probable component. Paler colors mean a less certain gate.

    Args:
        fit: A fitted story with a site ``c``, over two columns.
        rows: Rows to show; a random subset of 2,000 if there are more.
        resolution: Number of points along each side of the grid.
        seed: Seed of the random subset.

    Raises:
        DataError: If rows are not points in the plane, or if no row is without gaps.
        SiteError: If neither guide nor model has a site ``c``.
    """
    expect_image_or_plane(fit, None)
    known = fit.in_order(rows)
    known = known.take(~known.x.isnan().any(-1))  # others are no points
    shown = known.subsample(2000, seed)
    if len(shown) == 0:
        raise DataError("expected rows without gaps; got none")
    points = shown.x.cpu().numpy()
    low, high = points.min(0), points.max(0)
    beyond = max(margin(*ends, 0.08) for ends in zip(low, high, strict=True))
    low, high = low - beyond, high + beyond
    sides = [np.linspace(low[d], high[d], resolution) for d in range(2)]
    grid = np.stack(np.meshgrid(*sides), axis=-1).reshape(-1, 2)
    g = evaluation.gate(fit, grid).cpu().numpy()
    chance = 1.0 / g.shape[1]
    certainty = (g.max(1) - chance) / (1.0 - chance) if chance < 1.0 else np.ones(len(g))
    colors = np.array([to_rgb(color(k)) for k in range(g.shape[1])])[g.argmax(1)]
    shades = np.concatenate((colors, 0.6 * certainty[:, None].clip(0, 1)), axis=1)
    figure, (axes,) = panels_of(1, width=5.2, height=5)
    axes.imshow(
        shades.reshape(resolution, resolution, 4),
        extent=(low[0], high[0], low[1], high[1]),
        origin="lower",
        interpolation="nearest",
    )
    axes.scatter(points[:, 0], points[:, 1], s=3, color="black", linewidths=0)
    number_groups(axes, points, evaluation.gate(fit, shown).cpu().numpy().argmax(1))
    axes.set_title("Most probable component (paler: less certain)")
    label_plane(axes, fit.columns or rows.columns)
    return figure
