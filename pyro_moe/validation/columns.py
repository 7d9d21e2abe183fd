"""Validation of columns: what training would take in silence."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from pyro_moe.distributions import rounding_error
from pyro_moe.inference.errors import DataError, DataWarning, warn
from pyro_moe.inference.rows import OnDisk, sample
from pyro_moe.inference.rows.order import chosen
from pyro_moe.rows import numbered

ROWS = 2**16
FAR = 10.0  # in ranges of the other values
EXTREME = 1e150  # whose square float64 can hold
SQUARES = 1e15  # whose square, and that of its inverse, float32 can hold


def unresolved(columns: Sequence[torch.Tensor], dtype: torch.dtype) -> list[str]:
    """What a type of numbers does not resolve, as sentences.

    These are columns of real numbers whose spacing near the median is more than a thousandth of
    their deviation, and those whose squares are out of the range of float32. The deviation is that
    of the middle half of the values, if it is not zero.

    Args:
        columns: x and y in double precision, N rows each.
        dtype: The type.

    Example:
        >>> (problem,) = unresolved([4e9 + torch.arange(9.0).double()], torch.float32)
        >>> problem.split(";")[0]
        'expected columns that torch.float32 resolves'
    """
    found = []
    for name, column in zip("xy", columns, strict=False):
        if not column.is_floating_point():
            continue
        for index, values in enumerate(column.reshape(len(column), -1).cpu().numpy().T):
            known = values[~np.isnan(values)]
            if len(known) and _is_unresolved(known, dtype):
                median, deviation = _middle(known)
                found.append(
                    f"expected columns that {dtype} resolves; got a median of {median:.4g} and "
                    f"a deviation of {deviation:.4g} in column {index} of {name}: subtract a "
                    "constant, change the unit, or use float64"
                )
    return found


def _middle(values: np.ndarray) -> tuple[float, float]:
    """The median of values (N,), and the deviation of their middle half, or else of all."""
    low, median, high = np.quantile(values, [0.25, 0.5, 0.75])
    if high > low:
        return median, (high - low) / 1.349
    unit = np.abs(values - median).max() or 1.0  # whose square may overflow
    return median, unit * ((values - median) / unit).std()


def _is_unresolved(values: np.ndarray, dtype: torch.dtype) -> bool:
    median, deviation = _middle(values)
    step = torch.finfo(dtype).eps * abs(median)
    extreme = deviation < 1 / SQUARES or np.abs(values).max() > SQUARES
    varies = deviation > np.finfo(np.float64).eps * abs(median)
    return bool((step > 1e-3 * deviation or extreme) and varies)


def check_range(x: torch.Tensor, names: tuple[str, ...] | None) -> None:
    """Check that float64 can hold the squares of x, shape (N, D), and of its variation.

    Raises:
        DataError: If a column is too large, or varies too little.
    """
    parts = [torch.stack(part.aminmax(dim=0)).double() for part in x.split(ROWS)]
    low, high = torch.stack(parts).amin(0)[0], torch.stack(parts).amax(0)[1]
    size, width = torch.maximum(low.abs(), high.abs()), high - low
    strange = (size > EXTREME) | ((width > 0) & (width < 1 / EXTREME))
    for column in strange.nonzero().flatten().tolist()[:1]:
        raise DataError(
            f"expected columns of x between {1 / EXTREME:g} and {EXTREME:g} in size; "
            f"got {low[column]:.6g} to {high[column]:.6g} in column "
            f"{(names or numbered('x', x.shape[1]))[column]!r}: change its unit"
        )


def check_columns(columns: Sequence[torch.Tensor], names: tuple[str, ...] | None) -> None:
    """Check the columns that are to be fitted.

    Raises:
        DataError: If no row has a target, or no row has a value of a column of x.

    Warns:
        DataWarning: If a column of y is constant, or if a column has values far from all others,
            such as -999 for a missing value. Of rows on disk a sample is checked for the latter.
    """
    x, *targets = columns
    empty = () if isinstance(x, OnDisk) else x.isnan().all(0).nonzero().flatten().tolist()
    if empty:
        name = (names or numbered("x", x.shape[1]))[empty[0]]
        raise DataError(f"expected an observed value in each column of x; got none in {name!r}")
    for y in targets[:1]:
        _check_target(y)
    on_disk = any(isinstance(column, OnDisk) for column in columns)
    rows = chosen(columns, 0) if on_disk else slice(None)
    x, *targets = (column[rows] for column in columns)
    _check_far(x, names or numbered("x", x.shape[1]), rows)
    for y in targets[:1]:
        if y.is_floating_point():
            flat = y.reshape(len(y), -1)
            _check_far(flat, numbered("y", flat.shape[1]), rows)


def _check_target(y: torch.Tensor) -> None:
    first: Any = None
    constant: Any = True
    for part in y.split(ROWS):
        known = part.reshape(len(part), -1)
        known = known[~known.isnan().any(-1)]
        if len(known):
            first = known[0] if first is None else first
            constant = (known == first).all(0) & constant
    if first is None:
        raise DataError("expected rows with a target; got NaN in every row of y")
    for column in constant.nonzero().flatten().tolist():
        warn(
            f"expected targets that vary; got {first[column].item():.6g} in every row of "
            f"column {column} of y",
            DataWarning,
        )


def _check_far(x: torch.Tensor, names: tuple[str, ...], rows: Any) -> None:
    """Warn of at most one percent of the rows that are far from all others in a column."""
    values = x.detach().double().cpu().numpy()
    for name, column in zip(names, values.T, strict=True):
        row = far_row(column)
        if row is not None:
            place = row if isinstance(rows, slice) else int(rows[row])
            warn(
                f"expected columns without values far from all others; got {column[row]:.6g} in "
                f"row {place} of the fitted rows, column {name!r}: one such value sets the unit "
                "of the column. Leave the row out if it is an error, or a code for a missing value",
                DataWarning,
            )


def far_row(column: np.ndarray) -> int | None:
    """The first row with a value that is far from all others, or None.

    These are one percent of the rows at most, and at least one, beyond a gap of ten times the
    range of the others. For a code such as -999, of nines only, the gap is twice the range, and
    half of the rows may have it.

    Args:
        column: Values, shape (N,), possibly with NaN.

    Example:
        >>> far_row(np.array([0.3, 0.1, 1e6, 0.5])), far_row(np.array([0.3, 0.1, 0.9, 0.5]))
        (2, None)
    """
    known = np.sort(column[~np.isnan(column)])
    gaps = np.diff(known)
    if len(known) < 4 or not gaps.max(initial=0.0) > 0:
        return None
    cut = int(gaps.argmax())
    for few, rest, value in (
        (known[: cut + 1], known[cut + 1 :], known[0]),
        (known[cut + 1 :], known[: cut + 1], known[-1]),
    ):
        code = few[0] == few[-1] and set(f"{abs(value):g}") == {"9"}
        most = len(known) // 2 if code else max(1, len(known) // 100)
        spread = rest[-1] - rest[0]
        if len(few) <= most and spread > 0 and gaps[cut] > (2.0 if code else FAR) * spread:
            return int(np.flatnonzero(np.isin(column, few))[0])
    return None


def check_rounding(y: torch.Tensor, counts: Sequence[int] = ()) -> None:
    """Check that targets of a density are not rounded so much that a density misleads.

    Args:
        y: Targets, shape (N,) or (N, M).
        counts: Columns that have a mass function.

    Warns:
        DataWarning: If the values of a column are on a grid, and the error of rounding is more
            than a twentieth of their deviation.
    """
    (y,) = sample((y,), 0) if isinstance(y, OnDisk) else (y,)
    flat = y.reshape(len(y), -1).double()
    flat = flat[~flat.isnan().any(-1)]
    if len(flat) == 0:
        return
    errors = rounding_error(flat)
    coarse = (errors > 0.05 * flat.std(0, correction=0)).nonzero().flatten().tolist()
    for index in (each for each in coarse if each not in counts):
        step = errors[index].item() * 12**0.5
        warn(
            f"expected targets with few ties for a density; got {len(flat[:, index].unique())} "
            f"values in steps of {step:.4g} in column {index} of y: a log-density in nats depends "
            f"on the step; add {np.log(step):.3f} to compare it with the log-probability of a "
            "mass function, such as that of experts='categorical' or 'poisson'",
            DataWarning,
        )
