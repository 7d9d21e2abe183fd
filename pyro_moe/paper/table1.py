"""Table 1 of the paper (§8.2): errors of mixtures of experts by gate, on spirals and MNIST."""

import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import nn

from pyro_moe import datasets, evaluation, models
from pyro_moe.fitted import Fit
from pyro_moe.fitting import fit
from pyro_moe.images import cluster_images
from pyro_moe.inference.errors import DataError
from pyro_moe.rows import Rows

Y_DIMS = (1, 2, 5)
METHODS = ("ME", "GMM-MoE", "DeepMoE", "DeepMoE, clustered start", "VaDE-MoE", "DVMoE")
PAPER = {
    ("spiral", "DeepMoE"): (10.0424, 20.4247, 180.117),
    ("spiral", "DVMoE"): (0.0312, 0.0434, 96.1049),
    ("mnist", "DeepMoE"): (28.4584, 209.028, 880.126),
    ("mnist", "DVMoE"): (34.0551, 208.142, 680.714),
}
IMAGE_SHAPE = (1, 28, 28)
VIEWS = 4  # moves of an image over which gates average


def rows(data: str, *, y_dim: int, seed: int, data_dir: str | None = None) -> tuple[Rows, Rows]:
    """Training and test rows with piecewise-affine targets.

    Args:
        data: ``"spiral"`` or ``"mnist"``.
        y_dim: M, outputs of the affine maps.
        seed: Seed of the affine maps, and of the noise of the spirals.
        data_dir: Folder with MNIST's four files.
    """
    train, test = datasets.spiral(seed=seed) if data == "spiral" else datasets.mnist(data_dir)
    return datasets.piecewise_affine(train, test, y_dim=y_dim, seed=seed)


def method(
    name: str,
    data: str,
    y_dim: int,
    *,
    start: Any = "autoencoder",
    quick: bool = False,
    z_dim: int | None = None,
) -> tuple[nn.Module, dict[str, Any]]:
    """A story and the arguments of `fit` for it.

    All methods have affine experts. On spirals there are two starts, and the ELBO of held-out
    training rows chooses one. On MNIST there is one start. VaDE-MoE and DVMoE start from a
    clustering of their codes on spirals. On MNIST they and GMM-MoE start from the responsibilities
    ``start``. DeepMoE starts from random weights, as in the paper. "DeepMoE, clustered start"
    starts from the same clustering as the others, for comparison.

    Args:
        name: One of `METHODS`.
        data: ``"spiral"`` or ``"mnist"``.
        y_dim: M.
        start: Argument ``initialize`` of `fit` for methods with a clustered start.
        quick: Whether to train for fewer epochs.
        z_dim: L of VaDE-MoE and DVMoE; 2 on spirals and 10 on MNIST if None.

    Raises:
        ValueError: If ``name`` is not one of `METHODS`.
    """
    if name not in METHODS:
        raise ValueError(f"expected a method in {METHODS}; got {name!r}")
    images = data == "mnist"
    x_dim, num_components, default = (784, 10, 10) if images else (2, 5, 2)
    z_dim = z_dim or default
    x_options: dict[str, Any] = {"common_scale": images}
    gate_options: dict[str, Any] = {}
    sizes: Any = {"x_dim": x_dim, "y_dim": y_dim, "num_components": num_components}
    if images:
        sizes["predictor"] = models.Predictor(shrinkage=1.0)
        x_options |= {"likelihood": "continuous-bernoulli", "hidden": (500, 500)}
        gate = models.ConvolutionalClassifier(IMAGE_SHAPE, num_components, views=VIEWS)
        gate_options = {"gate": gate}
    story: nn.Module
    if name == "ME":
        story = models.ME(**sizes, common_scale=images)
    elif name == "GMM-MoE":
        story = models.GMMMoE(**sizes, common_scale=images, shrinkage=0.1 if images else 1e-3)
    elif name == "VaDE-MoE":
        story = models.VaDEMoE(**sizes, z_dim=z_dim, **x_options)
    elif name == "DVMoE":
        story = models.DVMoE(**sizes, z_dim=z_dim, **x_options, **gate_options)
    else:
        story = models.DeepMoE(**sizes, common_scale=images, **gate_options)
    return story, _fit_arguments(name, images, start, quick)


