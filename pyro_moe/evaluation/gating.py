"""The gate of a fitted story: the probability of each component given x."""

import math
from typing import Literal, overload

import torch
from pyro import poutine
from pyro.poutine import Trace
from pyro.poutine.util import prune_subsample_sites

from pyro_moe.fitted import Fit
from pyro_moe.inference.context import reproducible
from pyro_moe.inference.handlers import REPLICATES, SobolSamples, Undecided, log_probabilities
from pyro_moe.inference.traces import enumerated_traces, row_log_weights
from pyro_moe.rows import Data

from .traces import batches, missing_site

ROWS = 2048


@overload
def gate(
    fit: Fit,
    x: Data,
    *,
    num_samples: int = ...,
    seed: int = ...,
    return_error: Literal[False] = ...,
) -> torch.Tensor: ...
@overload
def gate(
    fit: Fit, x: Data, *, num_samples: int = ..., seed: int = ..., return_error: Literal[True]
) -> tuple[torch.Tensor, torch.Tensor]: ...
def gate(
    fit: Fit, x: Data, *, num_samples: int = 64, seed: int = 0, return_error: bool = False
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    r"""Compute the probability of each component for each row.

    .. math:: g_k(x) = E_{q(z \mid x)}\, q(c = k \mid x, z)

    The gate is exact if q(c|x) does not depend on z, as in a DMVAE. If it depends on a latent z, as
    in VaDE (paper §5.1), the expectation is estimated from scrambled Sobol points. For a smooth
    gate their error decreases nearly as 1/S, compared with 1/√S for the random samples of the
    paper. If the guide has no ``c``, the model's p(c|x, z) is used. Targets are ignored: a story
    with targets is run with None in their place.

    Args:
        fit: A fitted story with a site ``c``.
        x: Rows, shape (N, D).
        num_samples: S, points z for each row, a multiple of 8; unused where q(c|x) is exact.
        seed: Seed of the points.
        return_error: Whether to return the standard error as well.

    Returns:
        g of shape (N, K), with rows that sum to one. With ``return_error`` also its standard error,
        estimated from eight independent scramblings (zero if g is exact).

    Raises:
        SiteError: If neither guide nor model has a site ``c``.
    """
    if num_samples < REPLICATES or num_samples % REPLICATES:
        raise ValueError(
            f"expected num_samples to be a multiple of {REPLICATES}; got {num_samples}"
        )
    features = fit.features(x)
    means = gate_estimates(fit, features, num_samples, seed).exp()
    g, error = (part.to(features[0]) for part in (means.mean(0), means.std(0)))
    return (g, error / math.sqrt(len(means))) if return_error else g


def gate_estimates(
    fit: Fit, features: tuple[torch.Tensor | None, ...], num_samples: int, seed: int
) -> torch.Tensor:
    """Logarithms of independent estimates of the gate of all rows, shape (replicates, N, K)."""
    with torch.no_grad(), reproducible(seed):
        blocks = [_gate(fit, batch, num_samples) for batch in batches(features, ROWS)]
    return torch.cat(blocks, dim=1)


def _gate(fit: Fit, batch: tuple[torch.Tensor | None, ...], num_samples: int) -> torch.Tensor:
    """Log-estimates of the gate, shape (replicates, N, K), in double; equal if it is exact."""
    with SobolSamples(num_samples), Undecided():
        guide_trace = poutine.trace(fit.guide).get_trace(*batch)
    if "c" not in guide_trace.nodes:
        return _model_gate(fit, batch, num_samples)
    log_q = _log_assignment(guide_trace)
    if log_q.dim() == 2 and prune_subsample_sites(guide_trace).stochastic_nodes[0] == "c":
        return log_q.double().expand(2, *log_q.shape)
    if log_q.dim() == 2:  # c may depend on sites outside the plate, or discrete ones
        with Undecided():
            traces = (poutine.trace(fit.guide).get_trace(*batch) for _ in range(num_samples))
            log_q = torch.stack([*map(_log_assignment, traces)])
    return log_mean_exp(log_q.reshape(REPLICATES, -1, *log_q.shape[1:]), 1).double()


def log_mean_exp(logs: torch.Tensor, dim: int) -> torch.Tensor:
    """The logarithm of the mean of numbers that are given by their logarithms."""
    return logs.logsumexp(dim) - math.log(logs.shape[dim])


def _log_assignment(guide_trace: Trace) -> torch.Tensor:
    return log_probabilities(guide_trace.nodes["c"]["fn"])


def _model_gate(fit: Fit, batch: tuple[torch.Tensor | None, ...], num_samples: int) -> torch.Tensor:
    """Log-estimates of the gate for a guide without ``c``: p(c|x, z) at random samples z."""
    each: list[list[torch.Tensor]] = [[] for _ in range(REPLICATES)]
    model = poutine.block(fit.model, hide=["y"]) if None in batch else fit.model
    for sample in range(num_samples):
        traces = enumerated_traces(model, fit.guide, *batch)
        if "c" not in traces[0].nodes:
            raise missing_site("c", "guide or the model", *traces)
        each[sample % REPLICATES].append(row_log_weights(*traces).log_softmax(0).mT)
    return torch.stack([log_mean_exp(torch.stack(logs), 0) for logs in each])
