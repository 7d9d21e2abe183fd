"""Orders of components."""

from typing import Any

import numpy as np
from scipy.optimize import linear_sum_assignment

from .coefficients import GATE


def places(fit: Any, order: Any) -> list[int]:
    """The present number of each component in a new order.

    Args:
        fit: A fitted mixture of regressions.
        order: See `MixtureFit.relabel`.

    Raises:
        ValueError: If it is no such order.
    """
    if hasattr(order, "posterior"):
        return matching(fit, order)
    if isinstance(order, str) and order == "size":
        return [int(k) for k in fit.sizes["posterior"].sort_values(ascending=False).index]
    is_pair = isinstance(order, tuple) and len(order) == 2 and isinstance(order[0], str)
    if isinstance(order, str) or is_pair:
        return by_coefficient(fit, *(("*", order) if isinstance(order, str) else order))
    numbers = list(range(fit.num_components))
    try:
        given = [int(k) for k in order]
    except (TypeError, ValueError):
        given = []
    if sorted(given) != numbers:
        raise ValueError(f"expected each of the components {numbers} once; got {order!r}")
    return given


def matching(fit: Any, other: Any) -> list[int]:
    """The components that match those of another fit of the same rows, by their posteriors."""
    mine, like = fit.posterior().to_numpy(), other.posterior().to_numpy()
    if mine.shape != like.shape:
        raise ValueError(f"expected a fit of shape {mine.shape}; got {like.shape}")
    return [int(k) for k in linear_sum_assignment(-(like.T @ mine))[1]]


def by_coefficient(fit: Any, equation: str, term: str) -> list[int]:
    """The components by a coefficient of their experts, the smallest first.

    Args:
        fit: A fitted mixture of regressions.
        equation: The name of an equation, or ``"*"`` for the one that has the term.
        term: The name of the coefficient.
    """
    chosen = [
        float(value)
        for (_, each, name), value in fit.params.items()
        if name == term and each != GATE and equation in ("*", each)
    ]
    if len(chosen) != fit.num_components:
        terms = sorted({key[2] for key in fit.params.index})
        got = term if equation == "*" else (equation, term)
        raise ValueError(
            f"expected a coefficient that each expert has once, of {terms}; got {got!r}"
        )
    return [int(k) for k in np.argsort(chosen, kind="stable")]
