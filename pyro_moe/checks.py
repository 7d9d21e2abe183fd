"""What can be said of a model and its data before any training."""

import warnings

import torch
from pyro import poutine

from pyro_moe.inference.context import reproducible, running
from pyro_moe.inference.errors import DataError, DataWarning
from pyro_moe.inference.isolation import modules
from pyro_moe.inference.objectives import Program
from pyro_moe.inference.relaxation import Discretise


def check(model: Program, guide: Program, columns: tuple[torch.Tensor, ...]) -> int | None:
    """Run a model and a guide once on data, and see that each observed value is possible.

    Args:
        model: A Pyro model, which may register parameters: a copy, then.
        guide: Its guide, likewise.
        columns: Tensors of N rows each.

    Returns:
        K, the length of site ``c``, or None for a model without one.

    Raises:
        DataError: If x is not as wide as the story says, if there are fewer rows than
            components, or if an observed value is outside its distribution's support.
    """
    x = columns[0]
    for story in modules(model, guide):
        expected = getattr(story, "x_dim", x.shape[1])
        if x.shape[1] != expected:
            raise DataError(f"expected x with x_dim={expected} columns; got {x.shape[1]}")
    num_components = None
    with torch.no_grad(), reproducible(0), running({"params": {}, "constraints": {}}), Discretise():
        for first in range(0, len(x), 4096):
            batch = tuple(column[first : first + 4096] for column in columns)
            guide_trace = poutine.trace(guide).get_trace(*batch)
            replayed = poutine.replay(model, trace=guide_trace)
            trace = poutine.trace(replayed).get_trace(*batch)
            if "c" in trace.nodes:
                num_components = trace.nodes["c"]["value"].shape[-1]
                if len(x) < num_components:
                    raise DataError(
                        f"expected at least as many rows as components, {num_components}; "
                        f"got {len(x)}"
                    )
            for name in trace.observation_nodes:
                _check_support(name, trace.nodes[name], first)
    return num_components


def check_target(y: torch.Tensor) -> None:
    """See that targets, shape (N,) or (N, M), are known somewhere and vary.

    Raises:
        DataError: If every row holds NaN.

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
    base = getattr(support, "base_constraint", support)
    offending = value[row].flatten()[~base.check(value[row].flatten())]
    hint = ""
    if isinstance(base, type(torch.distributions.constraints.boolean)) and 0 < offending[0] < 1:
        hint = "; for grey values between 0 and 1 there is likelihood='continuous-bernoulli'"
    raise DataError(
        f"expected values of site {name!r} in the support of its distribution, {base}; "
        f"got {offending[0].item():.6g} in row {first_row + row}{hint}"
    )
