"""What each expert says: its mean along columns of x beside its rows, and a table."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pyro_moe import evaluation
from pyro_moe.evaluation import Prediction
from pyro_moe.evaluation.marginals import discrete_columns, has_classes, is_binary
from pyro_moe.fitted import Fit, strange_rows_expected, weighted_mean
from pyro_moe.plots.names import CLASS, label
from pyro_moe.plots.posteriors import legend
from pyro_moe.plots.style import color, panels_of
from pyro_moe.rows import Rows, numbered
from pyro_moe.text import in_one_line

POINTS = 40
MOST_ROWS = 400
MOST_OUTPUTS = 4
WIDE = 1.645  # standard deviations on each side of a normal 90 % interval


@dataclass(frozen=True)
class Effects:
    """The means of experts along columns of x.

    Attributes:
        fit: The fit.
        rows: The rows that are shown.
        component: The most probable component of each row, shape (N,).
        chosen: The columns that are shown, those along which the experts' means vary most.
        left_out: Names of the columns that are not shown.
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
        names = self.rows.columns or numbered("x", self.fit.x_dim)
        present = np.unique(self.component).tolist()
        for d, column in enumerate(self.chosen):
            for k in present:
                lines, points = self.line(column, k), self.points(column, k)
                for place, output in enumerate(self.outputs):
                    axes = panels[place * across + d if several else place + d]
                    _draw(axes, k, lines, points, output, shares=self.kind in ("classes", "share"))
            for place, name in enumerate(self.outputs.values()):
                axes = panels[place * across + d if several else place + d]
                axes.set_xlabel(label(names[column]))
                axes.set_ylabel(self._of(name) if d % across == 0 else "")
        legend(figure, panels, "component")
        return figure

    def _of(self, name: str) -> str:
        if self.kind in ("classes", "share"):
            return f"P({label(name)})"
        return label(name)

    @property
    def adjusted(self) -> bool:
        """Whether points are partial residuals."""
        return self.kind in ("number", "counts") and len(free_columns(self.fit)) > 1

    def line(self, column: int, k: int) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        """Values of a column, the mean of expert k there (P, M), and its standard deviation."""
        own = self.rows.x[torch.from_numpy(self.component == k)].double()
        values = own[:, column]
        at = torch.linspace(float(values.min()), float(values.max()), POINTS).double()
        mean, deviation = moments(self.fit, along(self.fit, own, column, at), k, self.seed)
        return at.numpy(), mean, None if self.kind in ("classes", "share") else deviation

    def points(self, column: int, k: int) -> tuple[np.ndarray, np.ndarray]:
        r"""Values of a column in the rows of expert k, and their targets at the line (N_k, M).

        Targets are moved with the other columns from their values to their medians: these are
        partial residuals, :math:`y_n - f_k(x_n) + f_k(\tilde x_n)`; for counts ratios.
        """
        own = torch.from_numpy(self.component == k)
        x, y = self.rows.x[own].double(), torch.as_tensor(self.rows.y)[own].double()
        at = x[:, column]
        target = y.reshape(len(y), -1).numpy()
        if self.kind == "classes":
            size = max(self.outputs) + 1
            return at.numpy(), (target == np.arange(size)).astype(float)
        if not self.adjusted:
            return at.numpy(), target
        moved, _ = moments(self.fit, along(self.fit, x, column, at), k, self.seed)
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
    """The means of experts along the columns of x of which they depend most.

    Args:
        fit: A fitted story with a site ``y``.
        rows: Rows with targets; at most 400 of them are used.
        max_columns: Maximum number of columns; four if there are several targets or classes.
        classes: Names of the classes.
        posterior: The probability of each component of each row, shape (N, K), such as that by
            group; that of each row by itself if None.
        seed: Seed of the draws of `evaluation.predict`.
    """
    rows = fit.repeated(_marked(fit, rows, posterior, seed)).subsample(MOST_ROWS, seed)
    prediction = evaluation.predict(fit, rows.x, seed=seed)
    component = torch.as_tensor(rows.labels).numpy()
    p, width = prediction.distributions[0], prediction.experts.shape[-1]
    outputs, kind = _outputs(p, width, rows, classes)
    most = max_columns if len(outputs) == 1 else min(max_columns, 4)
    free = free_columns(fit)
    ranges = {d: _range(fit, rows.x, component, d, seed) for d in free}
    least = 1e-9 * max(ranges.values())
    columns = sorted(sorted(free, key=lambda d: -ranges[d])[:most])
    columns = [d for d in columns if ranges[d] > least] or columns[:1]
    names = rows.columns or numbered("x", fit.x_dim)
    left = tuple(names[d] for d in free if d not in columns)
    return Effects(fit, rows, component, columns, left, outputs, kind, seed)


