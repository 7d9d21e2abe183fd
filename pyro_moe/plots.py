"""Pictures of a fit: how it learned, what it makes of rows, and what it generates.

Each function returns a matplotlib `Figure` that belongs to the caller: nothing is shown, and
pyplot with its global state is not used. ``figure.savefig("my.png")`` writes one.
"""

import math
from collections.abc import Callable
from functools import partial
from itertools import groupby

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from scipy.optimize import linear_sum_assignment
from sklearn.manifold import TSNE

from pyro_moe.inference.errors import DataError, SiteError

from . import evaluation
from .drawing import GRAY, PALETTE, color, panels_of, show_images, some
from .fitting import Fit
from .marginals import has_classes
from .rows import Rows, numbered


def pictures(fit: Fit, rows: Rows, *, seed: int = 0) -> dict[str, Figure]:
    """Every picture that makes sense for a fit and its rows, by name.

    Args:
        fit: A fitted story.
        rows: Rows to show, best such that the fit has not seen.
        seed: Decides which rows and samples are shown.

    Returns:
        Some of ``"history"``, ``"latent_map"``, ``"reconstructions"``, ``"generated"``,
        ``"gate_map"`` and ``"predictions"``: without those of sites that the story lacks, and
        without pictures of x unless a row is an image or a point in the plane.
    """
    drawings: dict[str, Callable[[], Figure]] = {
        "history": partial(history, fit),
        "latent_map": partial(latent_map, fit, rows, seed=seed),
    }
    if rows.image_shape is not None or fit.x_dim == 2:
        drawings["reconstructions"] = partial(reconstructions, fit, rows, seed=seed)
        drawings["generated"] = partial(generated, fit, image_shape=rows.image_shape, seed=seed)
    if rows.image_shape is None and fit.x_dim == 2:
        drawings["gate_map"] = partial(gate_map, fit, rows, seed=seed)
    if rows.y is not None and len(fit.run.data) > 1:
        drawings["predictions"] = partial(predictions, fit, rows, seed=seed)
    figures = {}
    for name, draw in drawings.items():
        try:
            figures[name] = draw()
        except SiteError:  # the story lacks what would be shown
            continue
    return figures


