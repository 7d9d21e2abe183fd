"""Plots of the training history."""

from itertools import groupby

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pyro_moe.fitted import Fit

from .style import PALETTE, margin, panels_of

LEAST = 1e-3  # of the range of values, which are told apart
WINDOW = 9


def history(fit: Fit) -> Figure:
    r"""Plot the ELBO by epoch, with one panel for each phase of training.

    Phases have different objectives. Each panel has all epochs. The vertical axis is linear near
    the last values, within the size of their noise, and logarithmic further below: the first
    epochs are often far below the others. Where values are noisy, their running median is drawn.

    Args:
        fit: A fit.
    """
    phases = [(name, list(group)) for name, group in groupby(fit.history, lambda r: r["phase"])]
    figure, panels = panels_of(max(1, len(phases)), width=5.4 if len(phases) < 2 else 3.2, height=3)
    panels[0].set_ylabel("ELBO (nats per row)")
    if not phases:
        panels[0].set_title("no epoch was completed")
    for axes, (name, records) in zip(panels, phases, strict=False):
        epochs, elbos = [r["epoch"] for r in records], [r["elbo"] for r in records]
        values = np.asarray(elbos, dtype=float)
        noisy = len(values) > 2 * WINDOW and (np.diff(values[len(values) // 2 :]) < 0).mean() > 0.1
        axes.plot(
            epochs,
            elbos,
            color=PALETTE[1],
            marker="." if len(epochs) < 50 else None,
            alpha=0.25 if noisy else 1.0,
        )
        if noisy:
            axes.plot(epochs, running_median(values), color=PALETTE[1])
        _scale(axes, values)
        axes.locator_params(axis="x", integer=True)
        axes.set(title=name, xlabel="epoch")
        axes.grid(alpha=0.3)
    return figure


def running_median(values: np.ndarray, window: int = WINDOW) -> np.ndarray:
    """The median of each value and its neighbors; there are fewer of them at the ends.

    Example:
        >>> running_median(np.array([0.0, 9.0, 2.0, 3.0]), 3).tolist()
        [4.5, 2.0, 3.0, 2.5]
    """
    half = window // 2
    near = [values[max(0, i - half) : i + half + 1] for i in range(len(values))]
    return np.array([np.median(each) for each in near])


def _scale(axes: Axes, values: np.ndarray) -> None:
    """An axis that is linear within the noise of the last values and logarithmic below."""
    values = values[np.isfinite(values)]
    if not len(values):
        axes.set_ylim(0.0, 1.0)
        return
    best, low = float(np.quantile(values[len(values) // 2 :], 0.9)), float(values.min())
    noise = np.abs(np.diff(values[len(values) // 2 :]))
    width = max(4 * float(np.median(noise)) if len(noise) else 0.0, LEAST * (values.max() - low))
    if width <= 1e-12 * max(abs(best), 1e-300) or best - low < 4 * width:
        beyond = margin(low, float(values.max()), 0.08)
        axes.set_ylim(low - beyond, float(values.max()) + beyond)
        return

    def forward(elbo: np.ndarray) -> np.ndarray:
        return np.arcsinh((np.asarray(elbo) - best) / width)

    def backward(place: np.ndarray) -> np.ndarray:
        return best + width * np.sinh(place)

    axes.set_yscale("function", functions=(forward, backward))
    ends = forward(np.array([low, values.max()]))
    beyond = 0.06 * (ends[1] - ends[0])
    axes.set_ylim(*backward(np.array([ends[0] - beyond, ends[1] + beyond])))
    ticks = backward(np.linspace(ends[0], ends[1], 5))
    shown = [_short(tick, width) for tick in ticks]
    kept = [i for i, text in enumerate(shown) if text not in shown[:i]]
    axes.set_yticks([float(shown[i]) for i in kept], labels=[shown[i] for i in kept])
    axes.minorticks_off()


def _short(value: float, width: float) -> str:
    """A value to the digits that can be seen, given the width of the linear part."""
    return f"{value:.{int(np.clip(1 - np.floor(np.log10(width)), 0, 8))}f}"