def experts(
    fit: Fit,
    rows: Rows,
    *,
    max_columns: int = 6,
    classes: Sequence[str] | None = None,
    seed: int = 0,
) -> Figure:
    """Plot each expert's mean of the target as one column of x varies, with its rows and a band.

    The rows of an expert are those of which it is most probable given x and y. The line runs over
    their range of the column. The other columns are held at their medians over these rows, and the
    points are partial residuals. The band is the mean ± 1.645 standard deviations of the expert.
    For classes, the probability of each class is shown. The columns are those along which the
    means vary most.

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


def _marked(fit: Fit, rows: Rows, posterior: torch.Tensor | None, seed: int) -> Rows:
    """The rows with a target, with their most probable components as labels."""
    rows = fit.in_order(rows)
    if posterior is not None:
        return replace(rows, labels=posterior.argmax(-1).cpu()).with_targets()
    rows = rows.with_targets()
    prediction = evaluation.predict(fit, rows.x, seed=seed)
    likeliest = prediction.posterior(torch.as_tensor(rows.y)).argmax(-1)
    return replace(rows, labels=likeliest.cpu())


def free_columns(fit: Fit) -> list[int]:
    """The columns of x that are not functions of others, as squares in a formula are."""
    design: Any = getattr(fit, "design", None)
    derived = () if design is None else design.derived
    return [i for i, name in enumerate(fit.columns or range(fit.x_dim)) if name not in derived]


def along(fit: Fit, own: torch.Tensor, column: int, at: torch.Tensor) -> torch.Tensor:
    """Rows at values of a column, with the others at their medians over an expert's rows."""
    grid = own.median(0).values.repeat(len(at), 1)
    grid[:, column] = at.to(grid)
    design: Any = getattr(fit, "design", None)
    if design is None:
        return grid
    frame = design.recomputed(pd.DataFrame(grid.numpy(), columns=list(fit.columns or ())))
    return torch.from_numpy(frame.to_numpy(float, copy=True))


def moments(fit: Fit, x: torch.Tensor, k: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The mean and the standard deviation of expert k, shapes (N, M)."""
    return moments_of(evaluation.predict(fit, x, seed=seed), k)


def moments_of(prediction: Prediction, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The mean and the standard deviation of expert k of a prediction, shapes (N, M)."""
    draws = len(prediction.log_weights)
    _, means, variances = (
        part.unflatten(1, (draws, -1))[:, :, k if part.shape[1] > draws else 0]
        for part in prediction.components()
    )
    between = means.var(1, correction=0)
    deviation = (variances.mean(1) + between).sqrt()
    return means.mean(1).cpu().numpy(), deviation.cpu().numpy()


def _range(fit: Fit, x: torch.Tensor, component: np.ndarray, column: int, seed: int) -> float:
    """By how much the experts' means vary along a column, from 5 to 95 % of its values."""
    found = 0.0
    for k, size in zip(*np.unique(component, return_counts=True), strict=True):
        own = x[torch.from_numpy(component == k)].double()
        ends = own[:, column].quantile(torch.tensor([0.05, 0.5, 0.95]).double())
        mean, _ = moments(fit, along(fit, own, column, ends), int(k), seed)
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
) -> None:
    at, mean, deviation = line
    where, target = points
    if deviation is not None:
        reach = WIDE * deviation[:, output]
        ends = mean[:, output] - reach, mean[:, output] + reach
        axes.fill_between(at, *ends, color=color(k), alpha=0.15, linewidth=0)
    jitter = np.random.default_rng(k).uniform(-0.03, 0.03, len(where)) if shares else 0.0
    axes.scatter(where, target[:, output] + jitter, s=10, color=color(k), alpha=0.7, linewidths=0)
    axes.plot(at, mean[:, output], color=color(k), label=str(k))


@strange_rows_expected()
def expert_table(
    fit: Fit,
    rows: Rows,
    *,
    classes: Sequence[str] | None = None,
    posterior: torch.Tensor | None = None,
    seed: int = 0,
) -> pd.DataFrame:
    """Summarize each expert over its rows: those of which it is most probable given x and y.

    Args:
        fit: A fitted story with a site ``y``.
        rows: Rows with targets.
        classes: Names of the classes.
        posterior: As in `effects`.
        seed: Seed of the draws of `evaluation.predict`.

    Returns:
        For each expert its ``share`` (the mean of the gate), its number of ``rows``, and over
        these rows the mean ``log_density`` of the targets, and the ``mean`` and the
        ``standard_deviation`` that it predicts; of several targets ``mean_of_y0`` and so on. For
        classes, their mean probabilities instead.
    """
    rows = _marked(fit, rows, posterior, seed)
    w = fit.weights_of(rows)
    weights = np.ones(len(rows)) if w is None else w.numpy()
    prediction = evaluation.predict(fit, rows.x, seed=seed)
    log_density = prediction.log_prob(torch.as_tensor(rows.y)).cpu().numpy()
    component = torch.as_tensor(rows.labels).numpy()
    of_classes = has_classes(prediction.distributions[0])
    table = []
    for k, share in enumerate(weighted_mean(prediction.gate, w).tolist()):
        own = np.where(component == k, weights, 0.0)
        mean, deviation = moments_of(prediction, k)
        number = float(own.sum())
        found: dict[str, Any] = {"component": k, "share": share}
        found["rows"] = int(number) if number.is_integer() else number
        found["log_density"] = _average(log_density, own)
        if of_classes:
            named = classes or [str(m) for m in range(mean.shape[1])]
            found |= {f"P({name})": _average(mean[:, m], own) for m, name in enumerate(named)}
        elif is_binary(prediction.distributions[0]):
            names = rows.targets or numbered("y", mean.shape[1])
            yes = "1" if classes is None else classes[-1]
            found |= {f"P({n} = {yes})": _average(mean[:, m], own) for m, n in enumerate(names)}
        else:
            names = rows.targets or numbered("y", mean.shape[1])
            for m, name in enumerate(names[:MOST_OUTPUTS]):
                of = "" if len(names) == 1 else f"_of_{name}"
                found[f"mean{of}"] = _average(mean[:, m], own)
                found[f"standard_deviation{of}"] = _average(deviation[:, m], own)
        table.append(found)
    return pd.DataFrame(table)


def _average(values: np.ndarray, weights: np.ndarray) -> float:
    """The mean of the rows whose weight is above zero, NaN without any."""
    some = weights > 0
    return float(np.average(values[some], weights=weights[some])) if some.any() else float("nan")
