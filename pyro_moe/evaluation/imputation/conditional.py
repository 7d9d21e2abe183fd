"""The missing entries of rows given what is observed and the latent variables of a trace."""

from typing import Any

import torch
from pyro.poutine import Trace

from pyro_moe.distributions import condition
from pyro_moe.distributions.conditioning import Conditional
from pyro_moe.inference.handlers import is_assignment
from pyro_moe.inference.traces import joint_log_weights, layers

from ..traces import is_shared, node

WORST = -1e30  # replaces a log-weight of -inf, so that the weights of outlying rows are defined

Traces = tuple[Trace, Trace]


def conditioned(traces: Traces, observed: torch.Tensor) -> tuple[Any, Conditional]:
    """The site x, and its distribution given the observed entries.

    From then on the density of the site is that of the observed entries.

    Args:
        traces: Model and guide at all values of the assignments, of N rows.
        observed: Which entries are observed, shape (N, D).
    """
    site = node(traces[0], "x", "model")
    given = condition(site["fn"], site["value"], observed)
    site["log_prob"] = given.log_prob
    return site, given


def weights_given(traces: Traces, given: Conditional) -> torch.Tensor:
    """Log p(x_o, z, c) − log q(z), shape (J, N), for the J values of c on which x depends."""
    log_weights, shape = joint_log_weights(*traces), given.log_prob.shape
    for dim in layers(*traces).values():
        if dim < -len(shape) or shape[dim] == 1:  # x does not depend on it, except through z
            log_weights = log_weights.logsumexp(dim, keepdim=True)
    return log_weights.nan_to_num(nan=WORST, neginf=WORST).flatten(0, -2)


def is_latent(site: Any) -> bool:
    """Whether a site is a latent variable of each row besides assignments."""
    latent = site["type"] == "sample" and not site["is_observed"] and not is_assignment(site)
    return latent and not is_shared(site)
