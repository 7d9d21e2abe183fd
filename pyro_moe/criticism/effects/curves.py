"""What each expert says: its mean along variables, beside its rows."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pyro_moe import evaluation
from pyro_moe.evaluation.marginals import discrete_columns, has_classes, is_binary
from pyro_moe.fitted import Fit, strange_rows_expected
from pyro_moe.plots.names import CLASS, label, tilted
from pyro_moe.plots.posteriors import legend
from pyro_moe.plots.style import color, panels_of
from pyro_moe.rows import Rows, numbered
from pyro_moe.text import in_one_line

from .along import Axis, along, axes_of, held
from .table import MOST_OUTPUTS, marked, moments

POINTS = 40
MOST_ROWS = 400
WIDE = 1.645  # standard deviations on each side of a normal 90 % interval


@dataclass(frozen=True)
class Effects:
    """The means of experts along variables: columns of x, and factors.

    Attributes:
        fit: The fit.
        rows: The rows that are shown.
        component: The most probable component of each row, shape (N,).
        chosen: The variables that are shown, those along which the experts' means vary most, by
            the number of their first column of x.
        left_out: Names of the variables of experts that are not shown.
        outputs: The targets or classes that are shown, and their names.
        kind: ``"classes"``, ``"share"``, ``"counts"`` or ``"number"``.
    """

    fit: Fit
    rows: Rows
    component: np.ndarray
    chosen: list[int]
    left_out: tuple[str, ...]
    outputs: dict[int, str]
    kind: str
    seed: int = 0

    def figure(self) -> Figure:
        """A panel for each column, and for each of several targets or classes."""
        number, several = len(self.chosen), len(self.outputs) > 1 and len(self.chosen) > 1
        across = number if several else min(max(number, len(self.outputs)), 3)
        deep = len(self.outputs) if several else -(-max(number, len(self.outputs)) // across)
        figure, panels = panels_of(across, rows=deep, width=3.3, height=2.7 if several else 2.9)
        for axes in panels[number * len(self.outputs) :]:
            axes.set_visible(False)
        present = np.unique(self.component).tolist()
        for d, column in enumerate(self.chosen):
            for k in present:
                lines, points = self.line(column, k), self.points(column, k)
                for place, output in enumerate(self.outputs):
                    axes = panels[place * across + d if several else place + d]
                    shares = self.kind in ("classes", "share")
                    side = self._side(column, present.index(k), len(present))
                    _draw(axes, k, lines, points, output, shares=shares, side=side)
            for place, name in enumerate(self.outputs.values()):
                axes = panels[place * across + d if several else place + d]
                axes.set_xlabel(label(self.name(column)))
                self._mark_levels(axes, column)
                axes.set_ylabel(self._of(name) if d % across == 0 else "")
        legend(figure, panels, "component")
        return figure

    @cached_property
    def axes(self) -> dict[int, Axis]:
        """The variables of experts, by the number of their first column of x."""
        return axes_of(self.fit)

    @property
    def held(self) -> str:
        """At which values the variables are held that are not varied, by component."""
        return held(self.fit, self.rows.x, self.component)

    def name(self, column: int) -> str:
        """The name of a variable."""
        axis, names = self.axes[column], self.rows.columns
        return axis.name if axis.levels or names is None else names[column]

    def _side(self, column: int, place: int, number: int) -> float | None:
        """How far a component is beside a level of a factor, so that it hides no other."""
        if not self.axes[column].levels:
            return None
        return min(0.16, 0.7 / number) * (place - (number - 1) / 2)

    def _mark_levels(self, axes: Axes, column: int) -> None:
        levels = [label(level, CLASS) for level in self.axes[column].levels]
        if levels:
            axes.set_xlim(-0.5, len(levels) - 0.5)
            axes.set_xticks(range(len(levels)), labels=levels, **tilted(levels))

    def _of(self, name: str) -> str:
        if self.kind in ("classes", "share"):
            return f"P({label(name)})"
        return label(name)

    @property
    def adjusted(self) -> bool:
        """Whether points are partial residuals."""
        return self.kind in ("number", "counts") and len(self.axes) > 1

    def line(self, column: int, k: int) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        """Values of a variable, the mean of expert k there (P, M), and its standard deviation."""
        own, axis = self.rows.x[torch.from_numpy(self.component == k)].double(), self.axes[column]
        values = axis.values(own)
        at = torch.linspace(float(values.min()), float(values.max()), POINTS).double()
        at = values.unique() if axis.levels else at
        mean, deviation = moments(self.fit, along(self.fit, own, axis, at), k, self.seed)
        return at.numpy(), mean, None if self.kind in ("classes", "share") else deviation

    def points(self, column: int, k: int) -> tuple[np.ndarray, np.ndarray]:
        r"""Values of a variable in the rows of expert k, and their targets at the line (N_k, M).

        Targets are moved with the other variables from their values to typical ones: these are
        partial residuals, :math:`y_n - f_k(x_n) + f_k(\tilde x_n)`; for counts ratios.
        """
        own = torch.from_numpy(self.component == k)
        x, y = self.rows.x[own].double(), torch.as_tensor(self.rows.y)[own].double()
        axis = self.axes[column]
        at = axis.values(x)
        target = y.reshape(len(y), -1).numpy()
        if self.kind == "classes":
            size = max(self.outputs) + 1
            return at.numpy(), (target == np.arange(size)).astype(float)
        if not self.adjusted:
            return at.numpy(), target
        moved, _ = moments(self.fit, along(self.fit, x, axis, at), k, self.seed)
        mean, _ = moments(self.fit, x, k, self.seed)
        if self.kind == "counts":
            return at.numpy(), target * moved / np.maximum(mean, 1e-300)
        return at.numpy(), target - mean + moved


@strange_rows_expected()
def effects(
    fit: Fit,
    rows: Rows,
    *,
    max_columns: int = 6,
    classes: Sequence[str] | None = None,
    posterior: torch.Tensor | None = None,
    seed: int = 0,
) -> Effects:
    """The means of experts along the variables of which they depend most.

    Args:
        fit: A fitted story with a site ``y``.
        rows: Rows with targets; at most 400 of them are used.
        max_columns: Maximum number of variables; four if there are several targets or classes.
        classes: Names of the classes.
        posterior: The probability of each component of each row, shape (N, K), such as that by
            group; that of each row by itself if None.
        seed: Seed of the draws of `evaluation.predict`.
    """
    rows = fit.repeated(marked(fit, rows, posterior, seed)).subsample(MOST_ROWS, seed)
    prediction = evaluation.predict(fit, rows.x, seed=seed)
    component = torch.as_tensor(rows.labels).numpy()
    p, width = prediction.distributions[0], prediction.experts.shape[-1]
    outputs, kind = _outputs(p, width, rows, classes)
    most = max_columns if len(outputs) == 1 else min(max_columns, 4)
    axes = axes_of(fit)
    ranges = {d: _range(fit, rows.x, component, axis, seed) for d, axis in axes.items()}
    least = 1e-9 * max(ranges.values())
    columns = sorted(sorted(axes, key=lambda d: -ranges[d])[:most])
    columns = [d for d in columns if ranges[d] > least] or columns[:1]
    shown = Effects(fit, rows, component, columns, (), outputs, kind, seed)
    names = [axis.name for axis in axes.values()]
    left = [shown.name(d) for d in axes if d not in columns]
    design: Any = getattr(fit, "design", None)
    unread = [] if design is None else design.variables.unread
    left += [name for name in unread if name in design.of_experts and name not in names]
    return replace(shown, left_out=tuple(left))


def experts(
    fit: Fit,
    rows: Rows,
    *,
    max_columns: int = 6,
    classes: Sequence[str] | None = None,
    seed: int = 0,
) -> Figure:
    """Plot each expert's mean of the target as one variable varies, with its rows and a band.

    The rows of an expert are those of which it is most probable given x and y. The line runs over
    their range of the variable; of a factor, there is a mark for each of their levels. The other
    variables are held at their medians over these rows, factors at the most frequent level, and
    columns that are functions of variables are computed anew. The points are partial residuals.
    The band is the mean ± 1.645 standard deviations of the expert. For classes, the probability of
    each class is shown. The variables are those along which the means vary most.

    Args:
        fit: A fitted story with a site ``y``.
        rows: Rows.
        max_columns: Maximum number of columns to show.
        classes: Names of the classes.
        seed: Seed of the draws of `evaluation.predict`.
    """
    options: dict[str, Any] = {"max_columns": max_columns, "classes": classes, "seed": seed}
    return effects(fit, rows, **options).figure()


def _outputs(
    p: Any, width: int, rows: Rows, classes: Sequence[str] | None
) -> tuple[dict[int, str], str]:
    """The targets or classes to show with their names, and what kind they are."""
    target = in_one_line((rows.targets or ("y",))[0], CLASS)
    if has_classes(p):
        shown = [width - 1] if width == 2 else range(min(width, MOST_OUTPUTS))
        named = [str(k) for k in range(width)] if classes is None else list(classes)
        return {m: f"{target} = {in_one_line(named[m], CLASS)}" for m in shown}, "classes"
    names = rows.targets or numbered("y", width)
    outputs = dict(enumerate(names[:MOST_OUTPUTS]))
    if is_binary(p):
        yes = "1" if classes is None else classes[-1]
        pairs = ((m, in_one_line(name, CLASS)) for m, name in outputs.items())
        return {m: f"{name} = {in_one_line(yes, CLASS)}" for m, name in pairs}, "share"
    counts = p.support.is_discrete or len(discrete_columns(p)) == width
    return outputs, "counts" if counts else "number"


def _range(fit: Fit, x: torch.Tensor, component: np.ndarray, axis: Axis, seed: int) -> float:
    """By how much the experts' means vary along a variable, from 5 to 95 % of its values."""
    found = 0.0
    for k, size in zip(*np.unique(component, return_counts=True), strict=True):
        own = x[torch.from_numpy(component == k)].double()
        values = axis.values(own)
        ends = values.quantile(torch.tensor([0.05, 0.5, 0.95]).double())
        ends = values.unique() if axis.levels else ends
        mean, _ = moments(fit, along(fit, own, axis, ends), int(k), seed)
        found += float(size) / len(x) * float(np.ptp(mean, axis=0).sum())
    return found


def _draw(
    axes: Axes,
    k: int,
    line: tuple[np.ndarray, np.ndarray, np.ndarray | None],
    points: tuple[np.ndarray, np.ndarray],
    output: int,
    *,
    shares: bool,
    side: float | None,
) -> None:
    at, mean, deviation = line
    where, target = points
    random = np.random.default_rng(k)
    jitter = random.uniform(-0.03, 0.03, len(where)) if shares else 0.0
    if side is not None:
        at, where = at + side, where + side + random.uniform(-0.04, 0.04, len(where))
    reach = None if deviation is None else WIDE * deviation[:, output]
    if side is None and reach is not None:
        ends = mean[:, output] - reach, mean[:, output] + reach
        axes.fill_between(at, *ends, color=color(k), alpha=0.15, linewidth=0)
    axes.scatter(where, target[:, output] + jitter, s=10, color=color(k), alpha=0.7, linewidths=0)
    if side is not None:
        options: Any = {"color": color(k), "fmt": "D", "markersize": 5, "elinewidth": 1.5}
        axes.errorbar(at, mean[:, output], reach, label=str(k), markeredgecolor="white", **options)
        return
    axes.plot(at, mean[:, output], color=color(k), label=str(k))
