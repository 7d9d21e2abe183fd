"""What is known of rows besides their data, from the arguments of `fit`."""

import inspect
from typing import Any

import numpy as np
import torch

from pyro_moe.fitted.weights import repeats
from pyro_moe.inference.context import reproducible, running
from pyro_moe.inference.errors import DataError, SiteError
from pyro_moe.inference.handlers import UNANNOTATED, Annotations, where_incomplete
from pyro_moe.inference.programs import Program, isolated, owner
from pyro_moe.inference.traces import enumerated_traces
from pyro_moe.processes import Processes
from pyro_moe.rows import as_tensor

WEIGHT_TYPES = ("replication", "sampling")


def annotations_of(
    num_rows: int,
    num_components: int | None,
    *,
    weights: Any = None,
    groups: Any = None,
    labels: Any = None,
    weight_type: str = "replication",
    like: torch.Tensor,
) -> Annotations:
    """The annotations of rows as tensors, after checks.

    Args:
        num_rows: N.
        num_components: K, or None for a model without ``c``.
        weights: Shape (N,), or None.
        groups: Values of any kind that name the group of each row, shape (N,), or None.
        labels: Components (N,), missing where they are not known, or probabilities (N, K); or None.
        weight_type: ``"replication"``, or ``"sampling"`` for weights with a mean of one.
        like: A tensor of the type and on the device of the fit.

    Raises:
        ValueError: If the type of weights is no such type, or if it is that of no weights.
        DataError: If they have another shape, or impossible values.
        SiteError: If there are labels or groups without components.
    """
    if weight_type not in WEIGHT_TYPES:
        raise ValueError(f"expected weight_type in {WEIGHT_TYPES}; got {weight_type!r}")
    if weight_type == "sampling" and weights is None:
        raise ValueError("expected weights with weight_type='sampling'; got none")
    if weights is groups is labels is None:
        return UNANNOTATED
    for name, value in (("groups", groups), ("labels", labels)):
        if value is not None and num_components is None:
            raise SiteError(f"expected a site 'c' in the model for {name}; got none")
    found: dict[str, torch.Tensor] = {}
    if weights is not None:
        values = _weights(weights, num_rows)
        scale = values[values > 0].mean() if weight_type == "sampling" else 1.0
        found["weights"] = (values / scale).to(like)
    if groups is not None:
        found["groups"] = _groups(groups, num_rows).to(like.device)
    if labels is not None and num_components is not None:
        shares = responsibilities_of(labels, "labels", num_rows, num_components).to(like)
        found["labels"] = _in_groups(shares, found["groups"]) if "groups" in found else shares
    return Annotations(**found)


def em_takes_groups(model: Program) -> bool:
    """Whether the M-step of a story is one for rows in groups."""
    step = getattr(owner(model), "m_step", None)
    return step is not None and "sizes" in inspect.signature(step).parameters


def check_annotations(
    annotations: Annotations, model: Program, guide: Program, loss: Any, columns: Any
) -> None:
    """Check that an objective and a story take the annotations.

    Args:
        annotations: The annotations.
        model: The model.
        guide: The guide.
        loss: The objective.
        columns: The rows.

    Raises:
        ValueError: If they do not.
    """
    name = loss if isinstance(loss, str) else type(loss).__name__
    if annotations.labels is not None and name not in ("em", "marginal"):
        raise ValueError(f"expected loss='em' or 'marginal' with labels; got {name!r}")
    if annotations.groups is None:
        return
    story = type(owner(model)).__name__
    if name == "em" and not em_takes_groups(model):
        raise ValueError(
            "expected a mixture of experts with a gate p(c|x), such as models.ME, for rows in "
            f"groups by EM; got {story}: loss='marginal' is for others"
        )
    if name not in ("em", "marginal"):
        raise ValueError(f"expected loss='em' or 'marginal' for rows in groups; got {name!r}")
    if name == "marginal" and Processes.running().size > 1:
        raise ValueError("expected one process for rows in groups by gradients; got several")
    if name == "marginal" and not _targets_given_c(model, guide, columns):
        raise ValueError(
            "expected a story whose targets are given c, such as DeepMoE, GMMMoE or VaDEMoE, for "
            f"rows in groups; got {story}"
        )


def _targets_given_c(model: Program, guide: Program, columns: Any) -> bool:
    """Whether the density of the targets, if there are any, depends on the site ``c``."""
    some = tuple(column[:2] for column in columns)
    store: dict[str, Any] = {"params": {}, "constraints": {}}
    with torch.no_grad(), reproducible(0), running(store), where_incomplete(*some):
        trace, _ = enumerated_traces(*isolated(model, guide), *some)
    return "y" not in trace.nodes or trace.nodes["y"]["log_prob"].dim() > 1


