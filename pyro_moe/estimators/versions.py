"""What has another name in scikit-learn before 1.6."""

from typing import Any

import sklearn
from sklearn.utils import validation

_OLD = tuple(map(int, sklearn.__version__.split(".")[:2])) < (1, 6)
FINITE = "force_all_finite" if _OLD else "ensure_all_finite"


def validated(estimator: Any, X: Any, *, reset: bool, **options: Any) -> Any:
    """X after scikit-learn's validation, with values that need not be finite.

    Args:
        estimator: Its ``n_features_in_`` and ``feature_names_in_`` are set or checked.
        X: Rows.
        reset: Whether they are set.
        **options: Further options of `sklearn.utils.check_array`.
    """
    options[FINITE] = False
    if _OLD:
        return estimator._validate_data(X, reset=reset, **options)
    return validation.validate_data(estimator, X, reset=reset, **options)
