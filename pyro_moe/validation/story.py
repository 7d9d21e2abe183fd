"""Validation of a model and a guide with their data before training."""

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from pyro import poutine
from pyro.poutine import Trace
from torch.distributions.constraints import Constraint

from pyro_moe.distributions import Observed
from pyro_moe.evaluation.marginals import discrete_columns, has_classes, mean_of
from pyro_moe.evaluation.traces import check_support
from pyro_moe.inference.context import reproducible, running
from pyro_moe.inference.errors import DataError, DataWarning, SiteError, warn
from pyro_moe.inference.handlers import Discretize, is_assignment, where_incomplete
from pyro_moe.inference.programs import Program, modules
from pyro_moe.inference.protocols import Adaptive, HasWidth

from .columns import check_rounding

ENOUGH = 2**14  # rows that are run through the story, if the others need not be


def check(
    model: Program,
    guide: Program,
    columns: tuple[torch.Tensor, ...],
    *,
    learns: bool = True,
    needs: str = "",
) -> int | None:
    """Run a model and a guide once on the data, and check the support of each observed value.

    Of more than 16,384 rows the others are not run through a story that observes columns as they
    are, with supports that are the same for all rows.

    Args:
        model: A Pyro model. It may register parameters, so pass a copy.
        guide: Its guide, also a copy.
        columns: Tensors of N rows each.
        learns: Whether the rows are training rows. There must be at least K training rows.
        needs: The objective, if it needs the model's assignments in the guide, too.

    Returns:
        K, the length of site ``c``, or None for a model without one.

    Raises:
        DataError: If x does not have the number of columns that the story expects, if there are
            fewer rows than components, if an observed value is outside the support of its
            distribution, if training targets are missing, or if the story cannot be run.
        SiteError: If the guide lacks an assignment that the objective needs.

    Warns:
        DataWarning: If y is a class, and one of the classes has no rows.
    """
    x = columns[0]
    for story in modules(model, guide):
        if isinstance(story, HasWidth) and x.shape[1] != story.x_dim:
            raise DataError(f"expected x with x_dim={story.x_dim} columns; got {x.shape[1]}")
    for program in (model, guide):
        _check_arguments(program, columns)
    num_components, classes = None, set[int]()
    trace: Any = None
    observed: dict[str, int] | None = None
    store: dict[str, Any] = {"params": {}, "constraints": {}}
    incomplete = where_incomplete(x)
    with torch.no_grad(), reproducible(0), running(store), incomplete, Discretize():
        for first in range(0, len(x), 4096):
            batch = tuple(column[first : first + 4096] for column in columns)
            if first < ENOUGH or not _all_in_support(trace, observed, batch):
                trace, guide_trace = _traced(model, guide, batch, first)
                _check_sites(trace, guide_trace, learns, needs)
                observed = observed_columns(trace, batch)
                for name in trace.observation_nodes:
                    check_support(name, trace.nodes[name], first)
            if "c" in trace.nodes:
                num_components = trace.nodes["c"]["value"].shape[-1]
                if learns and len(x) < num_components:
                    raise DataError(
                        f"expected at least as many rows as components, {num_components}; "
                        f"got {len(x)}"
                    )
            for y in batch[1:2] if _has_classes(trace) else ():
                classes |= set(y[~y.isnan()].long().unique().tolist())
            if any(isinstance(part, Adaptive) for part in modules(model, guide)):
                _check_squares(batch[1:], first)  # units are set from them
    if learns and _has_classes(trace):
        _check_classes(mean_of(trace.nodes["y"]["fn"]).shape[-1], classes)
    elif learns and "y" in trace.observation_nodes and _has_density(trace.nodes["y"]["fn"]):
        check_rounding(columns[1], discrete_columns(trace.nodes["y"]["fn"]))
    return num_components


def _check_arguments(program: Program, columns: Sequence[torch.Tensor]) -> None:
    try:
        taken = inspect.signature(program)
    except (TypeError, ValueError):  # a callable without one
        return
    try:
        taken.bind(*columns)
    except TypeError as error:
        names = ", ".join(taken.parameters)
        got = "x alone" if len(columns) == 1 else f"({', '.join(('x', 'y', '…')[: len(columns)])})"
        raise DataError(f"expected data ({names}), as the story takes; got {got}") from error


def _check_sites(trace: Trace, guide_trace: Trace, learns: bool, needs: str) -> None:
    if learns and "y" in trace.stochastic_nodes and "y" not in guide_trace.nodes:
        raise DataError("expected data (x, y), for the model's site 'y'; got x alone")
    for name, site in trace.nodes.items():
        if needs and is_assignment(site) and name not in guide_trace.nodes:
            raise SiteError(f"expected a site {name!r} in the guide for {needs}; got none")


def observed_columns(trace: Trace, batch: Sequence[torch.Tensor]) -> dict[str, int] | None:
    """The number of the column that each site observes.

    Returns:
        None if a site observes something else or columns are equal, or if its support may depend
        on the row.
    """
    found: dict[str, int] = {}
    for name in trace.observation_nodes:
        site = trace.nodes[name]
        value = site["value"]
        numbers = [
            number
            for number, column in enumerate(batch)
            if column.numel() == value.numel()
            and torch.equal(column.reshape(value.shape).to(value), value)
        ]
        if len(numbers) != 1 or isinstance(site["fn"], Observed) or _varies(site["fn"].support):
            return None
        found[name] = numbers[0]
    return found


def _all_in_support(
    trace: Trace, observed: dict[str, int] | None, batch: Sequence[torch.Tensor]
) -> bool:
    """Whether it is known of other rows that all their observed values are possible."""
    if observed is None:
        return False
    for name, number in observed.items():
        site, column = trace.nodes[name], batch[number]
        value = column.reshape(len(column), *site["value"].shape[1:])
        if not site["fn"].support.check(value).all():
            return False
    return True


def _varies(part: Any) -> bool:
    """Whether a constraint has limits of several values, which may be those of rows."""
    if isinstance(part, torch.Tensor):
        return part.numel() > 1
    if isinstance(part, list | tuple):
        return any(map(_varies, part))
    return isinstance(part, Constraint) and any(map(_varies, vars(part).values()))


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
        check_support(name, trace.nodes[name], first)
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


def _has_classes(trace: Any) -> bool:
    return "y" in trace.observation_nodes and has_classes(trace.nodes["y"]["fn"])


def _check_classes(number: int, seen: set[int]) -> None:
    unseen = [str(label) for label in range(number) if label not in seen]
    if unseen:
        warn(
            f"expected rows of each of {number} classes; got none of {', '.join(unseen)}",
            DataWarning,
        )


def _has_density(distribution: Any) -> bool:
    return not distribution.support.is_discrete