def responsibilities_of(given: Any, name: str, num_rows: int, num_components: int) -> torch.Tensor:
    """Probabilities of components (N, K) in double precision, NaN in rows that are not known.

    Args:
        given: Labels (N,) from 0 to K - 1, missing where they are -1, NaN or None; or
            responsibilities (N, K), missing in rows of NaN.
        name: The name of the argument.
        num_rows: N.
        num_components: K.

    Raises:
        DataError: If they are neither.
    """
    values = as_tensor(given, name).double().cpu()
    if values.shape == (num_rows,):
        return _one_hot(values, name, num_components)
    if values.shape != (num_rows, num_components):
        raise DataError(
            f"expected {'responsibilities' if name == 'initialize' else name} of shape "
            f"({num_rows}, {num_components}); got {tuple(values.shape)}"
        )
    known = values[~values.isnan().all(-1)]
    sums = known.sum(-1)
    if not ((known >= 0).all() and ((sums - 1).abs() < 1e-3).all()):
        raise DataError(
            "expected responsibilities that are probabilities in each row; got entries from "
            f"{known.min().item():.3g} and row sums from {sums.min().item():.3g} "
            f"to {sums.max().item():.3g}"
        )
    return values / values.sum(-1, keepdim=True)


def _one_hot(labels: torch.Tensor, name: str, num_components: int) -> torch.Tensor:
    missing = labels.isnan() | (labels == -1)
    known = (labels == labels.round()) & (labels >= 0) & (labels < num_components)
    if not (known | missing).all():
        row = int((~(known | missing)).nonzero()[0])
        raise DataError(
            f"expected labels from 0 to {num_components - 1}, -1 where they are not known, or "
            f"responsibilities ({len(labels)}, {num_components}), in {name}; "
            f"got {labels[row].item():g} in row {row}"
        )
    filled = labels.masked_fill(missing, 0.0).long()
    one_hot = torch.nn.functional.one_hot(filled, num_components).double()
    return one_hot.masked_fill(missing.unsqueeze(-1), torch.nan)


def _weights(given: Any, num_rows: int) -> torch.Tensor:
    values = as_tensor(given, "weights").double()
    if values.shape != (num_rows,):
        raise DataError(f"expected weights of shape ({num_rows},); got shape {tuple(values.shape)}")
    wrong = ~(values.isfinite() & (values >= 0))
    if wrong.any():
        row = int(wrong.nonzero()[0])
        raise DataError(f"expected weights of at least 0; got {values[row].item():g} in row {row}")
    if not values.any():
        raise DataError("expected weights of which one is above 0; got zeros")
    return values


def _groups(given: Any, num_rows: int) -> torch.Tensor:
    import pandas as pd  # which knows names, numbers and missing values of all kinds

    values = given.cpu().numpy() if torch.is_tensor(given) else given
    codes, _ = pd.factorize(np.asarray(values) if isinstance(values, list | tuple) else values)
    if codes.shape != (num_rows,):
        raise DataError(f"expected groups of shape ({num_rows},); got shape {codes.shape}")
    if (codes < 0).any():
        row = int((codes < 0).argmax())
        raise DataError(f"expected a group of each row; got none in row {row}")
    return torch.from_numpy(codes.astype(np.int64))


def _in_groups(labels: torch.Tensor, groups: torch.Tensor) -> torch.Tensor:
    """The labels of groups, of which a row with a label tells that of the others."""
    known = ~labels[:, 0].isnan()
    first = torch.full((int(groups.max()) + 1,), -1, device=groups.device)
    rows = known.nonzero().flatten().flip(0)
    first[groups[rows]] = rows
    place = first[groups]
    spread = torch.where((place >= 0).unsqueeze(-1), labels[place], torch.nan)
    differing = known & (spread != labels).any(-1)
    if differing.any():
        row = int(differing.nonzero()[0])
        raise DataError(
            f"expected one label in each group; got another in row {row} than in row "
            f"{int(place[row])} of the same group"
        )
    return spread


def expanded(columns: tuple[torch.Tensor, ...], weights: torch.Tensor | None) -> Any:
    """Rows of which each stands as many times as its weight says, in the order of the rows.

    If the weights are no whole numbers, or these have a large sum, they are as many times ten as
    there are rows, in proportion to the weights up to rounding.

    Example:
        >>> expanded((torch.tensor([5.0, 7.0, 9.0]),), torch.tensor([2.0, 0.0, 1.0]))
        (tensor([5., 5., 9.]),)
    """
    if weights is None:
        return columns
    whole, most = bool((weights == weights.round()).all()), 10 * len(weights)
    scale = 1.0 if whole else max(1.0, most / float(weights.double().sum()))
    places = repeats(scale * weights.double(), most)
    return tuple(column[places] for column in columns)
