"""Bounds on the log density of each row."""

import math
from collections.abc import Callable

import torch
from pyro.poutine import Trace

from pyro_moe.fitted import Fit
from pyro_moe.inference.context import reproducible
from pyro_moe.inference.traces import (
    enumerated_traces,
    other_latents,
    row_bounds,
    row_log_weights,
)
from pyro_moe.rows import Data

from .traces import as_tensors, batches


def elbo(fit: Fit, data: Data, *, num_samples: int = 8, seed: int = 0) -> torch.Tensor:
    r"""The marginal ELBO of each row, a lower bound on log p(x), in nats.

    .. math:: L_n = E_{q(z, c \mid x_n)} [\log p(x_n, z, c) - \log q(z, c \mid x_n)]

    with ``c`` summed out exactly, for any training loss. The difference between the training
    objective and this bound is the bias of a relaxation. Terms outside the plate are not part of a
    row's bound.

    Args:
        fit: A fitted story.
        data: Rows. Use held-out rows to estimate the bound for new rows.
        num_samples: Samples of z to average over.
        seed: Seed of the samples.

    Returns:
        Bounds, shape (N,).

    Raises:
        DataError: If the data does not match what was fitted, or a target is impossible in the
            model.
    """
    return _over_samples(fit, data, row_bounds, num_samples, seed).mean(0)


def importance_weighted_bound(
    fit: Fit, data: Data, *, num_samples: int = 64, seed: int = 0
) -> torch.Tensor:
    r"""The importance-weighted bound on each row's log p(x), in nats (Burda et al. 2016).

    .. math:: L_n^S = E \log \frac{1}{S} \sum_{s=1}^S \sum_k
              \frac{p(x_n, z_s, c = k)}{q(z_s \mid x_n)}

    It increases to log p(x) as S grows. Terms outside the plate are not part of a row's bound.

    Args:
        fit: A fitted story.
        data: Rows. Use held-out rows to estimate the bound for new rows.
        num_samples: S.
        seed: Seed of the samples.

    Returns:
        Bounds, shape (N,).

    Raises:
        DataError: If the data does not match what was fitted, or a target is impossible in the
            model.
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
    """Values read from traces, shape (num_samples, N); (1, N) if only assignments are latent."""
    results = []
    with torch.no_grad(), reproducible(seed):
        for batch in batches(as_tensors(fit, data)):
            samples = []
            for _ in range(num_samples):
                model_trace, guide_trace = enumerated_traces(fit.model, fit.guide, *batch)
                samples.append(read(model_trace, guide_trace))
                if not other_latents(guide_trace, model_trace):
                    break  # every sample would be the same
            results.append(torch.stack(samples))
    return torch.cat(results, dim=-1)
