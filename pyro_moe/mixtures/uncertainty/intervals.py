"""Intervals of confidence, each on the scale on which its parameter is unbounded."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy.stats import norm

from ..formulas.names import CORRELATION, DF, GATE, SIGMA


@dataclass(frozen=True)
class Scale:
    """A scale on which a parameter is unbounded.

    Attributes:
        forth: From the parameter to the scale.
        back: From the scale to the parameter.
        slope: The derivative of ``forth``.
    """

    forth: Callable[[Any], Any]
    back: Callable[[Any], Any]
    slope: Callable[[Any], Any]


PLAIN = Scale(lambda value: value, lambda value: value, lambda value: 1.0 + 0.0 * value)
POSITIVE = Scale(torch.log, np.exp, lambda value: 1.0 / value)
OF_CORRELATIONS = Scale(torch.atanh, np.tanh, lambda value: 1.0 / (1.0 - value**2))  # Fisher's z


def scale_of(name: Any) -> Scale:
    """The scale of a parameter: logarithms of deviations and degrees of freedom, Fisher's z.

    Args:
        name: Component, equation and term.
    """
    _, equation, term = name
    if equation == GATE:
        return PLAIN
    if term in (SIGMA, DF):
        return POSITIVE
    return OF_CORRELATIONS if term.startswith(CORRELATION) else PLAIN


def is_positive(names: pd.MultiIndex) -> np.ndarray:
    """Which parameters are positive, so that none is tested for zero, shape (P,)."""
    return np.array([scale_of(name) is POSITIVE for name in names], bool)


def intervals(values: pd.Series, errors: pd.Series, alpha: float) -> pd.DataFrame:
    """Ends ``lower`` and ``upper`` of intervals of confidence 1 - α.

    Args:
        values: Estimates by component, equation and term.
        errors: Their standard errors.
        alpha: α.
    """
    z, ends = norm.isf(alpha / 2), []
    with np.errstate(over="ignore"):  # of scales that the rows hardly determine
        for name, value, error in zip(values.index, values, errors, strict=True):
            scale = scale_of(name)
            middle = float(scale.forth(torch.tensor(value, dtype=torch.float64)))
            reach = z * error * float(scale.slope(value))
            ends.append((scale.back(middle - reach), scale.back(middle + reach)))
    return pd.DataFrame(ends, values.index, ["lower", "upper"], dtype=float)
