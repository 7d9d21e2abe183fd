"""Validation of components after training."""

import warnings

import torch

from pyro_moe.fitted import Fit
from pyro_moe.inference.context import reproducible
from pyro_moe.inference.errors import EmptyComponentWarning
from pyro_moe.inference.traces import enumerated_traces, log_assignment, row_log_weights


def check_components(fit: Fit, rows: int = 10_000) -> None:
    """Check that each component of a fit has rows, on evenly spaced training rows.

    Args:
        fit: The fit.
        rows: Maximum number of rows to use.

    Warns:
        EmptyComponentWarning: If a component has no rows, see `empty`, or few, see `starving`.
    """
    apart = -(-len(fit.data[0]) // rows)  # rows are often sorted by regime
    columns = [column[::apart] for column in fit.data]
    counts = torch.tensor(0.0)
    with torch.no_grad(), reproducible(fit.settings["seed"], 0, 6):
        for batch in zip(*(column.split(4096) for column in columns), strict=True):
            model_trace, guide_trace = enumerated_traces(fit.model, fit.guide, *batch)
            if "c" not in model_trace.nodes:
                return
            log_q = log_assignment(guide_trace)
            if log_q is None:
                log_q = row_log_weights(model_trace, guide_trace)
            counts = counts + log_q.softmax(0).sum(-1).cpu()
    found = {"none": empty(counts), "few": starving(counts, fit.x_dim)}
    for number, components in found.items():
        if components:
            warnings.warn(
                f"expected rows for each of {len(counts)} components; got {number} for "
                f"{', '.join(map(str, components))}: try fewer components, restarts, or "
                "initialize=",
                EmptyComponentWarning,
                stacklevel=3,
            )


def empty(counts: torch.Tensor) -> list[int]:
    """Components with an expected count of less than half a row; counts have shape (K,)."""
    return (counts < 0.5).nonzero().flatten().tolist()


def starving(counts: torch.Tensor, x_dim: int) -> list[int]:
    """Components with rows, but with less than a tenth of an equal share and fewer than D + 1.

    An affine map of x has D + 1 coefficients. Fewer rows cannot determine it.
    """
    least = min(x_dim + 1.0, 0.1 * float(counts.mean()))
    return [k for k in (counts < least).nonzero().flatten().tolist() if k not in empty(counts)]
