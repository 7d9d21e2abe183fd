"""Where training may start: at random, or from a clustering of any origin.

A clustering is responsibilities r of shape (N, K). It gives every part of a story its start:
the prior its moments, the gate its labels, the experts their rows.
"""

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from pyro import poutine

from .clustering import cluster, expect_umap
from .context import reproducible, running
from .em import EM, maximize
from .errors import SiteError
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
