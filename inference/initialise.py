"""Where training may start: at random, or from a clustering of any origin.

A clustering is responsibilities r of shape (N, K). It gives every part of a story its start:
the prior its moments, the gate its labels, the experts their rows.
"""

from collections.abc import Iterator
from dataclasses import replace
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from pyro import poutine
from sklearn.manifold import TSNE
from sklearn.mixture import GaussianMixture

from .context import reproducible, running
from .em import EM, maximise
from .errors import SiteError
from .objectives import AssignedELBO, AtTheMean, Reconstruction, objective
from .svi import SVI

STARTS = ("random", "keep", "autoencoder", "tsne", "umap")


def phases(
    training: SVI | EM, start: str | torch.Tensor, *, epochs: int, num_components: int | None
) -> Iterator[tuple[str, SVI | EM]]:
    """The runs from a start through training, each to be done before the next is asked for.

    1. ``"autoencoder"``: encoder and decoder learn to reconstruct, without noise and prior. A
       story without a latent ``z`` takes x itself for codes.
    2. The codes are clustered, unless responsibilities are given, and each mixture takes the
       moments of its components in closed form.
    3. ``"assigned"``: the whole story learns with the assignments held at the responsibilities.
    4. ``"training"``: the objective asked for.

    Args:
        training: The last run.
        start: ``"random"`` and ``"keep"`` go to training at once; ``"autoencoder"`` clusters the
            codes, ``"tsne"`` and ``"umap"`` their neighbour embedding; a tensor (N, K) holds
            responsibilities.
        epochs: Passes over the data in run 1; run 3, which starts close, takes a fifth of them.
        num_components: K, for a clustering of the codes.

    Raises:
        SiteError: If the model has no assignment ``c``.
    """
    name = start if isinstance(start, str) else "responsibilities"
    if name in ("random", "keep"):
        yield "training", training
        return
    if num_components is None:
        raise SiteError(f"expected a site 'c' in the model for initialise={name!r}; got none")
    if name == "umap":
        _expect_umap()  # before the minutes of an autoencoder
    one_row = replace(training, data=tuple(column[:1] for column in training.data))
    has_codes = latent_means(one_row) is not None
    if isinstance(training, SVI) and has_codes:
        yield "autoencoder", _like(training, Reconstruction(), training.data, epochs)
    codes = latent_means(training) if has_codes else None
    points = training.data[0] if codes is None else codes
    if isinstance(start, str):
        embedding = start if start in ("tsne", "umap") else None
        start = cluster(points, num_components, embedding=embedding, seed=training.seed)
    start = start.to(points)
    maximise(training.model, start, points, *training.data)
    if isinstance(training, SVI):
        yield "assigned", _like(training, AssignedELBO(), (*training.data, start), -(-epochs // 5))
    yield "training", training


def _like(training: SVI, loss: Any, data: tuple[torch.Tensor, ...], epochs: int) -> SVI:
    elbo, treatment = objective(loss)
    return replace(training, elbo=elbo, treatment=treatment, data=data, epochs=epochs, history=[])


def latent_means(run: SVI | EM, rows_at_once: int = 4096) -> torch.Tensor | None:
    """The codes E[z|x], shape (N, L), or None if the guide has no site ``z``."""
    means = []
    with torch.no_grad(), reproducible(run.seed, 0, 3), running(run.store), AtTheMean():
        for batch in zip(*(column.split(rows_at_once) for column in run.data), strict=True):
            trace = poutine.trace(run.guide).get_trace(*batch)
            if "z" not in trace.nodes:
                return None
            means.append(trace.nodes["z"]["value"])
    return torch.cat(means)


def cluster(
    points: torch.Tensor, num_components: int, *, embedding: str | None = None, seed: int = 0
) -> torch.Tensor:
    """Responsibilities (N, K) of a full-covariance Gaussian mixture, the best of ten EM runs.

    Args:
        points: Shape (N, L).
        num_components: K.
        embedding: ``"tsne"`` or ``"umap"`` to cluster the points' neighbour embedding instead of
            the points.
        seed: Seed of the embedding and of the starts.
    """
    array = points.double().cpu().numpy()
    if embedding is not None:
        array = neighbour_embedding(array, embedding, seed=seed)
    mixture = GaussianMixture(num_components, n_init=10, reg_covar=1e-5, random_state=seed)
    return torch.as_tensor(mixture.fit(array).predict_proba(array))


def neighbour_embedding(points: np.ndarray, method: str, *, seed: int) -> np.ndarray:
    """Points embedded so that neighbours stay together and gaps open between groups.

    Args:
        points: Shape (N, L).
        method: ``"tsne"`` into the plane (scikit-learn's; up to some ten thousand rows), or
            ``"umap"`` into ten dimensions, with 20 neighbours and no minimal distance: settings
            for clustering rather than for pictures (McInnes, Healy, Melville 2018). It wants
            the extra ``pyro-moe[umap]``.
        seed: Seed of the embedding.

    Raises:
        ImportError: If umap-learn is asked for and not installed.
    """
    if method == "tsne":
        perplexity = min(30.0, (len(points) - 1) / 3)
        return TSNE(perplexity=perplexity, init="pca", random_state=seed).fit_transform(points)
    _expect_umap()
    from umap import UMAP

    reducer = UMAP(
        n_components=min(10, len(points) - 2),
        n_neighbors=min(20, len(points) - 1),
        min_dist=0.0,
        random_state=seed,
        n_jobs=1,
    )
    return reducer.fit_transform(points)


def _expect_umap() -> None:
    if find_spec("umap") is None:
        raise ImportError(
            "expected the package umap-learn for initialise='umap'; "
            "got none: pip install 'pyro-moe[umap]'"
        )
