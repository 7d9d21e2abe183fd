"""Test quantities: functions of parameters and data whose true values are ranked."""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from pyro import poutine

from pyro_moe.evaluation.traces import is_shared
from pyro_moe.fitted import Fit
from pyro_moe.inference.context import reproducible
from pyro_moe.inference.traces import enumerated_traces, other_latents, row_log_weights

from .prior import Columns, Values, prior_trace, simulate, was_observed

Quantity = Callable[[Values, Columns], Any]
MOST = 20


def default_quantities(given: Fit) -> dict[str, Quantity]:
    """The first entries of the latent variables outside the plate, and the log-likelihood."""
    latent, _ = simulate(given, 0)
    entries = [(name, index) for name, v in latent.items() for index in np.ndindex(*v.shape)]
    quantities: dict[str, Quantity] = {}
    for name, index in entries[:MOST]:
        label = f"{name}[{', '.join(map(str, index))}]" if index else name
        quantities[label] = partial(_entry, name, index)
    with torch.no_grad(), reproducible(0):
        trace = prior_trace(given)
    of_rows = [n for n in other_latents(trace) if not is_shared(trace.nodes[n])]
    if all(was_observed(trace, n) for n in of_rows):
        quantities["log_likelihood"] = partial(_log_likelihood, given)
    return quantities


def _entry(site: str, index: tuple[int, ...], values: Values, columns: Columns) -> torch.Tensor:
    return values[site][index]


def _log_likelihood(given: Fit, values: Values, columns: Columns) -> torch.Tensor:
    """Log p(x, y | θ) of all rows together, with ``c`` summed out."""
    conditioned = poutine.condition(given.model, values)
    with reproducible(0):
        traces = enumerated_traces(conditioned, lambda *columns: None, *columns)
    return row_log_weights(*traces).logsumexp(0).sum()
