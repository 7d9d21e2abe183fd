"""A tree of components, and the rows of each."""

from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pyro_moe import evaluation
from pyro_moe.fitted import Fit, strange_rows_expected
from pyro_moe.inference.errors import SiteError
from pyro_moe.rows import Rows

from .images import show_images
from .points import expect_image_or_plane, label_plane, number_groups, scatter
from .style import GRAY, color, panels_of

NUM_COLUMNS = 8


@strange_rows_expected()
def hierarchy(fit: Fit, rows: Rows, *, site: str = "c1", seed: int = 0) -> Figure:
    r"""Plot a tree of the components, colored by group, and rows of each component.

    The tree merges components by Ward's method, by distances of the means of their codes in units
    of the pooled covariance W of codes within components. Components of a group have one color: the
    group is the most probable value of ``site`` of their rows. The tree does not know it. Rows of
    images are shown beside their component, and rows of two columns as points.

    Args:
        fit: A fitted story with two layers of assignments, ``c`` and ``site``.
        rows: Rows of images or of two columns.
        site: The layer of groups.
        seed: Seed of the choice of images.

    Raises:
        DataError: If rows are neither images nor points in the plane.
        SiteError: If neither guide nor model has one of the two layers.
    """
    expect_image_or_plane(fit, rows.image_shape)
    rows = fit.in_order(rows)
    g, h = (evaluation.gate(fit, rows, site=name).double().cpu() for name in ("c", site))
    groups = (g.mT @ h).argmax(-1).numpy()
    found = [k for k in range(g.shape[1]) if (g.argmax(-1) == k).any()]
    shape = rows.image_shape
    height = 4.2 if shape is None else 0.4 + 0.45 * len(found)
    figure, (left, right) = panels_of(2, height=height)
    order = _tree(left, _linkage(_codes(fit, rows), g[:, found]), found, groups)
    if shape is not None:
        tiles = _members(rows, g.argmax(-1), order, seed)
        show_images(right, tiles, shape, num_columns=NUM_COLUMNS, like=rows.x)
        right.set_aspect("auto")
    else:
        components = g.argmax(-1).numpy()
        scatter(right, rows.x.cpu().numpy(), groups[components], numbers=False)
        number_groups(right, rows.x.cpu().numpy(), components)
        label_plane(right, fit.columns or rows.columns)
    left.set_title("Components")
    right.set_title("Groups" if shape is None else "Rows of each component")
    return figure


def _codes(fit: Fit, rows: Rows) -> torch.Tensor:
    """E[z|x], or x itself for a story without z."""
    try:
        codes = evaluation.encode(fit, rows)
    except SiteError:
        codes = rows.x
    return codes.double().cpu()


def _linkage(codes: torch.Tensor, g: torch.Tensor) -> np.ndarray | None:
    """The mergers of Ward's method, None for a single component.

    Args:
        codes: Shape (N, L).
        g: The gate, shape (N, K).
    """
    from scipy.cluster.hierarchy import linkage

    if g.shape[1] < 2:
        return None
    means = (g.mT @ codes) / g.sum(0).unsqueeze(-1)
    apart = codes.unsqueeze(1) - means
    within = torch.einsum("nk,nki,nkj->ij", g, apart, apart) / g.sum()
    least = 1e-6 * codes.var(0, correction=0).mean() + 1e-12
    factor = torch.linalg.cholesky(within + least * torch.eye(len(within)).to(within))
    centers = torch.linalg.solve_triangular(factor, means.mT, upper=False).mT
    return linkage(centers.numpy(), "ward")


def _tree(
    axes: Axes, merged: np.ndarray | None, components: list[int], groups: np.ndarray
) -> list[int]:
    """Draw the tree with its leaves at the right, and return them from top to bottom."""
    from scipy.cluster.hierarchy import dendrogram

    order, lines = components, []
    if merged is not None:
        drawn: Any = dendrogram(merged, no_plot=True)
        order = [components[leaf] for leaf in drawn["leaves"]]
        lines = [*zip(drawn["dcoord"], drawn["icoord"], strict=True)]
    for distances, places in lines:
        axes.plot(distances, [place / 10.0 for place in places], color=GRAY, linewidth=1.2)
    axes.set(yticks=[n + 0.5 for n in range(len(order))], yticklabels=list(map(str, order)))
    axes.set(ylim=(len(order), 0), xlabel="distance")
    axes.tick_params(axis="y", length=0, labelleft=False, labelright=True)
    for tick, component in zip(axes.yaxis.get_major_ticks(), order, strict=True):
        tick.label2.set(color=color(int(groups[component])), fontweight="bold")
    axes.spines[["left", "right", "top"]].set_visible(False)
    axes.set_xlim(left=axes.get_xlim()[1], right=0.0)
    return order


def _members(rows: Rows, components: torch.Tensor, order: list[int], seed: int) -> torch.Tensor:
    """Some images of each component, blank where it has fewer."""
    draw = np.random.default_rng(seed)
    x, blank = rows.x.cpu(), rows.x.min().cpu()
    lines = []
    for component in order:
        members = (components == component).nonzero().flatten().numpy()
        some = draw.permutation(members)[:NUM_COLUMNS]
        line = torch.full((NUM_COLUMNS, x.shape[1]), float(blank))
        line[: len(some)] = x[some]
        lines.append(line)
    return torch.cat(lines)
