"""Validation of a model and its data before training, and of components after training."""

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from pyro import poutine

from pyro_moe.evaluation.marginals import has_classes, mean_of, of_one_column
from pyro_moe.inference.context import reproducible, running
from pyro_moe.inference.errors import DataError, DataWarning, EmptyComponentWarning, SiteError
from pyro_moe.inference.handlers import Discretize
from pyro_moe.inference.programs import Program, modules
from pyro_moe.inference.protocols import Adaptive, HasWidth
from pyro_moe.inference.traces import enumerated_traces, log_assignment, row_log_weights

from .fitted import Fit


def check(
    model: Program,
    guide: Program,
    columns: tuple[torch.Tensor, ...],
    *,
    learns: bool = True,
    assigns: bool = False,
) -> int | None:
    """Run a model and a guide once on the data, and check the support of each observed value.

    Args:
        model: A Pyro model. It may register parameters, so pass a copy.
        guide: Its guide, also a copy.
        columns: Tensors of N rows each.
        learns: Whether the rows are training rows. There must be at least K training rows.
        assigns: Whether the objective needs the model's site ``c`` in the guide, too.

    Returns:
        K, the length of site ``c``, or None for a model without one.

    Raises:
        DataError: If x does not have the number of columns that the story expects, if there are
            fewer rows than components, if an observed value is outside the support of its
            distribution, if training targets are missing, or if the story cannot be run.
        SiteError: If the guide lacks a site ``c`` that the objective needs.

    Warns:
        DataWarning: If y is a class, and one of the classes has no rows.
    """
    x = columns[0]
    for story in modules(model, guide):
        if isinstance(story, HasWidth) and x.shape[1] != story.x_dim:
            raise DataError(f"expected x with x_dim={story.x_dim} columns; got {x.shape[1]}")
    num_components = None
    with torch.no_grad(), reproducible(0), running({"params": {}, "constraints": {}}), Discretize():
        for first in range(0, len(x), 4096):
            batch = tuple(column[first : first + 4096] for column in columns)
            trace, guide_trace = _traced(model, guide, batch, first)
            if learns and "y" in trace.stochastic_nodes and "y" not in guide_trace.nodes:
                raise DataError("expected data (x, y), for the model's site 'y'; got x alone")
            if "c" in trace.nodes:
                num_components = trace.nodes["c"]["value"].shape[-1]
                if assigns and "c" not in guide_trace.nodes:
                    raise SiteError(
                        "expected a site 'c' in the guide for loss='categorical-kl'; got none"
                    )
                if learns and len(x) < num_components:
                    raise DataError(
                        f"expected at least as many rows as components, {num_components}; "
                        f"got {len(x)}"
                    )
            for name in trace.observation_nodes:
                _check_support(name, trace.nodes[name], first)
            if any(isinstance(part, Adaptive) for part in modules(model, guide)):
                _check_squares(batch[1:], first)  # units are set from them
    if learns and "y" in trace.observation_nodes and has_classes(trace.nodes["y"]["fn"]):
        _check_classes(mean_of(trace.nodes["y"]["fn"]).shape[-1], columns[1])
    return num_components


def _traced(
    model: Program, guide: Program, batch: tuple[torch.Tensor, ...], first: int
) -> tuple[Any, Any]:
    try:
        return _traces(model, guide, batch)
    except ValueError as error:  # Pyro appends the shapes of all sites
        raise DataError(str(error).splitlines()[0]) from error
    except RuntimeError as error:
        _check_targets(model, guide, batch, first)
        reason = str(error).splitlines()[0]
        raise DataError(f"expected a story that runs on these rows; got: {reason}") from error


def _traces(model: Program, guide: Program, batch: tuple[torch.Tensor, ...]) -> tuple[Any, Any]:
    guide_trace = poutine.trace(guide).get_trace(*batch)
    replayed = poutine.replay(model, trace=guide_trace)
    return poutine.trace(replayed).get_trace(*batch), guide_trace


