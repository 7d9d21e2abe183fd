"""The gate of a fitted story: the probability of each component given x."""

import math
from typing import Literal, overload

import torch
from pyro import poutine
from pyro.poutine import Trace
from pyro.poutine.util import prune_subsample_sites

from pyro_moe.fitted import Fit
from pyro_moe.inference.context import reproducible
from pyro_moe.inference.handlers import REPLICATES, Discretize, SobolSamples, log_probabilities
from pyro_moe.inference.traces import enumerated_traces, row_log_weights
from pyro_moe.rows import Data

from .traces import batches, missing_site


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
    means = gate_estimates(fit, fit.features(x), num_samples, seed)
    g = means.mean(0)
    return (g, means.std(0) / math.sqrt(len(means))) if return_error else g


def gate_estimates(
    fit: Fit, features: tuple[torch.Tensor | None, ...], num_samples: int, seed: int
) -> torch.Tensor:
    """Independent estimates of the gate of all rows, shape (replicates, N, K)."""
    with torch.no_grad(), reproducible(seed):
        blocks = [_gate(fit, batch, num_samples) for batch in batches(features, 1024)]
    return torch.cat(blocks, dim=1)


def _gate(fit: Fit, batch: tuple[torch.Tensor | None, ...], num_samples: int) -> torch.Tensor:
    """Independent estimates of the gate, shape (replicates, N, K); equal if it is exact."""
    with SobolSamples(num_samples), Discretize():
        guide_trace = poutine.trace(fit.guide).get_trace(*batch)
    if "c" not in guide_trace.nodes:
        return _model_gate(fit, batch, num_samples)
    probs = _assignment_probs(guide_trace)
    if probs.dim() == 2 and prune_subsample_sites(guide_trace).stochastic_nodes[0] == "c":
        return probs.expand(2, *probs.shape)
    if probs.dim() == 2:  # c may depend on sites outside the plate, or discrete ones
        with Discretize():
            traces = (poutine.trace(fit.guide).get_trace(*batch) for _ in range(num_samples))
            probs = torch.stack([*map(_assignment_probs, traces)])
    return probs.reshape(REPLICATES, -1, *probs.shape[1:]).mean(1)


def _assignment_probs(guide_trace: Trace) -> torch.Tensor:
    return log_probabilities(guide_trace.nodes["c"]["fn"]).exp()


def _model_gate(fit: Fit, batch: tuple[torch.Tensor | None, ...], num_samples: int) -> torch.Tensor:
    """Estimates of the gate for a guide without ``c``: p(c|x, z) at random samples z."""
    sums = [torch.tensor(0.0)] * REPLICATES
    model = poutine.block(fit.model, hide=["y"]) if None in batch else fit.model
    for sample in range(num_samples):
        traces = enumerated_traces(model, fit.guide, *batch)
        if "c" not in traces[0].nodes:
            raise missing_site("c", "guide or the model", *traces)
        sums[sample % REPLICATES] = sums[sample % REPLICATES] + row_log_weights(*traces).softmax(0)
    return torch.stack(sums).mT * (REPLICATES / num_samples)
