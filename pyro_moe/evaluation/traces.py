"""Minibatches of rows, and sites of the traces of a fitted story."""

import copy
from collections.abc import Iterator
from itertools import repeat
from typing import Any

import torch
from pyro import poutine
from pyro.poutine import Trace
from pyro.poutine.util import prune_subsample_sites

from pyro_moe.distributions import Observed
from pyro_moe.fitted import Fit
from pyro_moe.inference.context import reproducible
from pyro_moe.inference.errors import DataError, SiteError
from pyro_moe.inference.handlers import Discretize
from pyro_moe.inference.traces import is_in_plate
from pyro_moe.rows import Data

from .marginals import of_one_column

ROWS = 4096


def batches(columns: tuple[Any, ...], rows: int = ROWS) -> Iterator[tuple[Any, ...]]:
    """Minibatches of the arguments of a model and a guide, None for what is not known.

    Args:
        columns: What `Fit.as_tensors` or `Fit.features` gave: tensors of N rows each, or None.
        rows: In a minibatch.
    """
    number = -(-len(columns[0]) // rows)
    parts = (repeat(None, number) if each is None else each.split(rows) for each in columns)
    return zip(*parts, strict=True)


def shared_latents(fit: Fit) -> dict[str, torch.Tensor]:
    """A draw from the guide of the shared latent variables: those outside the plate."""
    trace = poutine.trace(fit.guide).get_trace(*fit.example)
    sites = prune_subsample_sites(trace).nodes
    return {
        name: sites[name]["value"]
        for name in trace.stochastic_nodes
        if name in sites and is_shared(sites[name])
    }


def observed_sites(fit: Fit) -> list[str]:
    """Names of the observed sites of the model."""
    with torch.no_grad(), reproducible(0), Discretize():
        trace = poutine.trace(fit.model).get_trace(*fit.example)
    return [name for name in trace.observation_nodes if not is_shared(trace.nodes[name])]


def as_tensors(fit: Fit, data: Data) -> tuple[torch.Tensor, ...]:
    """Data like the fitted data as tensors, see `Fit.as_tensors`, with targets that are possible.

    Raises:
        DataError: As in `Fit.as_tensors`; and if a target is outside of the support of the model's
            site ``y``, such as a class that the model does not have.
    """
    columns = fit.as_tensors(data)
    if len(columns) > 1:
        with torch.no_grad(), reproducible(0), Discretize():
            for i, batch in enumerate(batches(columns)):
                trace = poutine.trace(fit.model).get_trace(*batch)
                if "y" in trace.observation_nodes:
                    check_support("y", trace.nodes["y"], i * ROWS)
    return columns


def check_support(name: str, site: Any, first_row: int = 0) -> None:
    """Check that the observed values of a site are in the support of its distribution.

    Args:
        name: Name of the site.
        site: The site of a trace.
        first_row: The number of its first row in the data.

    Raises:
        DataError: If a value is not.
    """
    support, value = site["fn"].support, site["value"]
    if isinstance(site["fn"], Observed):
        value = torch.where(site["fn"].observed, value, site["fn"].p.mean)
    possible = support.check(value)
    if possible.all():
        return
    value, possible = torch.atleast_1d(value), torch.atleast_1d(possible)
    row = int((~possible).reshape(len(value), -1).any(-1).nonzero()[0])
    base = _of_row(of_one_column(support), row, len(value))
    offending = value[row].flatten()[~base.check(value[row].flatten())].flatten()
    hint = ""
    if isinstance(base, type(torch.distributions.constraints.boolean)) and 0 < offending[0] < 1:
        hint = "; for gray values between 0 and 1 use likelihood='continuous-bernoulli'"
    raise DataError(
        f"expected values of site {name!r} in the support of its distribution, {base}; "
        f"got {offending[0].item():.6g} in row {first_row + row}{hint}"
    )


def _of_row(constraint: Any, row: int, num_rows: int) -> Any:
    """A constraint with the limits of one row, if each row has its own."""
    found = copy.copy(constraint)
    for name, limit in vars(constraint).items():
        if torch.is_tensor(limit):
            own = limit[row] if limit.dim() and len(limit) == num_rows else limit
            setattr(found, name, own.item() if own.numel() == 1 else own)
    return found


def is_shared(site: Any) -> bool:
    """Whether a site of a trace is outside the plate ``"data"``."""
    return not is_in_plate(site)


def node(trace: Trace, site: str, program: str) -> Any:
    """A site of a trace.

    Raises:
        SiteError: If there is no site of that name.
    """
    if site not in trace.nodes:
        raise missing_site(site, program, trace)
    return trace.nodes[site]


def missing_site(site: str, program: str, *traces: Trace) -> SiteError:
    """The error to raise if a site is in none of the traces."""
    names = {
        name
        for trace in traces
        for name, node in trace.nodes.items()
        if node["type"] == "sample" and not poutine.util.site_is_subsample(node)
    }
    return SiteError(f"expected a site {site!r} in the {program}; got sites {sorted(names)}")