def _check_targets(
    model: Program, guide: Program, batch: tuple[torch.Tensor, ...], first: int
) -> None:
    """Check targets after a failed run of a guide that depends on them.

    Raises:
        DataError: If a target is outside its distribution's support, or its square overflows.
    """
    x, *others = batch
    try:
        without = poutine.trace(guide).get_trace(x, *(None for _ in others))
        trace = poutine.trace(poutine.replay(model, trace=without)).get_trace(*batch)
    except Exception:  # the caller reports the error of the story itself
        return
    for name in trace.observation_nodes:
        _check_support(name, trace.nodes[name], first)
    _check_squares(others, first)


def _check_squares(targets: Sequence[torch.Tensor], first: int) -> None:
    for y in targets:
        if y.is_floating_point():
            limit = torch.finfo(y.dtype).max ** 0.5
            large = (y.abs() >= limit).reshape(len(y), -1).any(-1).nonzero().flatten().tolist()
            if large:
                value = y[large[0]].reshape(-1)
                raise DataError(
                    f"expected targets below {limit:.1g}, whose squares {y.dtype} can hold; "
                    f"got {value[value.abs() >= limit][0].item():.6g} in row {first + large[0]}"
                )


def _check_classes(number: int, y: torch.Tensor) -> None:
    seen = set(y[~y.isnan()].long().flatten().tolist())
    unseen = [str(label) for label in range(number) if label not in seen]
    if unseen:
        warnings.warn(
            f"expected rows of each of {number} classes; got none of {', '.join(unseen)}",
            DataWarning,
            stacklevel=4,
        )


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


def check_resolution(column: torch.Tensor, name: str) -> None:
    """Check that the type of a column resolves its variation.

    Warns:
        DataWarning: If the spacing of numbers near the mean is more than a thousandth of the
            standard deviation.
    """
    if not column.is_floating_point():
        return
    values = column.reshape(len(column), -1).double()
    mean = values.nanmean(0)
    deviation = (values - mean).square().nanmean(0).sqrt()
    step = torch.finfo(column.dtype).eps * mean.abs()
    for index in ((step > 1e-3 * deviation) & (deviation > step)).nonzero().flatten().tolist():
        warnings.warn(
            f"expected columns that {column.dtype} resolves; got a mean of "
            f"{mean[index].item():.4g} and a standard deviation of {deviation[index].item():.4g} "
            f"in column {index} of {name}: subtract a constant, or use float64",
            DataWarning,
            stacklevel=3,
        )


def check_target(y: torch.Tensor) -> None:
    """Check that targets, shape (N,) or (N, M), are not all missing, and vary.

    Raises:
        DataError: If every row has a NaN.

    Warns:
        DataWarning: If a column is constant.
    """
    known = y.reshape(len(y), -1)
    known = known[~known.isnan().any(-1)]
    if len(known) == 0:
        raise DataError("expected rows with a target; got NaN in every row of y")
    for column in (known == known[0]).all(0).nonzero().flatten().tolist():
        warnings.warn(
            f"expected targets that vary; got {known[0, column].item():.6g} in every row of "
            f"column {column} of y",
            DataWarning,
            stacklevel=3,
        )


def _check_support(name: str, site: dict, first_row: int) -> None:
    support, value = site["fn"].support, site["value"]
    possible = support.check(value)
    if possible.all():
        return
    value, possible = torch.atleast_1d(value), torch.atleast_1d(possible)
    row = int((~possible).reshape(len(value), -1).any(-1).nonzero()[0])
    base = of_one_column(support)
    offending = value[row].flatten()[~base.check(value[row].flatten())]
    hint = ""
    if isinstance(base, type(torch.distributions.constraints.boolean)) and 0 < offending[0] < 1:
        hint = "; for gray values between 0 and 1 use likelihood='continuous-bernoulli'"
    raise DataError(
        f"expected values of site {name!r} in the support of its distribution, {base}; "
        f"got {offending[0].item():.6g} in row {first_row + row}{hint}"
    )