def history(fit: Fit) -> Figure:
    """The ELBO by epoch, a panel for each phase, since phases differ in their objective.

    The first epochs are often so bad that they would flatten the rest: the vertical axis leaves
    out the worst fifth.

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
    margin = 0.08 * (high - low) or 1.0
    return (low - margin, high + margin)


def latent_map(fit: Fit, rows: Rows, *, max_rows: int = 2000, seed: int = 0) -> Figure:
    """The codes of rows, colored by component, and in a second panel by label if that is known.

    Two-dimensional codes as they are; longer ones by t-SNE, which shows neighborhoods but no
    distances; a histogram of one-dimensional ones. A label has the color of the component
    that it goes best with.

    Args:
        fit: A fitted story with a site ``z``.
        rows: Rows to show.
        max_rows: The most to show; t-SNE takes seconds for each thousand.
        seed: Decides which rows are shown, and the start of t-SNE.

    Raises:
        SiteError: If the guide has no site ``z``.
    """
    rows = some(rows, max_rows, seed)
    codes = evaluation.encode(fit, rows).cpu().numpy()
    components = _components(fit, rows)
    views: list[tuple[str, np.ndarray | None, np.ndarray | None]] = []
    if components is not None:
        views.append(("Components", components, None))
    if rows.labels is not None:
        labels = rows.labels.cpu().numpy()
        views.append(("Labels", labels, _match(labels, components)))
    views = views or [("Codes", None, None)]
    points, names = _plane(codes, seed)
    figure, panels = panels_of(len(views), sharex=True, sharey=True)
    for axes, (title, group, colors) in zip(panels, views, strict=True):
        if points.shape[1] == 1:
            _histogram(axes, points[:, 0], group, colors)
        else:
            _scatter(axes, points, group, colors)
        axes.set(title=title, xlabel=names[0])
        if names[0] == "t-SNE 1":  # a scale would claim that distances mean something
            axes.set(xticks=[], yticks=[])
    panels[0].set_ylabel(names[1])
    return figure


def _plane(codes: np.ndarray, seed: int) -> tuple[np.ndarray, tuple[str, str]]:
    """Codes in at most two dimensions, and the names of the axes."""
    if codes.shape[1] == 1:
        return codes, ("z", "rows")
    if codes.shape[1] == 2 or len(codes) < 4:  # t-SNE wants neighbors
        return codes[:, :2], ("$z_1$", "$z_2$")
    embedding = TSNE(perplexity=min(30.0, (len(codes) - 1) / 3), init="pca", random_state=seed)
    return embedding.fit_transform(codes), ("t-SNE 1", "t-SNE 2")


def reconstructions(fit: Fit, rows: Rows, *, num_rows: int | None = None, seed: int = 0) -> Figure:
    """Rows beside what the story makes of their codes: images, or points in the plane.

    Args:
        fit: A fitted story with sites ``z`` and ``x``.
        rows: Rows of images or of two columns.
        num_rows: The most to show; 40 images or 2,000 points if None.
        seed: Decides which rows are shown.

    Raises:
        DataError: If rows are neither images nor points in the plane.
        SiteError: If the guide has no site ``z``, or the model no site ``x``.
    """
    _expect_image_or_plane(fit, rows.image_shape)
    rows = some(rows, num_rows or (2000 if rows.image_shape is None else 40), seed)
    both = {"Original": rows.x, "Reconstruction": evaluation.reconstruct(fit, rows)}
    if rows.image_shape is not None:
        figure, panels = panels_of(2, height=0.5 + 0.56 * math.ceil(len(rows) / 8))
        for axes, x in zip(panels, both.values(), strict=True):
            show_images(axes, x, rows.image_shape, num_columns=8, like=rows.x)
    else:
        figure, panels = panels_of(2, sharex=True, sharey=True)
        components = _components(fit, rows)
        for axes, x in zip(panels, both.values(), strict=True):
            _scatter(axes, x.cpu().numpy(), components)
            _label_plane(axes)
    for axes, title in zip(panels, both, strict=True):
        axes.set_title(title)
    return figure


def generated(
    fit: Fit,
    *,
    image_shape: tuple[int, int, int] | None = None,
    num_samples: int | None = None,
    seed: int = 0,
) -> Figure:
    """What each component generates: a row of images, or points beside those that were fitted.

    Images are means of x given z, points are draws of x itself.

    Args:
        fit: A fitted story with a site ``x``; one without ``c`` shows samples of the whole.
        image_shape: ``(channels, height, width)`` if a row of x is a flattened image.
        num_samples: Samples of each component; 10 images or 400 points if None.
        seed: Seed of the draws.

    Raises:
        DataError: If rows are neither images nor points in the plane.
        SiteError: If the model has no site ``x``.
    """
    _expect_image_or_plane(fit, image_shape)
    x, *others = fit.run.data
    fitted = Rows(x, others[0] if others else None)
    first = _gate(fit, some(fitted, 1, seed))
    choices: list[int | None] = [None] if first is None else list(range(first.shape[1]))
    num_samples = num_samples or (400 if image_shape is None else 10)
    draw = partial(evaluation.sample, fit, num_samples, noise=image_shape is None, seed=seed)
    samples = torch.cat([draw(component=choice) for choice in choices])
    if image_shape is not None:
        return _generated_images(samples, image_shape, len(choices), like=x)
    shown = some(fitted, len(samples), seed)
    figure, panels = panels_of(2, sharex=True, sharey=True)
    drawn_from = np.arange(len(choices)).repeat(num_samples)
    _scatter(panels[0], shown.x.cpu().numpy(), _components(fit, shown))
    _scatter(panels[1], samples.cpu().numpy(), None if first is None else drawn_from)
    for axes, title in zip(panels, ("Fitted", "Generated"), strict=True):
        axes.set_title(title)
        _label_plane(axes)
    return figure


def _generated_images(
    samples: torch.Tensor, image_shape: tuple[int, int, int], num_rows: int, like: torch.Tensor
) -> Figure:
    num_columns = len(samples) // num_rows
    size = (0.9 + 0.5 * num_columns, 0.5 + 0.5 * num_rows)
    figure = Figure(figsize=size, layout="compressed")
    axes = figure.add_subplot()
    show_images(axes, samples, image_shape, num_columns, like)
    axes.set_title("Generated")
    if num_rows > 1:
        pitch = image_shape[1] + 2
        middles = [pitch * (row + 0.5) - 0.5 for row in range(num_rows)]
        axes.set_yticks(middles, labels=[str(row) for row in range(num_rows)], fontsize=11)
        axes.set_ylabel("component")
    return figure


def gate_map(fit: Fit, rows: Rows, *, resolution: int = 200, seed: int = 0) -> Figure:
    """Which component answers where in the data plane, and where the gate is unsure.

    A region has the color of its likeliest component, the paler the less certain it is.

    Args:
        fit: A fitted story with a site ``c``, over two columns.
        rows: Rows to draw over the regions, at most 2,000 of them.
        resolution: Points along each side of the grid at which the gate is read off.
        seed: Decides which rows are shown.

    Raises:
        DataError: If rows are not points in the plane.
        SiteError: If neither guide nor model has a site ``c``.
    """
    _expect_image_or_plane(fit, None)
    shown = some(rows, 2000, seed)
    points = shown.x.cpu().numpy()
    margin = 0.08 * np.ptp(points, axis=0).max() or 1.0
    low, high = points.min(0) - margin, points.max(0) + margin
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
    _number(axes, points, evaluation.gate(fit, shown).cpu().numpy().argmax(1))
    axes.set_title("Which component answers (paler: less certain)")
    _label_plane(axes)
    return figure


def predictions(fit: Fit, rows: Rows, *, max_rows: int = 400, seed: int = 0) -> Figure:
    """Targets against their predicted means, a panel a column; of classes, who is taken for whom.

    Points have the color of the expert that the gate holds likeliest, and a line across their
    central 90 % interval. Where targets are what was predicted, points lie on the diagonal.

    Args:
        fit: A fitted story with a site ``y``.
        rows: Rows with targets, best such that the fit has not seen.
        max_rows: The most to show.
        seed: Decides which rows are shown, and the draws of `evaluation.predict`.

    Raises:
        DataError: If the rows have no targets.
        SiteError: If the model has no site ``y``.
    """
    if rows.y is None:
        raise DataError("expected rows with targets; got y=None")
    one = evaluation.predict(fit, rows.take(slice(1)), seed=seed)
    if has_classes(one.distributions[0]):
        probabilities = evaluation.predict(fit, rows, seed=seed).mean
        return _confusion(probabilities.cpu().numpy(), rows.y.cpu().numpy())
    rows = some(rows, max_rows, seed)
    prediction = evaluation.predict(fit, rows, seed=seed)
    target = prediction.targets(np.asarray(rows.y)).reshape(len(rows), -1).cpu().numpy()
    mean, low, high = (
        part.cpu().numpy()
        for part in (prediction.mean, prediction.quantile(0.05), prediction.quantile(0.95))
    )
    experts = prediction.gate.argmax(-1).cpu().numpy()
    figure, panels = panels_of(target.shape[1])
    names = rows.targets or numbered("y", target.shape[1])
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
        axes.set(title=name, xlabel="predicted mean, with its 90 % interval")
    panels[0].set_ylabel("target")
    panels[0].legend(title="likeliest expert", fontsize="small", title_fontsize="small")
    return figure


def _confusion(probabilities: np.ndarray, target: np.ndarray) -> Figure:
    size = probabilities.shape[1]
    counts = np.zeros((size, size), dtype=int)
    np.add.at(counts, (target.reshape(-1).astype(int), probabilities.argmax(1)), 1)
    figure, (axes,) = panels_of(1)
    axes.imshow(counts, cmap="Blues", norm="linear")
    for (row, column), count in np.ndenumerate(counts):
        dark = count > counts.max() / 2
        axes.text(column, row, count, ha="center", va="center", color="white" if dark else "black")
    axes.set(xlabel="likeliest class", ylabel="class", title="Rows by class and prediction")
    axes.set(xticks=range(size), yticks=range(size))
    return figure


def _gate(fit: Fit, rows: Rows) -> np.ndarray | None:
    try:
        return evaluation.gate(fit, rows).cpu().numpy()
    except SiteError:
        return None


def _components(fit: Fit, rows: Rows) -> np.ndarray | None:
    """The likeliest component of each row, or None for a story without ``c``."""
    g = _gate(fit, rows)
    return None if g is None else g.argmax(1)


def _match(labels: np.ndarray, components: np.ndarray | None) -> np.ndarray | None:
    """For each label the component that it goes best with, one to one."""
    if components is None:
        return None
    size = 1 + max(labels.max(), components.max())
    counts = np.zeros((size, size))
    np.add.at(counts, (labels, components), 1)
    return linear_sum_assignment(counts, maximize=True)[1]


def _scatter(
    axes: Axes, points: np.ndarray, groups: np.ndarray | None, colors: np.ndarray | None = None
) -> None:
    """Points in the plane, each group in its color and with its number."""
    size = float(np.clip(6000 / len(points), 3, 16))
    if groups is None:
        axes.scatter(points[:, 0], points[:, 1], s=size, color=GRAY, linewidths=0)
        return
    chosen = groups if colors is None else colors[groups]
    axes.scatter(
        points[:, 0], points[:, 1], s=size, c=list(map(color, chosen)), linewidths=0, alpha=0.8
    )
    _number(axes, points, groups)


def _number(axes: Axes, points: np.ndarray, groups: np.ndarray) -> None:
    """Write each group's number at the point nearest to its midst."""
    for group in np.unique(groups):
        members = points[groups == group]
        distances = np.linalg.norm(members - np.median(members, axis=0), axis=1)
        axes.annotate(
            str(group),
            members[distances.argmin()],
            ha="center",
            va="center",
            fontsize=12,
            fontweight="bold",
            path_effects=[withStroke(linewidth=3, foreground="white")],
        )


def _histogram(
    axes: Axes, values: np.ndarray, groups: np.ndarray | None, colors: np.ndarray | None
) -> None:
    groups = np.zeros(len(values), dtype=int) if groups is None else groups
    present = np.unique(groups)
    axes.hist(
        [values[groups == group] for group in present],
        bins=60,
        stacked=True,
        color=[color(group if colors is None else colors[group]) for group in present],
        label=[str(group) for group in present],
    )
    if len(present) > 1:
        axes.legend()


def _label_plane(axes: Axes) -> None:
    axes.set(xlabel="$x_1$", ylabel="$x_2$", aspect="equal")
    axes.locator_params(nbins=5)
    axes.label_outer()


def _expect_image_or_plane(fit: Fit, image_shape: tuple[int, int, int] | None) -> None:
    if image_shape is None and fit.x_dim != 2:
        raise DataError(f"expected images, or x with 2 columns; got {fit.x_dim} columns")
