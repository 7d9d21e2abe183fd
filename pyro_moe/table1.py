"""The paper's Table 1 (§8.2): error of mixtures of experts by gate, on spirals and MNIST."""

import time
from typing import Any

import numpy as np
import torch
from torch import nn

from pyro_moe.inference.errors import DataError

from . import datasets, evaluation, models
from .fitting import fit
from .images import cluster_images
from .rows import Rows

Y_DIMS = (1, 2, 5)
METHODS = ("ME", "GMM-MoE", "DeepMoE", "DeepMoE, clustered start", "VaDE-MoE", "DVMoE")
PAPER = {
    ("spiral", "DeepMoE"): (10.0424, 20.4247, 180.117),
    ("spiral", "DVMoE"): (0.0312, 0.0434, 96.1049),
    ("mnist", "DeepMoE"): (28.4584, 209.028, 880.126),
    ("mnist", "DVMoE"): (34.0551, 208.142, 680.714),
}
IMAGE_SHAPE = (1, 28, 28)


def rows(data: str, *, y_dim: int, seed: int, data_dir: str | None = None) -> tuple[Rows, Rows]:
    """Training and test rows with piecewise-affine targets.

    Args:
        data: ``"spiral"`` or ``"mnist"``.
        y_dim: M, outputs of the affine maps.
        seed: Decides the maps, and the noise of the spirals.
        data_dir: Folder of MNIST's four files.
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
    """A story, and the arguments of `fit` for it.

    Every method has affine experts, and two starts on spirals, of which the held-out rows choose
    one, but one on MNIST. VaDE-MoE and DVMoE start from a clustering of their codes on spirals; on
    MNIST they, and GMM-MoE, from the responsibilities ``start``; a DeepMoE from random weights, as
    the paper's, or, for comparison, from the same clustering.

    Args:
        name: One of `METHODS`.
        data: ``"spiral"`` or ``"mnist"``.
        y_dim: M.
        start: Where stories of x start, see `fit`.
        quick: Whether to take fewer epochs.
        z_dim: L of stories of x; 2 on spirals and 10 on MNIST if None.

    Raises:
        ValueError: If there is no method of that name.
    """
    if name not in METHODS:
        raise ValueError(f"expected a method in {METHODS}; got {name!r}")
    images = data == "mnist"
    x_dim, num_components, default = (784, 10, 10) if images else (2, 5, 2)
    z_dim = z_dim or default
    x_options: dict[str, Any] = {"common_scale": images}
    gate_options: dict[str, Any] = {}
    if images:
        x_options |= {"likelihood": "continuous-bernoulli", "hidden": (500, 500)}
        gate_options = {"gate": models.ConvolutionalClassifier(IMAGE_SHAPE, num_components)}
    sizes: Any = {"x_dim": x_dim, "y_dim": y_dim, "num_components": num_components}
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
    arguments: dict[str, Any]
    restarts = 1 if images else 2
    if name in ("ME", "GMM-MoE"):
        arguments = {"loss": "em", "epochs": 20 if images else 100, "restarts": restarts}
        if images and name == "GMM-MoE":
            arguments |= {"initialize": start, "epochs": 10}
        return arguments
    arguments = {
        "restarts": restarts,
        "initialize": "random",
        "epochs": 5 if quick else 6 if images else 10,
    }
    if images:
        arguments["learning_rate"] = 1e-3
    if name == "DeepMoE":
        arguments["epochs"] *= 2  # it has no phases before, and its epochs are half as long
    else:
        arguments |= {"initialize": start, "initial_epochs": 5}
    return arguments


def cell(
    name: str, data: str, train: Rows, test: Rows, *, seed: int, **options: Any
) -> dict[str, Any]:
    """One cell of the table: a method fitted, and scored on test rows.

    Args:
        name: One of `METHODS`.
        data: ``"spiral"`` or ``"mnist"``.
        train: What to fit.
        test: What to score.
        seed: Seed of the fit.
        **options: See `method`.
    """
    (x, y), target, classes = _with_targets(train), _with_targets(test)[1], test.labels
    story: Any
    story, arguments = method(name, data, y.shape[1], **options)
    started = time.perf_counter()
    fitted = fit(story.model, story.guide, (x, y), seed=seed, progress=False, **arguments)
    seconds = time.perf_counter() - started
    prediction = evaluation.predict(fitted, test.x)
    clusters = evaluation.clustering_scores(prediction.gate, np.asarray(classes))
    return {
        **evaluation.regression_scores(prediction, target),
        "gate_accuracy": clusters["accuracy"],
        "held_out_elbo": fitted.held_out_elbo,
        "seconds": seconds,
    }


def variance(test: Rows) -> float:
    """The error of a prediction that is always the mean."""
    return _with_targets(test)[1].var(0, correction=0).sum().item()


def _with_targets(rows: Rows) -> tuple[torch.Tensor, torch.Tensor]:
    if rows.y is None:
        raise DataError("expected rows with targets; got y=None")
    return rows.x, rows.y


def run(*, quick: bool = False, data_dir: str | None = None) -> None:
    """Print the table for one seed, with the paper's numbers beside.

    Args:
        quick: Fewer epochs, and 10,000 images.
        data_dir: Folder of MNIST's four files; without it there are spirals alone.
    """
    print(f"{'':<34}" + "".join(f"{f'M={y_dim}':>12}" for y_dim in Y_DIMS))
    _print_part("spiral", quick, data_dir)
    if data_dir is not None:
        _print_part("mnist", quick, data_dir)


def _print_part(data: str, quick: bool, data_dir: str | None) -> None:
    pairs = [rows(data, y_dim=y_dim, seed=0, data_dir=data_dir) for y_dim in Y_DIMS]
    start: Any = "autoencoder"
    if data == "mnist":
        if quick:
            pairs = [(train.take(slice(10_000)), test) for train, test in pairs]
        start = cluster_images(
            pairs[0][0], 10, embedding="tsne" if quick else "umap", progress=False
        )
    _print_row(f"{data}: variance of the target", [variance(test) for _, test in pairs])
    for (of, name), errors in PAPER.items():
        if of == data:
            _print_row(f"{data}: paper, {name}", errors)
    for name in METHODS:
        print(f"{f'{data}: {name}':<34}", end="", flush=True)
        for train, test in pairs:
            measured = cell(name, data, train, test, seed=0, start=start, quick=quick)
            print(f"{measured['error']:>12.4f}", end="", flush=True)
        print()


def _print_row(label: str, errors: Any) -> None:
    print(f"{label:<34}" + "".join(f"{error:>12.4f}" for error in errors))
