"""Initialization of training: at random, or from a clustering.

A clustering is a matrix of responsibilities r, shape (N, K), from any method. All parts of a
story are initialized from it: the prior by weighted moments, the gate by regression on r, and the
experts by weighted maximum likelihood.
"""

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from pyro import poutine

from .context import reproducible, running
from .em import EM, maximize
from .errors import SiteError
from .handlers import AtTheMean, where_incomplete
from .objectives import AssignedELBO, Reconstruction, objective
from .prior import FLAT, Prior, with_prior_rows
from .programs import Program, modules
from .protocols import TargetLikelihoods
from .rows import OnDisk
from .rows.order import chosen
from .starts.clustering import cluster, expect_umap, unit_variance
from .starts.labels import matched, with_labels
from .svi import SVI

NEGLIGIBLE = 1e-3  # weight of a row
STARTS = ("random", "keep", "autoencoder", "tsne", "umap")


def phases(
    training: SVI | EM, start: str | torch.Tensor, *, epochs: int, num_components: int | None
) -> Iterator[tuple[str, SVI | EM]]:
    """Yield the phases of training in order. Complete each before asking for the next.

    1. ``"autoencoder"``: encoder and decoder are trained to reconstruct x, without noise and
       prior. A story without a latent ``z`` skips this phase, and x itself is clustered.
    2. The codes E[z|x] are clustered, unless responsibilities are given. Each part takes its
       M-step given the responsibilities, for example weighted moments for a Gaussian mixture and
       weighted least squares for affine normal experts. Targets, if there are any, then correct
       the clustering, see `corrected`.
    3. ``"assigned"``: all parameters are trained with q(c) fixed at the responsibilities.
    4. ``"training"``: the requested objective.

    Of rows on disk, phases 2 and 3 have a sample, and as many steps as with all rows.

    Args:
        training: The run of phase 4.
        start: ``"random"`` and ``"keep"`` skip to phase 4. ``"autoencoder"`` clusters the codes,
            ``"tsne"`` and ``"umap"`` their neighbor embedding. A tensor (N, K) is taken as
            responsibilities.
        epochs: Epochs of phase 1. Phase 3 takes a fifth of them.
        num_components: K, or None for a model without ``c``.

    Yields:
        The name of a phase and its run.

    Raises:
        SiteError: If the model has no assignment ``c`` and ``start`` requires one.
    """
    name = start if isinstance(start, str) else "responsibilities"
    if name in ("random", "keep"):
        yield "training", training
        return
    if num_components is None:
        raise SiteError(f"expected a site 'c' in the model for initialize={name!r}; got none")
    if name == "umap":
        expect_umap()  # fail before the autoencoder is trained, which takes minutes
    one_row = replace(training, data=tuple(column[:1] for column in training.data))
    has_codes = latent_means(one_row) is not None
    if isinstance(training, SVI) and has_codes:
        yield "autoencoder", _like(training, Reconstruction(), training.data, epochs)
    rows = _rows_to_cluster(training)
    some: Any = replace(
        training,
        data=tuple(column[rows] for column in training.data),
        annotations=training.annotations.take(rows),
    )
    codes = latent_means(some) if has_codes else None
    points = some.data[0] if codes is None else codes
    if isinstance(start, str):
        embedding = start if start in ("tsne", "umap") else None
        space = standardized(training.model, points) if codes is None else codes
        start = cluster(space, num_components, embedding=embedding, seed=training.seed)
        start = matched(start.to(points), some.annotations)
    else:
        start = start[rows]
    start = with_labels(start.to(points), some.annotations)
    start = corrected(some, start, points)
    if isinstance(training, SVI):
        total, number = some.annotations.total(len(points)), len(points)
        elbo = AssignedELBO(prior=prior_of(training), num_rows=number, mean_weight=total / number)
        again = math.ceil(math.ceil(epochs / 5) * len(training.data[0]) / number)
        yield "assigned", _like(some, elbo, some.data, again, start)
    yield "training", training


def _rows_to_cluster(run: SVI | EM) -> Any:
    """All rows, or the numbers of some if they are on disk."""
    return chosen(run.data, run.seed) if isinstance(run.data[0], OnDisk) else slice(None)


def standardized(model: Program, x: torch.Tensor) -> torch.Tensor:
    """Rows x, shape (N, D), in double precision and in the units of a story that has them.

    For others each column has unit variance.
    """
    for story in modules(model):
        units = getattr(story, "units", None)
        if isinstance(units, torch.nn.Module):
            return units(x.double()).nan_to_num(0.0)  # means in place of missing entries
    return unit_variance(x.double())