def _fit_arguments(name: str, images: bool, start: Any, quick: bool) -> dict[str, Any]:
    arguments: dict[str, Any] = {"restarts": 1 if images else 2, "prior": "weak"}
    if name in ("ME", "GMM-MoE"):
        arguments |= {"loss": "em", "epochs": 20 if images else 100}
        if images and name == "GMM-MoE":
            arguments |= {"initialize": start, "epochs": 10}
        return arguments
    arguments |= {"initialize": "random", "epochs": 5 if quick else 6 if images else 10}
    if images:
        arguments["learning_rate"] = 1e-3
    if name == "DeepMoE":
        arguments["epochs"] *= 2  # it has no initial phases, and its epochs take half the time
    else:
        arguments |= {"initialize": start, "initial_epochs": 5}
    return arguments


def cell(
    name: str, data: str, train: Rows, test: Rows, *, seed: int, **options: Any
) -> dict[str, Any]:
    """Fit one method and score it on test rows, for one cell of the table.

    Args:
        name: One of `METHODS`.
        data: ``"spiral"`` or ``"mnist"``.
        train: Training rows.
        test: Test rows.
        seed: Seed of the fit.
        **options: See `method`.

    Returns:
        Scores of the prediction of y, the coverage of 90 % conformal intervals of either half of
        the test rows by the other, the accuracy of the gate, the held-out ELBO (None for EM), and
        seconds.
    """
    (x, y), target, classes = _with_targets(train), _with_targets(test)[1], test.labels
    story: Any
    story, arguments = method(name, data, y.shape[1], **options)
    started = time.perf_counter()
    fitted = fit(story.model, story.guide, (x, y), seed=seed, progress=False, **arguments)
    seconds = time.perf_counter() - started
    prediction = evaluation.predict(fitted.uninterrupted(), test.x)
    clusters = evaluation.clustering_scores(prediction.gate, np.asarray(classes))
    return {
        **evaluation.regression_scores(prediction, target),
        "conformal_coverage": _conformal_coverage(fitted, test.x, target),
        "gate_accuracy": clusters["accuracy"],
        "held_out_elbo": fitted.held_out_elbo,
        "seconds": seconds,
    }


def _conformal_coverage(fitted: Fit, x: torch.Tensor, y: torch.Tensor) -> float:
    """The share of targets in 90 % conformal intervals: of either half of the rows by the other."""
    halves = [(evaluation.predict(fitted, x[i::2]), y[i::2]) for i in range(2)]
    covered = []
    for (prediction, target), calibration in zip(halves, reversed(halves), strict=True):
        low, high = evaluation.conformal_interval(prediction, *calibration)
        covered.append((low <= target) & (target <= high))
    return torch.cat(covered).double().mean().item()


def variance(test: Rows) -> float:
    """The total variance of the targets: the squared error of the constant mean."""
    return _with_targets(test)[1].var(0, correction=0).sum().item()


def _with_targets(rows: Rows) -> tuple[torch.Tensor, torch.Tensor]:
    if rows.y is None:
        raise DataError("expected rows with targets; got y=None")
    return rows.x, rows.y


def run(*, quick: bool = False, data_dir: str | None = None) -> None:
    """Print the table for one seed, with the numbers of the paper.

    Args:
        quick: Whether to use fewer epochs and 10,000 training images.
        data_dir: Folder with MNIST's four files. If None, only spirals are fitted.
    """
    print(f"{'':<34}" + "".join(f"{f'M={y_dim}':>12}" for y_dim in Y_DIMS))
    for label, errors in measured(quick=quick, data_dir=data_dir):
        print(f"{label:<34}", end="", flush=True)
        for error in errors:
            print(f"{error:>12.4f}", end="", flush=True)
        print()


def measured(
    *, quick: bool = False, data_dir: str | None = None
) -> Iterator[tuple[str, Iterator[float]]]:
    """The rows of the table by their label. Each error is measured when it is read.

    Args:
        quick: As in `run`.
        data_dir: As in `run`.
    """
    for data in ("spiral",) if data_dir is None else ("spiral", "mnist"):
        pairs = [rows(data, y_dim=y_dim, seed=0, data_dir=data_dir) for y_dim in Y_DIMS]
        start: Any = "autoencoder"
        if data == "mnist":
            if quick:
                pairs = [(train.take(slice(10_000)), test) for train, test in pairs]
            start = cluster_images(
                pairs[0][0], 10, embedding="tsne" if quick else "umap", progress=False
            )
        yield f"{data}: variance of the target", (variance(test) for _, test in pairs)
        for (of, name), errors in PAPER.items():
            if of == data:
                yield f"{data}: paper, {name}", iter(errors)
        for name in METHODS:
            options: dict[str, Any] = {"seed": 0, "start": start, "quick": quick}
            cells = (cell(name, data, *pair, **options) for pair in pairs)
            yield f"{data}: {name}", (each["error"] for each in cells)
