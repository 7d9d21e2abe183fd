"""Where training may start: at random, or from a clustering of any origin.

A clustering is responsibilities r of shape (N, K). It gives every part of a story its start:
the prior its moments, the gate its labels, the experts their rows.
"""

import math
from collections.abc import Iterator
from dataclasses import replace
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from pyro import poutine
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE
from sklearn.mixture import GaussianMixture

from .context import reproducible, running
from .em import EM, maximize
from .errors import DataError, SiteError
from .handlers import AtTheMean
from .objectives import AssignedELBO, Reconstruction, objective
from .programs import modules
from .protocols import TargetLikelihoods
from .svi import SVI

STARTS = ("random", "keep", "autoencoder", "tsne", "umap")


def phases(
    training: SVI | EM, start: str | torch.Tensor, *, epochs: int, num_components: int | None
) -> Iterator[tuple[str, SVI | EM]]:
    """The runs from a start through training, each to be done before the next is asked for.

    1. ``"autoencoder"``: encoder and decoder learn to reconstruct, without noise and prior. A
       story without a latent ``z`` takes x itself for codes.
    2. The codes are clustered, unless responsibilities are given, and each part takes its M-step:
       a mixture the moments of its components, experts their weighted least squares. Targets,
       if there are any, then correct the clustering, see `corrected`.
    3. ``"assigned"``: the whole story learns with the assignments held at the responsibilities.
    4. ``"training"``: the objective asked for.

    Args:
        training: The last run.
        start: ``"random"`` and ``"keep"`` go to training at once; ``"autoencoder"`` clusters the
            codes, ``"tsne"`` and ``"umap"`` their neighbor embedding; a tensor (N, K) holds
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
        raise SiteError(f"expected a site 'c' in the model for initialize={name!r}; got none")
    if name == "umap":
        expect_umap()  # before the minutes of an autoencoder
    one_row = replace(training, data=tuple(column[:1] for column in training.data))
    has_codes = latent_means(one_row) is not None
    if isinstance(training, SVI) and has_codes:
        yield "autoencoder", _like(training, Reconstruction(), training.data, epochs)
    codes = latent_means(training) if has_codes else None
    points = training.data[0] if codes is None else codes
    if isinstance(start, str):
        embedding = start if start in ("tsne", "umap") else None
        start = cluster(points, num_components, embedding=embedding, seed=training.seed)
    start = corrected(training, start.to(points), points)
    if isinstance(training, SVI):
        yield "assigned", _like(training, AssignedELBO(), (*training.data, start), -(-epochs // 5))
    yield "training", training


def corrected(
    run: SVI | EM, responsibilities: torch.Tensor, points: torch.Tensor, *, iterations: int = 20
) -> torch.Tensor:
    r"""Take the M-steps of a clustering of x, and correct it where the targets contradict it.

    .. math:: p(c = k \mid x, y) \propto \Big[ \sum_j r_j A_{jk} \Big]\,
              \big[ (1 - \epsilon)\, p_k(y \mid x) + \epsilon\, b(y \mid x) \big]

    by EM on the experts, on A, the chance that a row of cluster j belongs to component k, and on
    ε. Clusterers are surer of themselves than they are right: a few per cent of rows in a wrong
    cluster make each expert's least squares so wide that no row's target would ever move it.

    The background b is the average of the experts as they first come out, wide: a row that b
    explains better than all experts teaches none of them. Without it one expert becomes the one
    for all such rows, and stays wide, while the others come to know theirs exactly.

    Args:
        run: The run, whose model's parts are set.
        responsibilities: r, shape (N, K).
        points: What mixtures are over, x or codes, shape (N, L).
        iterations: Of EM, at the most.

    Returns:
        Responsibilities (N, K), those given for a story without `target_log_likelihoods`.
    """
    r = current = weights = responsibilities
    num_components = r.shape[1]
    confusion = 0.9 * torch.eye(num_components).to(r) + 0.1 / num_components
    background, share = None, 0.05
    for _ in range(iterations):
        maximize(run.model, weights, points, *run.data)
        log_likelihoods = target_log_likelihoods(run)
        if log_likelihoods is None:
            break
        if background is None:
            background = log_likelihoods.logsumexp(-1, keepdim=True) - math.log(num_components)
        prior = r @ confusion
        explained = math.log1p(-share) + log_likelihoods
        unexplained = math.log(share) + background
        posterior = (prior.log() + torch.logaddexp(explained, unexplained)).softmax(-1)
        confusion = confusion * (r.mT @ (posterior / prior)) + 1e-9
        confusion = confusion / confusion.sum(-1, keepdim=True)
        weights = posterior * (explained - unexplained).sigmoid()
        share = min(max(1.0 - weights.sum(-1).mean().item(), 1e-4), 0.5)
        weights = torch.where(weights < 1e-3, 0.0, weights)  # each row is then read about once
        before, current = current, posterior
        if (current - before).abs().sum(-1).mean() < 1e-3:
            break
    return current


def target_log_likelihoods(run: SVI | EM, rows_at_once: int = 4096) -> torch.Tensor | None:
    """Log p_k(y|x) of each row, shape (N, K), by the story's method of that name, if it has one."""
    if len(run.data) < 2:
        return None
    for story in modules(run.model):
        if isinstance(story, TargetLikelihoods):
            batches = zip(*(column.split(rows_at_once) for column in run.data), strict=True)
            with torch.no_grad(), running(run.store):
                return torch.cat([story.target_log_likelihoods(*batch) for batch in batches])
    return None


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
        points: Shape (N, L); of more than 50 columns, as of images, 50 principal components.
        num_components: K.
        embedding: ``"tsne"`` or ``"umap"`` to cluster the points' neighbor embedding instead of
            the points.
        seed: Seed of the embedding and of the starts.
    """
    array = points.double().cpu().numpy()
    if min(array.shape) > 50:
        array = PCA(50, random_state=seed).fit_transform(array)
    if embedding is not None:
        array = neighbor_embedding(array, embedding, seed=seed)
    mixture = GaussianMixture(num_components, n_init=10, reg_covar=1e-5, random_state=seed)
    return torch.as_tensor(mixture.fit(array).predict_proba(array))


def neighbor_embedding(points: np.ndarray, method: str, *, seed: int) -> np.ndarray:
    """Points embedded so that neighbors stay together and gaps open between groups.

    Args:
        points: Shape (N, L).
        method: ``"tsne"`` into the plane (scikit-learn's; up to some ten thousand rows), or
            ``"umap"`` into ten dimensions, with 20 neighbors and no minimal distance: settings
            for clustering rather than for pictures (McInnes, Healy, Melville 2018). It wants
            the extra ``pyro-moe[umap]``.
        seed: Seed of the embedding.

    Raises:
        DataError: If all points are the same.
        ImportError: If umap-learn is asked for and not installed.
    """
    if (points == points[0]).all():  # where scikit-learn's t-SNE ends the whole process
        raise DataError("expected rows whose codes differ; got one code for all rows")
    if method == "tsne":
        perplexity = min(30.0, (len(points) - 1) / 3)
        return TSNE(perplexity=perplexity, init="pca", random_state=seed).fit_transform(points)
    expect_umap()
    from umap import UMAP

    reducer = UMAP(
        n_components=min(10, len(points) - 2),
        n_neighbors=min(20, len(points) - 1),
        min_dist=0.0,
        random_state=seed,
        n_jobs=1,
    )
    return reducer.fit_transform(points)


def expect_umap() -> None:
    """See that umap-learn is there.

    Raises:
        ImportError: If it is not.
    """
    if find_spec("umap") is None:
        raise ImportError(
            "expected the package umap-learn for initialize='umap'; "
            "got none: pip install 'pyro-moe[umap]'"
        )
