"""The rows of an estimator: checked as scikit-learn expects, and in a canonical order."""

from typing import Any

import numpy as np
import pandas as pd
from sklearn.utils.validation import check_array, check_consistent_length

from pyro_moe.inference.errors import DataError
from pyro_moe.rows import as_tensor

from .versions import FINITE, validated

FLOATS = [np.float64, np.float32]
MOST_COPIES = 10


def features(estimator: Any, X: Any, *, reset: bool) -> np.ndarray:
    """X as finite numbers, shape (N, D); float32 if it was, and float64 otherwise.

    Args:
        estimator: Its ``n_features_in_`` and ``feature_names_in_`` are set or checked.
        X: Rows.
        reset: Whether they are set, and at least two rows are expected.

    Raises:
        DataError: If a value is not a finite number.
        ValueError: If X has another shape, as scikit-learn says.
    """
    _expect_numbers(X)
    least = 2 if reset else 1
    x = validated(estimator, X, reset=reset, dtype=FLOATS, ensure_min_samples=least)
    _expect_finite(x, getattr(estimator, "feature_names_in_", None))
    return x


def targets(estimator: Any, y: Any, number: int, *, missing: bool = False) -> np.ndarray:
    """Numeric targets y, shape (N,) or (N, M), as float64.

    Args:
        estimator: The estimator, for messages.
        y: Targets.
        number: N.
        missing: Whether targets may be NaN.

    Raises:
        ValueError: If y is not numeric or has another shape, as scikit-learn says.
    """
    expect_targets(estimator, y)
    finite = {FINITE: "allow-nan"} if missing else {}
    y = check_array(y, ensure_2d=False, dtype="numeric", input_name="y", **finite)
    check_consistent_length(np.empty(number), y)
    return np.asarray(y, dtype=np.float64)


def expect_targets(estimator: Any, y: Any) -> None:
    """Check that there are targets.

    Raises:
        ValueError: If y is None.
    """
    if y is None:
        name = type(estimator).__name__
        raise ValueError(
            f"expected targets y; got None: {name} requires y to be passed, "
            "but the target y is None"
        )


def weights_of(sample_weight: Any, number: int) -> np.ndarray | None:
    """Weights of the rows, shape (N,), or None.

    Args:
        sample_weight: Weights, one number for all rows, or None.
        number: N.

    Raises:
        ValueError: If they have another shape, or one is negative or not finite, or all are zero.
    """
    if sample_weight is None:
        return None
    weights = np.array(sample_weight, dtype=np.float64)
    if weights.ndim == 0:
        weights = np.full(number, float(weights))
    if weights.shape != (number,):
        raise ValueError(f"expected sample_weight of shape ({number},); got {weights.shape}")
    if not np.isfinite(weights).all() or weights.min() < 0 or weights.max() == 0:
        got = f"values from {weights.min():g} to {weights.max():g}"
        raise ValueError(
            f"expected sample_weight of finite numbers of at least 0, not all zero; got {got}"
        )
    return weights


def canonical(
    x: np.ndarray, y: np.ndarray | None, weights: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray | None]:
    """The rows in an order that does not depend on the given one, and their weights.

    A fit depends on the order of its rows by its random start. In a canonical order, whole weights
    have the result of as many copies, and the order of the rows has no effect.

    Args:
        x: Rows, shape (N, D).
        y: Targets, shape (N,) or (N, M), or None.
        weights: Weights, shape (N,), or None.

    Returns:
        Numbers of rows, with those of whole weights as often as their weight says, unless they are
        too many; and the weights that are left, or None. Rows of zero weight are left out.

    Example:
        >>> canonical(np.array([[3.0], [1.0], [2.0]]), None, np.array([1.0, 2.0, 0.0]))
        (array([1, 1, 0]), None)
    """
    parts = [x] if y is None else [x, y.reshape(len(y), -1)]
    keys = np.ascontiguousarray(np.hstack(parts)) + 0.0  # no negative zeros
    order = np.lexsort(keys.T[::-1]) if keys.shape[1] < 10 else _by_bytes(keys)
    if weights is None:
        return order, None
    order = order[weights[order] > 0]
    weights = weights[order]
    if (weights == weights.round()).all() and weights.sum() <= MOST_COPIES * len(x):
        return np.repeat(order, weights.astype(int)), None
    return order, weights


def _by_bytes(keys: np.ndarray) -> np.ndarray:
    """The order of many columns by their bytes, which is faster than by their values."""
    return np.argsort(keys.view(np.dtype((np.void, keys.strides[0]))).ravel(), kind="stable")


def _expect_numbers(X: Any) -> None:
    """Check that the columns of a data frame are numbers.

    Raises:
        DataError: If one is not.
    """
    if not isinstance(X, pd.DataFrame) or X.columns.has_duplicates:
        return
    for name in X.columns:
        if not pd.api.types.is_numeric_dtype(X[name].dtype):
            try:
                as_tensor(X[[name]], "X")
            except DataError as error:
                raise DataError(
                    f"{error}: code categories as numbers, such as by a OneHotEncoder before"
                ) from error


def _expect_finite(x: np.ndarray, names: Any) -> None:
    finite = np.isfinite(x)
    if finite.all():
        return
    row, column = np.argwhere(~finite)[0]
    got = "NaN" if np.isnan(x[row, column]) else f"{x[row, column]:g}"
    label = column if names is None else repr(names[column])
    number = (~finite.all(1)).sum()
    raise DataError(
        f"expected finite values in X; got {got} in row {row}, column {label} ({number} of "
        f"{len(x)} rows have such values): leave these rows out, or put a SimpleImputer before"
    )
