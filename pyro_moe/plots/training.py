"""Plots of the training history."""

from itertools import groupby

import numpy as np
from matplotlib.figure import Figure

from pyro_moe.fitted import Fit

from .style import PALETTE, margin, panels_of


def history(fit: Fit) -> Figure:
    """Plot the ELBO by epoch, with one panel for each phase of training.

    Phases have different objectives. The vertical axis omits the lowest fifth of the values, since
    the first epochs are often far below the others.

    Args:
        fit: A fit.
    """
    phases = [(name, list(group)) for name, group in groupby(fit.history, lambda r: r["phase"])]
    figure, panels = panels_of(max(1, len(phases)), width=7 if len(phases) < 2 else 3.2)
    panels[0].set_ylabel("ELBO (nats per row)")
    if not phases:
        panels[0].set_title("no epoch was completed")
    for axes, (name, records) in zip(panels, phases, strict=False):
        epochs, elbos = [r["epoch"] for r in records], [r["elbo"] for r in records]
        axes.plot(epochs, elbos, color=PALETTE[1], marker="." if len(epochs) < 50 else None)
        axes.set_ylim(*_robust_limits(np.asarray(elbos)))
        axes.locator_params(axis="x", integer=True)
        axes.set(title=name, xlabel="epoch")
        axes.grid(alpha=0.3)
    return figure


def _robust_limits(values: np.ndarray) -> tuple[float, float]:
    values = values[np.isfinite(values)]
    if not len(values):
        return (0.0, 1.0)
    low, high = np.quantile(values, 0.2, method="higher"), values.max()
    beyond = margin(low, high, 0.08)
    return (low - beyond, high + beyond)
