"""The gate of a fitted story: the probability of each component given x."""

import math
from itertools import takewhile
from typing import Literal, overload

import torch
from pyro import poutine
from pyro.poutine import Trace
from pyro.poutine.util import prune_subsample_sites

from pyro_moe.fitted import Fit
from pyro_moe.inference.context import reproducible
from pyro_moe.inference.handlers import (
    REPLICATES,
    Enumerate,
    SobolSamples,
    Undecided,
    is_assignment,
    log_probabilities,
)
from pyro_moe.inference.traces import (
    enumerated_traces,
    joint_posterior,
    layers,
    marginal,
    other_latents,
)
from pyro_moe.rows import Data

from .traces import batches, missing_site

ROWS = 2048
Features = tuple[torch.Tensor | None, ...]


@overload
def gate(
    fit: Fit,
    x: Data,
    *,
    num_samples: int = ...,
    seed: int = ...,
    return_error: Literal[False] = ...,
    site: str = ...,
) -> torch.Tensor: ...
@overload
def gate(
    fit: Fit,
    x: Data,
    *,
    num_samples: int = ...,
    seed: int = ...,
    return_error: Literal[True],
    site: str = ...,
) -> tuple[torch.Tensor, torch.Tensor]: ...
def gate(
    fit: Fit,
    x: Data,
    *,
    num_samples: int = 64,
    seed: int = 0,
    return_error: bool = False,
    site: str = "c",
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    r"""Compute the probability of each component for each row.

    .. math:: g_k(x) = E_{q(z \mid x)}\, q(c = k \mid x, z)

    The gate is exact if q(c|x) does not depend on z, as in a DMVAE. If it depends on a latent z, as
    in VaDE (paper §5.1), the expectation is estimated from scrambled Sobol points. For a smooth
    gate their error decreases nearly as 1/S, compared with 1/√S for the random samples of the
    paper. If the guide has no ``c``, the model's p(c|x, z) is used. Targets are ignored: a story
    with targets is run with None in their place. In a story of several layers, those besides
    ``site`` are summed out.

    Args:
        fit: A fitted story with a site ``c``.
        x: Rows, shape (N, D).
        num_samples: S, points z for each row, a multiple of 8; unused where q(c|x) is exact.
        seed: Seed of the points.
        return_error: Whether to return the standard error as well.
        site: The assignment: ``"c"``, or a further layer such as ``"c1"``.

    Returns:
        g of shape (N, K), with rows that sum to one. With ``return_error`` also its standard error,
        estimated from eight independent scramblings (zero if g is exact).

    Raises:
        SiteError: If neither guide nor model has an assignment ``site``.
    """
    if num_samples < REPLICATES or num_samples % REPLICATES:
        raise ValueError(
            f"expected num_samples to be a multiple of {REPLICATES}; got {num_samples}"
        )
    features = fit.features(x)
    means = gate_estimates(fit, features, num_samples, seed, site).exp()
    g, error = (part.to(features[0]) for part in (means.mean(0), means.std(0)))
    return (g, error / math.sqrt(len(means))) if return_error else g


def gate_estimates(
    fit: Fit, features: Features, num_samples: int, seed: int, site: str = "c"
) -> torch.Tensor:
    """Logarithms of independent estimates of the gate of all rows, shape (replicates, N, K)."""
    with torch.no_grad(), reproducible(seed):
        blocks = [_gate(fit, batch, num_samples, site) for batch in batches(features, ROWS)]
    return torch.cat(blocks, dim=1)


def _gate(fit: Fit, batch: Features, num_samples: int, site: str) -> torch.Tensor:
    """Log-estimates of the gate, shape (replicates, N, K), in double; equal if it is exact."""
    with SobolSamples(num_samples), Undecided():
        guide_trace = poutine.trace(fit.guide).get_trace(*batch)
    sites = prune_subsample_sites(guide_trace)
    drawn = {name: is_assignment(sites.nodes[name]) for name in sites.stochastic_nodes}
    first = [*takewhile(drawn.get, drawn)]  # assignments before any other latent
    if site in first and len(first) > 1:
        with Enumerate():
            one = poutine.trace(fit.guide).get_trace(*batch)
        return _exact_gate(one, site)
    if [name for name in drawn if drawn[name]] != [site]:
        return _estimated_gate(fit, batch, num_samples, site)
    log_q = log_probabilities(guide_trace.nodes[site]["fn"])
    if log_q.dim() == 2 and first:
        return log_q.double().expand(2, *log_q.shape)
    if log_q.dim() == 2:  # c may depend on sites outside the plate, or discrete ones
        with Undecided():
            traces = (poutine.trace(fit.guide).get_trace(*batch) for _ in range(num_samples))
            log_q = torch.stack([log_probabilities(t.nodes[site]["fn"]) for t in traces])
    return log_mean_exp(log_q.reshape(REPLICATES, -1, *log_q.shape[1:]), 1).double()


def log_mean_exp(logs: torch.Tensor, dim: int) -> torch.Tensor:
    """The logarithm of the mean of numbers that are given by their logarithms."""
    return logs.logsumexp(dim) - math.log(logs.shape[dim])


def _exact_gate(guide_trace: Trace, site: str) -> torch.Tensor:
    """The gate of one of several layers that do not depend on z, (2, N, K)."""
    guide_trace.compute_log_prob(lambda name, node: is_assignment(node))
    dims = layers(guide_trace)
    total = torch.as_tensor(sum(guide_trace.nodes[name]["log_prob"] for name in dims))
    log_q = marginal(total, dims[site]).mT.double()
    return log_q.expand(2, *log_q.shape)


def _estimated_gate(fit: Fit, batch: Features, num_samples: int, site: str) -> torch.Tensor:
    """Log-estimates of the gate at random samples z, by p(c|x, z) for what the guide lacks."""
    each: list[list[torch.Tensor]] = [[] for _ in range(REPLICATES)]
    model = poutine.block(fit.model, hide=["y"]) if None in batch else fit.model
    for sample in range(num_samples):
        traces = enumerated_traces(model, fit.guide, *batch)
        dims = layers(*traces)
        if site not in dims:
            raise missing_site(site, "guide or the model", *traces)
        posterior = joint_posterior(*traces)
        whole = marginal(posterior, dims[site])
        each[sample % REPLICATES].append(whole.log_softmax(0).mT)
        if not {*other_latents(*traces)} - {"y"}:  # every sample would be the same
            return each[0][0].expand(2, -1, -1)
    return torch.stack([log_mean_exp(torch.stack(logs), 0) for logs in each])