def corrected(
    run: SVI | EM, responsibilities: torch.Tensor, points: torch.Tensor, *, iterations: int = 20
) -> torch.Tensor:
    r"""Initialize the parts from a clustering, and correct the clustering by the targets.

    .. math:: p(c_n = k \mid x_n, y_n) \propto \Big[ \sum_j r_{nj} A_{jk} \Big]\,
              \big[ (1 - \epsilon)\, p_k(y_n \mid x_n) + \epsilon\, b(y_n \mid x_n) \big]

    EM estimates the parts, the confusion matrix A and the share ε of background rows. A_jk is the
    probability that a row of cluster j belongs to component k. It is needed because clusterings
    are overconfident. With a few percent of misassigned rows, the experts' least squares give
    variances so large that no target could change an assignment if r were taken as the prior.

    The background density b is the average of the experts after the first M-step, whose variances
    are large. Rows that b explains better than the experts have small weights in the M-steps.
    Without b, one expert absorbs all such rows and keeps a large variance.

    Args:
        run: The run. The parts of its model are updated in place.
        responsibilities: r, shape (N, K).
        points: The points of the mixture, x or codes, shape (N, L).
        iterations: Maximum number of EM iterations.

    Returns:
        Corrected responsibilities, shape (N, K). A story without `target_log_likelihoods` takes
        one M-step, and the given responsibilities are returned.
    """
    r = current = responsibilities
    given = run.annotations.weights
    given = None if given is None else given.to(r)
    times = torch.ones_like(r[:, :1]) if given is None else given.unsqueeze(-1)
    weights = r
    num_components = r.shape[1]
    confusion = 0.9 * torch.eye(num_components).to(r) + 0.1 / num_components
    background, share, p = None, 0.05, prior_of(run)
    if p.rows < NEGLIGIBLE * times.sum():
        p = FLAT
    for _ in range(iterations):
        rows, places, data = with_prior_rows(
            p, weights, points, run.data, seed=run.seed, weights=given
        )
        maximize(run.model, rows, places, *data)
        log_likelihoods = target_log_likelihoods(run)
        if log_likelihoods is None:
            break
        if background is None:
            background = log_likelihoods.logsumexp(-1, keepdim=True) - math.log(num_components)
        prior = r @ confusion
        explained = math.log1p(-share) + log_likelihoods
        unexplained = math.log(share) + background
        posterior = (prior.log() + torch.logaddexp(explained, unexplained)).softmax(-1)
        posterior = with_labels(posterior, run.annotations)
        confusion = confusion * (r.mT @ (times * posterior / prior)) + 1e-9
        confusion = confusion / confusion.sum(-1, keepdim=True)
        weights = posterior * (explained - unexplained).sigmoid()
        unexplained_share = 1.0 - ((times * weights).sum() / times.sum()).item()
        share = min(max(unexplained_share, 1e-4), 0.5)
        # M-steps skip rows of zero weight
        weights = torch.where(weights < NEGLIGIBLE, 0.0, weights)
        before, current = current, posterior
        if (times * (current - before)).abs().sum() < 1e-3 * times.sum():
            break
    return current


def prior_of(run: SVI | EM) -> Prior:
    """The prior of the parameters."""
    return run.prior if isinstance(run, EM) else getattr(run.elbo, "prior", FLAT)


def target_log_likelihoods(run: SVI | EM, rows_at_once: int = 4096) -> torch.Tensor | None:
    """Log p_k(y|x), shape (N, K), or None if the story has no method of this name."""
    if len(run.data) < 2:
        return None
    for story in modules(run.model):
        if isinstance(story, TargetLikelihoods):
            rows = run.data[:2]
            batches = zip(*(column.split(rows_at_once) for column in rows), strict=True)
            with torch.no_grad(), running(run.store), where_incomplete(*rows):
                return torch.cat([story.target_log_likelihoods(*batch) for batch in batches])
    return None


def _like(
    training: SVI,
    loss: Any,
    data: tuple[torch.Tensor, ...],
    epochs: int,
    labels: torch.Tensor | None = None,
) -> SVI:
    """A phase before the training, whose bound on held-out rows does not tell when to stop."""
    elbo, treatment = objective(loss)
    phase = replace(training, elbo=elbo, treatment=treatment, data=data, epochs=epochs, history=[])
    annotations = replace(training.annotations, labels=labels)
    return replace(phase, held_out=None, patience=None, annotations=annotations)


def latent_means(run: SVI | EM, rows_at_once: int = 4096) -> torch.Tensor | None:
    """The codes E[z|x] under the guide, shape (N, L), or None if it has no site ``z``."""
    means = []
    incomplete = where_incomplete(*run.data)
    with torch.no_grad(), reproducible(run.seed, 0, 3), running(run.store), incomplete, AtTheMean():
        for batch in zip(*(column.split(rows_at_once) for column in run.data), strict=True):
            trace = poutine.trace(run.guide).get_trace(*batch)
            if "z" not in trace.nodes:
                return None
            means.append(trace.nodes["z"]["value"])
    return torch.cat(means)
