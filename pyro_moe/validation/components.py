"""Validation of components after training."""

import torch

from pyro_moe.fitted import Fit
from pyro_moe.inference.context import reproducible
from pyro_moe.inference.errors import EmptyComponentWarning, warn
from pyro_moe.inference.traces import enumerated_traces, log_assignment, row_log_weights


def check_components(fit: Fit, rows: int = 10_000) -> None:
    """Check that each component of a fit has rows, on evenly spaced training rows.

    Args:
        fit: The fit.
        rows: Maximum number of rows to use.

    Warns:
        EmptyComponentWarning: If a component has no rows, see `empty`, or few, see `starving`, or
            fewer than its expert has coefficients, under a weak prior; or if it has few and the
            scale of its normal expert is at its lower limit.
    """
    apart = -(-len(fit.data[0]) // rows)  # rows are often sorted by regime
    columns = [column[::apart] for column in fit.data]
    about = fit.annotations.take(slice(None, None, apart))
    ones = torch.ones(len(columns[0]), device=columns[0].device)
    weights = ones if about.weights is None else about.weights
    labels = about.labels if about.labels is not None else ones[:, None] * torch.nan
    columns += [weights, labels]
    counts = torch.tensor(0.0)
    with torch.no_grad(), reproducible(fit.settings["seed"], 0, 6):
        for *batch, w, r in zip(*(column.split(4096) for column in columns), strict=True):
            model_trace, guide_trace = enumerated_traces(fit.model, fit.guide, *batch)
            if "c" not in model_trace.nodes:
                return
            log_q = log_assignment(guide_trace)
            if log_q is None:
                log_q = row_log_weights(model_trace, guide_trace)
            q = torch.where(r.T.isnan(), log_q.softmax(0), r.T)
            counts = counts + (w * q).sum(-1).cpu()
    found = {"none": empty(counts), "few": starving(counts, fit.x_dim)}
    for number, components in found.items():
        if components:
            warn(
                f"expected rows for each of {len(counts)} components; got {number} for "
                f"{', '.join(map(str, components))}: try fewer components, restarts, or "
                "initialize=",
                EmptyComponentWarning,
            )
    # a strong prior gives each component further rows
    weak = fit.settings.get("prior", {}).get("rows", 0.0) < 1.0
    least, k = float(counts.min()) * apart, int(counts.argmin())
    if fit.has_target and weak and not any(found.values()) and least < fit.x_dim + 1.0:
        warn(
            f"expected at least {fit.x_dim + 1} rows for each component, as many as its expert has "
            f"coefficients; got {least:.1f} in component {k}: try fewer components, or "
            "prior='auto'",
            EmptyComponentWarning,
        )
    at_limit = on_floor(fit)
    if at_limit and least < 3 * (fit.x_dim + 1):
        warn(
            "expected experts whose scales the rows determine; got scales at their lower limit in "
            f"components {', '.join(map(str, at_limit))}: the log-likelihood says little",
            EmptyComponentWarning,
        )


def on_floor(fit: Fit) -> list[int]:
    """Components whose normal experts have a scale at its lower limit."""
    found: set[int] = set()
    for part in (part for whole in fit.programs.modules for part in whole.modules()):
        own = dict(part.named_parameters(recurse=False)) | dict(part.named_buffers(recurse=False))
        if {"floor", "log_scale"} <= own.keys():
            low = own["log_scale"].detach().exp() < 0.01 * own["floor"]
            found |= set(low.any(-1).nonzero().flatten().tolist())
    return sorted(found)


def empty(counts: torch.Tensor) -> list[int]:
    """Components with an expected count of less than half a row; counts have shape (K,)."""
    return (counts < 0.5).nonzero().flatten().tolist()


def starving(counts: torch.Tensor, x_dim: int) -> list[int]:
    """Components with rows, but with less than a tenth of an equal share and fewer than D + 1.

    An affine map of x has D + 1 coefficients. Fewer rows cannot determine it.
    """
    least = min(x_dim + 1.0, 0.1 * float(counts.mean()))
    return [k for k in (counts < least).nonzero().flatten().tolist() if k not in empty(counts)]
