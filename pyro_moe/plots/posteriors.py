"""Plots of the posterior probabilities of components: how well they are told apart."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from .names import label
from .style import GRAY, color, panels_of

LEAST = 1e-4  # of a probability that the rootogram counts, as flexmix has it
BINS = 20
MOST_COMPONENTS = 12
MOST_IN_A_ROW = 8  # of a legend


def rootogram(posterior: np.ndarray) -> Figure:
    r"""Plot a rootogram of the posterior probabilities of each component, as flexmix does.

    The height of a bar is the square root of the number of rows. Probabilities below 0.0001 are
    left out, as those of rows of other components. Bars at one alone mean that the component is
    well separated from the others, and bars in the middle that it overlaps with them.

    Args:
        posterior: The probability of each component given x and y of each row, shape (N, K).

    References:
        Leisch (2004), *Exploring the structure of mixture model components*, COMPSTAT.
    """
    number = min(posterior.shape[1], MOST_COMPONENTS)
    across = min(number, 3)
    width, deep = (2.4 if across < 3 else 1.7), -(-number // across)
    figure, panels = panels_of(
        across, rows=deep, width=width, height=2.6 if deep == 1 else 2.0, sharex=True, sharey=True
    )
    edges = np.linspace(0.0, 1.0, BINS + 1)
    for k, axes in enumerate(panels):
        if k >= number:
            axes.set_visible(False)
            continue
        counts, _ = np.histogram(posterior[posterior[:, k] > LEAST, k], edges)
        axes.bar(edges[:-1], np.sqrt(counts), width=1 / BINS, align="edge", color=color(k))
        axes.set_title(f"component {k}", fontsize="medium")
        axes.set(xlim=(0, 1), xticks=[0, 0.5, 1])
        axes.yaxis.set_major_formatter(FuncFormatter(lambda root, _: f"{root**2:.3g}"))
    figure.supxlabel("posterior probability", fontsize="medium")
    figure.supylabel("rows (square-root scale)", fontsize="medium")
    return figure


def uncertainty(posterior: np.ndarray) -> Figure:
    r"""Plot the uncertainty of the classification of each row, in ascending order, as mclust does.

    .. math:: u_n = 1 - \max_k p(c_n = k \mid x_n, y_n)

    Args:
        posterior: The probability of each component given x and y of each row, shape (N, K).
    """
    certain, component = posterior.max(1), posterior.argmax(1)
    order = np.argsort(1.0 - certain, kind="stable")
    places = np.arange(1, len(order) + 1)
    figure, (axes,) = panels_of(1, width=4.8, height=3.2)
    axes.vlines(places, 0, 1.0 - certain[order], color=GRAY, linewidth=0.6, alpha=0.6)
    for k in range(posterior.shape[1]):
        of_k = component[order] == k
        if of_k.any():
            values = 1.0 - certain[order][of_k]
            axes.scatter(places[of_k], values, s=9, color=color(k), label=str(k), zorder=3)
    most = 1.0 - 1.0 / posterior.shape[1]
    axes.axhline(most, color=GRAY, linewidth=0.8, linestyle=":")
    axes.set(
        xlabel="rows, in order of uncertainty",
        ylabel="uncertainty (dotted: the most)",
        ylim=(-0.02 * most, 1.06 * most + 1e-9),
    )
    beside(axes, "component")
    return figure


def classification(x: np.ndarray, posterior: np.ndarray, names: tuple[str, ...]) -> Figure:
    """Plot rows in the planes of three columns by component, larger where it is less certain.

    They are the columns of which the components differ most: the largest shares of variance
    between components.

    Args:
        x: Rows, shape (N, D), D ≥ 2.
        posterior: The probability of each component given each row, shape (N, K).
        names: Names of the columns.
    """
    component, certain = posterior.argmax(1), posterior.max(1)
    chosen = np.sort(np.argsort(-separation(x, posterior), kind="stable")[:3])
    pairs = [(a, b) for i, a in enumerate(chosen) for b in chosen[i + 1 :]]
    figure, panels = panels_of(len(pairs), width=3.2, height=3.0)
    shown = np.flatnonzero(np.arange(len(x)) % max(1, -(-len(x) // 2000)) == 0)
    sizes = 8 + 60 * (1.0 - certain[shown])
    for axes, (a, b) in zip(panels, pairs, strict=True):
        for k in np.unique(component):
            of_k = component[shown] == k
            axes.scatter(
                x[shown][of_k, a],
                x[shown][of_k, b],
                s=sizes[of_k],
                color=color(k),
                alpha=0.7,
                linewidths=0,
                label=str(k),
            )
        axes.set(xlabel=label(names[a]), ylabel=label(names[b]))
    legend(figure, panels, "component")
    return figure


def separation(x: np.ndarray, posterior: np.ndarray) -> np.ndarray:
    """The share of the variance of each column that is between components, shape (D,)."""
    sizes = posterior.sum(0)
    means = posterior.T @ x / np.maximum(sizes, 1e-300)[:, None]
    between = (sizes[:, None] / len(x) * np.square(means - x.mean(0))).sum(0)
    variance = x.var(0)
    return np.divide(between, variance, out=np.zeros_like(variance), where=variance > 0)


def legend(figure: Figure, panels: Sequence[Axes] | np.ndarray, title: str) -> None:
    """One legend of all panels: beside a single one, or above several.

    It is at the left, where a narrow window shows it first.
    """
    if len(panels) == 1:
        beside(panels[0], title)
        return
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(
        handles,
        labels,
        title=title,
        loc="outside upper left",
        ncols=MOST_IN_A_ROW,
        alignment="left",
        frameon=False,
        handletextpad=0.2,
    )


def beside(axes: Axes, title: str) -> None:
    """A legend beside the panel, where it hides nothing."""
    axes.legend(
        title=title,
        loc="upper left",
        bbox_to_anchor=(1.0, 1.02),
        frameon=False,
        fontsize="small",
        title_fontsize="small",
        handletextpad=0.2,
    )
