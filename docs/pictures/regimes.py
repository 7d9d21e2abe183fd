"""Three regimes along one column: experts, what is predicted of them, and the gate below."""

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

import pyro_moe
from pyro_moe import Rows, evaluation, models
from pyro_moe.evaluation import Prediction
from pyro_moe.plots.style import GRAY, PALETTE

COLORS = [PALETTE[k] for k in (0, 3, 1)]  # those of the palette that words can be read in
BORDERS = (-1.0, 1.0)
SOFTNESS = 0.2  # of borders, around which rows of two regimes lie among one another
LINES = ((1.3, 4.6, 0.15), (-1.0, 0.3, 0.6), (-0.3, 4.2, 0.3))  # slope, intercept, noise


def draw() -> Figure:
    """Points, experts and prediction above the gate, all along x."""
    rows = regimes()
    story = models.DeepMoE(x_dim=1, y_dim=1, num_components=len(LINES))
    fit = pyro_moe.fit(story.model, story.guide, rows, epochs=200, progress=False)
    x = np.linspace(-3, 3, 601, dtype=np.float32)
    shown = rows.subsample(500, seed=0)
    along, at_rows = evaluation.predict(fit, x[:, None]), evaluation.predict(fit, shown)
    order = (at_rows.gate * shown.x).sum(0).div(at_rows.gate.sum(0)).argsort()  # left to right
    figure = Figure(figsize=(4.5, 4.4), layout="constrained")
    above, below = figure.subplots(2, sharex=True, height_ratios=(3, 1))
    made_by = _responsible(at_rows, shown).argmax(-1)
    for k, color in zip(order.tolist(), COLORS, strict=True):
        own = made_by == k
        above.scatter(shown.x[own], shown.y[own], s=7, color=color, alpha=0.45, linewidths=0)
        _draw_expert(above, x, along, k, color)
    _draw_prediction(above, x, along)
    _draw_gate(below, x, along.gate[:, order].numpy())
    for axes in (above, below):
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def regimes(number: int = 2000, seed: int = 0) -> Rows:
    """Rows of three regimes, each a line with noise of its own."""
    generator = np.random.default_rng(seed)
    x = generator.uniform(-3, 3, number)
    regime = np.digitize(x + SOFTNESS * generator.standard_normal(number), BORDERS)
    slope, intercept, noise = np.array(LINES)[regime].T
    y = slope * x + intercept + noise * generator.standard_normal(number)
    return Rows(*(torch.tensor(column[:, None], dtype=torch.float32) for column in (x, y)))


def _responsible(at_rows: Prediction, rows: Rows) -> torch.Tensor:
    """How probable it is that each expert made each row, shape (N, K)."""
    (experts,) = at_rows.distributions
    each = experts.log_prob(rows.y.double().unsqueeze(1))
    return (at_rows.log_weights[0] + each).softmax(-1)


def _draw_expert(axes: Axes, x: np.ndarray, along: Prediction, k: int, color: str) -> None:
    """An expert's line, dashed where others answer, and its 90 % band where it answers."""
    (experts,) = along.distributions
    line, reach = along.experts[:, k, 0].numpy(), 1.645 * experts.stddev[:, k, 0].numpy()
    answers = along.gate[:, k].numpy() > 0.1
    axes.plot(x, line, color=color, linewidth=0.9, linestyle=(0, (4, 3)), alpha=0.7)
    axes.fill_between(x, line - reach, line + reach, answers, color=color, alpha=0.18, linewidth=0)
    axes.plot(x[answers], line[answers], color=color, linewidth=2.2)


def _draw_prediction(axes: Axes, x: np.ndarray, along: Prediction) -> None:
    """The mean of the mixture, and the interval that 90 % of new rows lie in."""
    for q in (0.05, 0.95):
        axes.plot(x, along.quantile(q)[:, 0], color=GRAY, linewidth=0.8)
    axes.plot(x, along.mean[:, 0], color="black", linewidth=1.2)
    _point_at(axes, x, along.mean[:, 0].numpy(), 1.2, "mean", "black")
    _point_at(axes, x, along.quantile(0.05)[:, 0].numpy(), 0.4, "90 % interval", GRAY)
    axes.set(ylabel="y", ylim=(-2.6, 5.2))


def _point_at(
    axes: Axes, x: np.ndarray, line: np.ndarray, height: float, name: str, color: str
) -> None:
    """Name a line from the right, where it last passes a height."""
    place = x[line < height].max()
    arrow = {"arrowstyle": "-", "color": color, "linewidth": 0.6}
    axes.annotate(name, (place, height), (1.55, height), color=color, va="center", arrowprops=arrow)


def _draw_gate(axes: Axes, x: np.ndarray, gate: np.ndarray) -> None:
    axes.stackplot(x, gate.T, colors=COLORS, alpha=0.75, linewidth=0)
    for place, name in zip((-2.0, 0.0, 2.0), ("one", "two", "three"), strict=True):
        axes.text(place, 0.5, f"expert {name}", color="white", ha="center", va="center")
    axes.set(xlabel="x", ylabel="gate", xlim=(-3, 3), ylim=(0, 1), yticks=(0, 1))
