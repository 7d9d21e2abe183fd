"""Reading a fitted story: its rows in minibatches, and the sites of its traces by name."""

from collections.abc import Iterator
from typing import Any

import torch
from pyro import poutine
from pyro.poutine import Trace

from pyro_moe.inference.errors import SiteError

from .fitting import Fit
from .rows import Data


def batches(fit: Fit, data: Data, rows: int = 4096) -> Iterator[tuple[torch.Tensor, ...]]:
    """Minibatches of data of the kind that was fitted."""
    return zip(*(column.split(rows) for column in fit.as_tensors(data)), strict=True)


def feature_batches(
    fit: Fit, data: Data, rows: int = 4096
) -> Iterator[tuple[torch.Tensor | None, ...]]:
    """Minibatches of x, with None for what was fitted beside it."""
    x, *others = fit.features(data)
    return ((batch, *others) for batch in x.split(rows))


def node(trace: Trace, site: str, program: str) -> Any:
    """A site of a trace.

    Raises:
        SiteError: If there is none of that name.
    """
    if site not in trace.nodes:
        raise missing_site(site, program, trace)
    return trace.nodes[site]


def missing_site(site: str, program: str, *traces: Trace) -> SiteError:
    """What to raise where a site is in none of the traces."""
    names = {
        name
        for trace in traces
        for name, node in trace.nodes.items()
        if node["type"] == "sample" and not poutine.util.site_is_subsample(node)
    }
    return SiteError(f"expected a site {site!r} in the {program}; got sites {sorted(names)}")
