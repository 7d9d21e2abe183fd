"""What a fitted story says of rows: gate, predictions, codes, reconstructions, samples, bounds.

Everything is read off the traces of whatever model and guide were fitted, by the names of their
sites; no story is asked for its class.
"""

import math
from collections.abc import Callable

import torch
from pyro import poutine
from pyro.poutine import Trace

from pyro_moe.inference.context import reproducible
from pyro_moe.inference.objectives import (
    AtTheMean,
    enumerated_traces,
    row_bounds,
    row_log_weights,
)
from pyro_moe.inference.relaxation import Discretize

from .fitting import Fit
from .gating import gate
from .imputation import Imputation, impute
from .novelty import Novelty, novelty
from .prediction import Prediction, predict
from .reading import batches, feature_batches, node, shared_latents
from .rows import Data
from .scores import classification_scores, clustering_scores, regression_scores

__all__ = [
    "Imputation",
    "Novelty",
    "Prediction",
    "classification_scores",
    "clustering_scores",
    "elbo",
    "encode",
    "gate",
    "importance_weighted_bound",
    "impute",
    "novelty",
    "predict",
    "reconstruct",
    "regression_scores",
    "sample",
]


def encode(fit: Fit, x: Data) -> torch.Tensor:
    r"""The latent means :math:`E_q[z \mid x]`.

    Args:
        fit: A fitted story with a site ``z``.
        x: Rows, shape (N, D).

    Returns:
        Codes, shape (N, L).

    Raises:
        SiteError: If the guide has no site ``z``.
    """
    return _at_the_mean(fit, x, lambda guide, model: node(guide, "z", "guide")["value"])


def reconstruct(fit: Fit, x: Data) -> torch.Tensor:
    r"""What the story makes of each row's code, :math:`E[x \mid z = E_q[z \mid x]]`.

    Args:
        fit: A fitted story with sites ``z`` and ``x``.
        x: Rows, shape (N, D).

    Returns:
        Reconstructions, shape (N, D).

    Raises:
        SiteError: If the guide has no site ``z``, or the model no site ``x``.
    """

    def mean_of_x(guide: Trace, model: Trace) -> torch.Tensor:
        node(guide, "z", "guide")
        return node(model, "x", "model")["fn"].mean

    return _at_the_mean(fit, x, mean_of_x)


def _at_the_mean(fit: Fit, x: Data, read: Callable[[Trace, Trace], torch.Tensor]) -> torch.Tensor:
    results = []
    with torch.no_grad(), reproducible(0), Discretize():
        for batch in feature_batches(fit, x):
            with AtTheMean():
                guide_trace = poutine.trace(fit.guide).get_trace(*batch)
            replayed = poutine.replay(fit.model, trace=guide_trace)
            model_trace = poutine.trace(replayed).get_trace(*batch)
            results.append(read(guide_trace, model_trace))
    return torch.cat(results)


def sample(
    fit: Fit,
    num_samples: int,
    *,
    component: int | None = None,
    noise: bool = True,
    seed: int = 0,
) -> torch.Tensor:
    r"""Rows that the story generates, of all components or of one: :math:`x \sim p(x \mid c = k)`.

    Latent variables of a row come from the model, those that rows share from the guide: the
    draws are of the posterior predictive distribution of new rows.

    Args:
        fit: A fitted story with a site ``x``.
        num_samples: N, rows to draw.
        component: k, or None for c ~ p(c).
        noise: Whether to draw x given z, rather than take its mean, the smooth picture.
        seed: Seed of the draws.

    Returns:
        Rows, shape (N, D).

    Raises:
        SiteError: If the model has no site ``x``, or ``component`` is given and it has no ``c``.
        ValueError: If there is no such component.
    """
    template = tuple(column[:1].expand(num_samples, *column.shape[1:]) for column in fit.run.data)
    with torch.no_grad(), reproducible(seed), Discretize():
        model = poutine.condition(poutine.uncondition(fit.model), shared_latents(fit))
        trace = poutine.trace(model).get_trace(*template)
        if component is not None:
            num_components = node(trace, "c", "model")["value"].shape[-1]
            if not 0 <= component < num_components:
                raise ValueError(
                    f"expected component from 0 to {num_components - 1}; got {component}"
                )
            c = torch.zeros_like(trace.nodes["c"]["value"])
            c[..., component] = 1.0
            trace = poutine.trace(poutine.condition(model, {"c": c})).get_trace(*template)
        site = node(trace, "x", "model")
        return site["value"] if noise else site["fn"].mean


def elbo(fit: Fit, data: Data, *, num_samples: int = 8, seed: int = 0) -> torch.Tensor:
    r"""The marginal ELBO of each row, a lower bound on log p(x), in nats.

    .. math:: L_n = E_{q(z, c \mid x_n)} [\log p(x_n, z, c) - \log q(z, c \mid x_n)]

    with ``c`` summed out exactly, whatever loss was trained on; the gap between the two is a
    measure of what a relaxation costs. Terms outside the plate are not part of a row's bound.

    Args:
        fit: A fitted story.
        data: Rows, held out if the bound is to say something about new ones.
        num_samples: Samples of z to average over.
        seed: Seed of the samples.

    Returns:
        Bounds, shape (N,).
    """
    return _over_samples(fit, data, row_bounds, num_samples, seed).mean(0)


def importance_weighted_bound(
    fit: Fit, data: Data, *, num_samples: int = 64, seed: int = 0
) -> torch.Tensor:
    r"""The importance-weighted bound on each row's log p(x), in nats (Burda et al. 2016).

    .. math:: L_n^S = E \log \frac{1}{S} \sum_{s=1}^S \sum_k
              \frac{p(x_n, z_s, c = k)}{q(z_s \mid x_n)}

    It rises to log p(x) as S grows. Terms outside the plate are not part of a row's bound.

    Args:
        fit: A fitted story.
        data: Rows, held out if the bound is to say something about new ones.
        num_samples: S.
        seed: Seed of the samples.

    Returns:
        Bounds, shape (N,).
    """

    def log_weight(model_trace: Trace, guide_trace: Trace) -> torch.Tensor:
        return row_log_weights(model_trace, guide_trace).logsumexp(0)

    log_weights = _over_samples(fit, data, log_weight, num_samples, seed)
    return log_weights.logsumexp(0) - math.log(len(log_weights))


def _over_samples(
    fit: Fit,
    data: Data,
    read: Callable[[Trace, Trace], torch.Tensor],
    num_samples: int,
    seed: int,
) -> torch.Tensor:
    """What is read off traces, shape (num_samples, N); (1, N) if nothing but c is latent."""
    results = []
    with torch.no_grad(), reproducible(seed):
        for batch in batches(fit, data):
            samples = []
            for _ in range(num_samples):
                model_trace, guide_trace = enumerated_traces(fit.model, fit.guide, *batch)
                samples.append(read(model_trace, guide_trace))
                drawn = {*guide_trace.stochastic_nodes, *model_trace.stochastic_nodes}
                if not drawn - {"c"}:
                    break  # every sample would be the same
            results.append(torch.stack(samples))
    return torch.cat(results, dim=-1)
