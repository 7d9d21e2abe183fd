"""Plots of targets against predictions."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from pyro_moe import evaluation
from pyro_moe.evaluation.marginals import has_classes, is_binary
from pyro_moe.fitted import Fit, strange_rows_expected
from pyro_moe.inference.errors import DataError
from pyro_moe.rows import Rows, numbered

from .names import CLASS, label, tilted
from .posteriors import legend
from .style import GRAY, color, panels_of

ACROSS = 3  # panels in a row


@strange_rows_expected()
def predictions(
    fit: Fit,
    rows: Rows,
    *,
    max_rows: int = 400,
    classes: Sequence[str] | None = None,
    seed: int = 0,
) -> Figure:
    """Plot targets against predicted means, with one panel for each column, or a confusion matrix.

    Points have the color of the most probable expert. Vertical lines are central 90 % prediction
    intervals. Points of exact predictions lie on the diagonal. For classes, and one binary target,
    the confusion matrix is shown.

    Args:
        fit: A fitted story with a site ``y``.
        rows: Rows with targets, preferably held out.
        max_rows: Maximum number of rows to show.
        classes: Names of the classes.
        seed: Seed of the random subset and of the draws of `evaluation.predict`.

    Raises:
        DataError: If the rows have no targets.
        SiteError: If the model has no site ``y``.
    """
    rows = fit.repeated(rows)
    if rows.y is None:
        raise DataError("expected rows with targets; got y=None")
    one = evaluation.predict(fit, rows.take(slice(1)), seed=seed)
    if has_classes(one.distributions[0]):
        probabilities = evaluation.predict(fit, rows, seed=seed).mean
        return _confusion(probabilities.cpu().numpy(), rows.y.cpu().numpy(), classes)
    if is_binary(one.distributions[0]) and one.mean.shape[1] == 1:
        yes = evaluation.predict(fit, rows, seed=seed).mean.cpu().numpy()
        both = np.concatenate([1.0 - yes, yes], 1)
        return _confusion(both, np.asarray(rows.y), classes)
    rows = rows.subsample(max_rows, seed)
    prediction = evaluation.predict(fit, rows, seed=seed)
    target = prediction.targets(np.asarray(rows.y)).reshape(len(rows), -1).cpu().numpy()
    mean, low, high = (
        part.cpu().numpy()
        for part in (prediction.mean, prediction.quantile(0.05), prediction.quantile(0.95))
    )
    experts = prediction.gate.argmax(-1).cpu().numpy()
    number = target.shape[1]
    wide = min(number, ACROSS)
    size = (4.5, 4.2) if number == 1 else (3.6, 3.5)
    figure, panels = panels_of(wide, rows=-(-number // wide), width=size[0], height=size[1])
    for axes in panels[number:]:
        axes.set_visible(False)
    names = rows.targets or numbered("y", number)
    for m, (axes, name) in enumerate(zip(panels, names, strict=False)):
        for k in np.unique(experts):
            of_k = experts == k
            axes.vlines(
                mean[of_k, m], low[of_k, m], high[of_k, m], color(k), linewidth=0.8, alpha=0.35
            )
            axes.scatter(
                mean[of_k, m], target[of_k, m], s=10, c=color(k), label=str(k), linewidths=0
            )
        ends = [mean[:, m].min(), mean[:, m].max()]
        axes.plot(ends, ends, color=GRAY, linewidth=0.8, zorder=0)
        axes.set(title=label(name), xlabel="predicted mean, with 90 % interval")
        axes.set_ylabel("" if m % wide else "target")
    legend(figure, panels, "expert")
    return figure


def _confusion(
    probabilities: np.ndarray, target: np.ndarray, classes: Sequence[str] | None
) -> Figure:
    size = probabilities.shape[1]
    names = [label(name, CLASS) for name in classes or map(str, range(size))]
    counts = np.zeros((size, size), dtype=int)
    np.add.at(counts, (target.reshape(-1).astype(int), probabilities.argmax(1)), 1)
    figure, (axes,) = panels_of(1)
    axes.imshow(counts, cmap="Blues", norm="linear")
    for (row, column), count in np.ndenumerate(counts):
        dark = count > counts.max() / 2
        axes.text(column, row, count, ha="center", va="center", color="white" if dark else "black")
    axes.set(xlabel="most probable class", ylabel="class", title="Confusion matrix")
    axes.set_xticks(range(size), labels=names, **tilted(names))
    axes.set_yticks(range(size), labels=names)
    return figure
