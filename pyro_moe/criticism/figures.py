"""Plots of criticism: data and replicates, and calibration."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from scipy.stats import binom

from pyro_moe import evaluation
from pyro_moe.evaluation.marginals import has_classes
from pyro_moe.fitted import Fit, strange_rows_expected
from pyro_moe.inference.errors import DataError
from pyro_moe.plots.images import show_images
from pyro_moe.plots.names import CLASS, label, tilted
from pyro_moe.plots.style import GRAY, PALETTE, color, margin, panels_of
from pyro_moe.rows import Rows, numbered

from .predictive_check import Check

DATA = "black"
MODEL = PALETTE[4]
MOST_BINS = 40
BAND = "95 % band if the model is correct"


def calibration_curve(check: Check) -> Figure:
    """Plot the coverage of central prediction intervals against their nominal level.

    The band is a pointwise 95 % band if the model is correct.

    Args:
        check: The result of `check` for a story with a numeric target.

    Raises:
        DataError: If the target is a class, or there is none.
    """
    table = check.calibration
    if check.pit is None or table is None:
        raise DataError("expected a check of a target whose values have an order; got none")
    level, coverage = table["level"].to_numpy(), table["coverage"].to_numpy()
    figure, (axes,) = panels_of(1)
    number = len(check.pit)
    low, high = (binom.ppf(q, number, level) / number for q in (0.025, 0.975))
    axes.fill_between(level, low, high, color=MODEL, alpha=0.5, label=BAND)
    axes.plot([0, 1], [0, 1], color=GRAY, linewidth=0.8)
    axes.plot(level, coverage, color=DATA, marker=".", label="data")
    axes.set(
        title="Calibration",
        xlabel="nominal level of the central interval",
        ylabel="coverage (share of targets inside)",
        xlim=(0, 1),
        ylim=(0, 1),
    )
    axes.legend(fontsize="small")
    return figure


def pit_histogram(
    check: Check, *, num_bins: int = 20, names: Sequence[str] | None = None
) -> Figure:
    """Plot a histogram of the probability integral transform (PIT) of the targets.

    It is uniform if the model is correct. A peak in the middle means that predictive
    distributions are too wide. Peaks at the ends mean that they are too narrow, or that there are
    outliers. A slope means bias. The band is a pointwise 95 % band.

    Args:
        check: The result of `check` for a story with a numeric target.
        num_bins: Number of bins.
        names: Names of the targets.

    Raises:
        DataError: If the target is a class, or there is none.
    """
    if check.pit is None:
        raise DataError("expected a check of a target whose values have an order; got none")
    pit = check.pit.cpu().numpy()
    figure, (axes,) = panels_of(1)
    names = names or numbered("y", pit.shape[1])
    expected = len(pit) / num_bins
    low, high = (binom.ppf(q, len(pit), 1 / num_bins) / expected for q in (0.025, 0.975))
    axes.axhspan(low, high, color=MODEL, alpha=0.5, label=BAND)
    for m, column in enumerate(pit.T):
        counts, edges = np.histogram(column, bins=num_bins, range=(0, 1))
        of = "data" if pit.shape[1] == 1 else f"data, {label(names[m])}"
        axes.stairs(counts / expected, edges, color=color(m) if m else DATA, label=of)
    axes.set(
        title="Probability integral transform",
        xlabel="F(y | x)",
        ylabel="rows, relative to the expected number",
        xlim=(0, 1),
        ylim=(0, None),
    )
    axes.legend(fontsize="small")
    return figure


@strange_rows_expected()
def replicates(
    fit: Fit,
    rows: Rows,
    *,
    num_replicates: int = 30,
    max_columns: int = 6,
    classes: Sequence[str] | None = None,
    seed: int = 0,
) -> Figure:
    """Plot data and replicated data sets: histograms, shares of classes, or images.

    Targets are replicated at the observed x. If the story has no target, the columns of x are
    shown. Images are shown as a grid, with a grid of new images.

    Args:
        fit: A fitted story with a site ``y`` or ``x``.
        rows: Rows, preferably held out.
        num_replicates: Number of replicated data sets.
        max_columns: Maximum number of columns to show.
        classes: Names of the classes.
        seed: Seed of the replicates.
    """
    rows = fit.repeated(rows)
    if rows.y is not None and fit.has_target:
        return _replicated_targets(fit, rows, num_replicates, max_columns, classes, seed)
    if rows.image_shape is not None:
        return _replicated_images(fit, rows, seed)
    number = min(max_columns, fit.x_dim)
    made = [
        evaluation.sample(fit, len(rows), seed=seed + i)[:, :number].cpu().numpy()
        for i in range(num_replicates)
    ]
    names = rows.columns or numbered("x", fit.x_dim)
    return _densities(rows.x[:, :number].cpu().numpy(), np.stack(made), names)


def _replicated_targets(
    fit: Fit,
    rows: Rows,
    num_replicates: int,
    max_columns: int,
    classes: Sequence[str] | None,
    seed: int,
) -> Figure:
    prediction = evaluation.predict(fit, rows, seed=seed)
    made = prediction.sample(num_replicates, seed=seed).cpu().numpy()
    target = prediction.targets(np.nan_to_num(np.asarray(rows.y))).cpu().numpy()
    known = ~np.isnan(np.asarray(rows.y, dtype=float).reshape(len(rows), -1)).any(-1)
    made, target = made[:, known], target[known]
    if has_classes(prediction.distributions[0]):
        named = classes or [str(k) for k in range(prediction.experts.shape[-1])]
        return _shares(target, made, named)
    made = made.reshape(*made.shape[:2], -1)[..., :max_columns]
    target = target.reshape(len(target), -1)
    names = rows.targets or numbered("y", target.shape[1])
    return _densities(target[:, :max_columns], made, names)


def _densities(data: np.ndarray, made: np.ndarray, names: tuple[str, ...]) -> Figure:
    """Histograms of columns of data (N, M) and replicates (S, N, M)."""
    number = data.shape[1]
    figure, panels = panels_of(min(number, 3), rows=-(-number // 3), width=3.6, height=3.0)
    for axes in panels[number:]:
        axes.set_visible(False)
    for m, (axes, name) in enumerate(zip(panels, names[:number], strict=False)):
        edges = _bins(data[:, m])
        for s, replicate in enumerate(made):
            counts, _ = np.histogram(replicate[:, m].clip(edges[0], edges[-1]), edges)
            first = "replicates" if s == 0 else None
            axes.stairs(counts, edges, color=MODEL, alpha=0.4, linewidth=0.8, label=first)
        counts, _ = np.histogram(data[:, m], edges)
        axes.stairs(counts, edges, color=DATA, linewidth=1.5, label="data")
        axes.set(title=label(name), ylabel="rows" if m % 3 == 0 else "")
    panels[0].legend(fontsize="small")
    return figure


def _bins(values: np.ndarray) -> np.ndarray:
    """Edges of bins: one for each whole number if there are few, or about two times √N."""
    low, high = values.min(), values.max()
    different = np.unique(values)
    whole = (different == different.round()).all()
    if whole and len(different) < MOST_BINS and high - low < 10 * MOST_BINS:
        return np.arange(low - 1.5, high + 2)
    beyond = margin(low, high, 0.15)
    number = int(np.clip(2 * len(values) ** 0.5, 10, MOST_BINS))
    return np.linspace(low - beyond, high + beyond, number + 1)


def _shares(data: np.ndarray, made: np.ndarray, names: Sequence[str]) -> Figure:
    figure, (axes,) = panels_of(1)
    classes = len(names)
    shares = np.stack([np.bincount(r.astype(int), minlength=classes) for r in made]) / len(data)
    low, high = np.quantile(shares, (0.025, 0.975), axis=0)
    k = np.arange(classes)
    axes.vlines(k, low, high, color=MODEL, linewidth=8, label="95 % of replicates")
    observed = np.bincount(data.astype(int), minlength=classes) / len(data)
    axes.scatter(k, observed, color=DATA, zorder=3, label="data")
    axes.set(title="Shares of classes", xlabel="class", ylabel="share of rows", ylim=(0, None))
    shown = [label(name, CLASS) for name in names]
    axes.set_xticks(k, labels=shown, **tilted(shown))
    axes.legend(fontsize="small")
    return figure


def _replicated_images(fit: Fit, rows: Rows, seed: int) -> Figure:
    shape = rows.image_shape
    if shape is None:
        raise DataError("expected rows of images; got image_shape=None")
    shown = rows.subsample(40, seed)
    made = evaluation.sample(fit, len(shown), seed=seed)
    figure, panels = panels_of(2, height=0.5 + 0.56 * -(-len(shown) // 8))
    for axes, x, title in zip(panels, (shown.x, made), ("Data", "Replicates"), strict=True):
        show_images(axes, x, shape, num_columns=8, like=rows.x)
        axes.set_title(title)
    return figure
