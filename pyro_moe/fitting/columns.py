"""The columns of data in the type and on the device of a fit, and of a fit in double precision."""

import torch

from pyro_moe.fitted import Fit
from pyro_moe.inference.em import EM
from pyro_moe.inference.errors import DataWarning, warn
from pyro_moe.inference.prior import Prior
from pyro_moe.inference.programs import Program, modules
from pyro_moe.inference.protocols import Adaptive
from pyro_moe.inference.rows import OnDisk, sample
from pyro_moe.rows import Data, as_double, as_tensor, as_tensors
from pyro_moe.validation import unresolved


def columns_of(
    model: Program,
    guide: Program,
    data: Data,
    *,
    device: str | torch.device | None,
    missing_targets: bool,
    missing_features: bool,
    double: bool,
) -> tuple[torch.Tensor, ...]:
    """Data as tensors, of the type that the fit will have.

    This is the type of the parameters. Stories that standardize the data are fitted in double
    precision if ``double`` is true, or if the type of their parameters does not resolve a column.

    Warns:
        DataWarning: If the type does not resolve a column, and the story does not standardize; or
            if rows have some of their targets.
    """
    parts = modules(model, guide)
    parameters = [p for part in parts for p in part.parameters()]
    like = parameters[0] if parameters else torch.empty(0)
    if isinstance(data, tuple) and any(isinstance(column, OnDisk) for column in data):
        if torch.device(device or like.device).type != "cpu":
            raise ValueError(f"expected device='cpu' for rows on disk; got {device or like.device}")
        return _on_disk(model, guide, data, like.dtype, double=double)
    missing = {"missing_targets": missing_targets, "missing_features": missing_features}
    exact = as_tensors(data, dtype=torch.float64, **missing)
    if missing_targets and len(exact) > 1:
        warn_of_partly_missing(exact[1])
    problems = [] if like.dtype == torch.float64 else unresolved(exact, like.dtype)
    if standardizes(model, guide) and (double or problems):
        return tuple(column.to(device or like.device) for column in exact)
    for problem in problems:
        warn(problem, DataWarning)
    columns = as_tensors(data, dtype=like.dtype, **missing)
    return tuple(column.to(device or like.device) for column in columns)


def warn_of_partly_missing(y: torch.Tensor) -> None:
    """Say how many rows have some of their targets, which count as rows without any.

    Warns:
        DataWarning: If there are such rows.
    """
    gaps = y.reshape(len(y), -1).isnan()
    partly = int((gaps.any(1) & ~gaps.all(1)).sum())
    if partly:
        warn(
            f"expected all targets of a row, or none; got some in {partly:,} rows, whose targets "
            "are left out: fit the targets one by one to use them",
            DataWarning,
        )


def _on_disk(
    model: Program, guide: Program, data: Data, dtype: torch.dtype, *, double: bool
) -> tuple[torch.Tensor, ...]:
    """Columns on disk in the type of the fit, chosen as for others by a sample of the rows."""
    columns = tuple(c if isinstance(c, OnDisk) else as_tensor(c, "y") for c in data)
    some = [c.double() if c.is_floating_point() else c for c in sample(columns, 0)]
    problems = [] if dtype == torch.float64 else unresolved(some, dtype)
    if standardizes(model, guide) and (double or problems):
        dtype, problems = torch.float64, []
    for problem in problems:
        warn(problem, DataWarning)
    return tuple(c.to(dtype) if c.is_floating_point() else c for c in columns)


def standardizes(model: Program, guide: Program) -> bool:
    """Whether a story takes its units from the data, and so can be fitted in double precision."""
    parts = modules(model, guide)
    return bool(parts) and all(isinstance(part, Adaptive) for part in parts)


def em_of(fit: Fit, model: Program, guide: Program) -> EM:
    """A run of EM with the rows of a fit in double precision, its annotations and its prior.

    Args:
        fit: The fit, with its training rows.
        model: The model of the run, that of the fit or a copy in double precision.
        guide: Its guide.

    Raises:
        DataError: If the fit was restored without its training rows.
    """
    data, about = tuple(map(as_double, fit.training_rows)), fit.annotations.each(as_double)
    prior = Prior(**fit.settings["prior"])
    return EM(model, guide, data, 0, fit.settings["seed"], prior, annotations=about)
