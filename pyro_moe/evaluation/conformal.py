"""Conformal prediction intervals: those of a model, corrected by rows that it has not seen."""

from math import ceil

import torch
from numpy.typing import ArrayLike

from .prediction import Prediction


def conformal_interval(
    prediction: Prediction, calibration: Prediction, y: ArrayLike, *, level: float = 0.9
) -> tuple[torch.Tensor, torch.Tensor]:
    r"""Prediction intervals that cover new targets with at least the given probability.

    .. math:: [\,l - e\,(m - l),\; h + e\,(h - m)\,]

    l, m and h are the quantiles (1 - level) / 2, 1/2 and (1 + level) / 2 of the prediction. They
    are stretched, or shortened if e is negative. e is the smallest number for which the stretched
    intervals of R calibration rows cover ⌈level (R + 1)⌉ of their targets. For counts the limits
    move by whole numbers, l - e and h + e.

    If calibration rows and new rows are exchangeable, and the calibration rows were not used to
    fit, a new target is in its interval with probability at least ``level``, on average over rows,
    and at most ``level`` + 1 / (R + 1) for a continuous target. This holds for any model. It does
    not hold for each x: where a model is too sure of some regimes only, it stays so.

    Args:
        prediction: The prediction of N rows, the result of `predict`.
        calibration: The prediction of R further rows, by the same fit.
        y: Targets of the calibration rows, shape (R,) or (R, M), in their own units.
        level: Between 0 and 1.

    Returns:
        The lower and upper limits, each of shape (N, M), in the units of y. Each of several
        targets has an interval of its own.

    Raises:
        DataError: If y does not have the shape of the calibration, or is a class.
        ValueError: If level is not between 0 and 1, or R is less than level / (1 - level).

    Source:
        Romano, Patterson and Candès, "Conformalized quantile regression", NeurIPS 2019; Sesia and
        Candès, "A comparison of some conformal quantile regression methods", Stat 9, 2020 (CQR-m).

    Example:
        >>> from torch.distributions import Normal
        >>> def standard(n):
        ...     return Prediction(torch.zeros(1, n, 1), (Normal(torch.zeros(n, 1), 1.0),))
        >>> y = torch.linspace(-2.0, 2.0, 199)  # of a uniform distribution, which it is not
        >>> low, high = conformal_interval(standard(1), standard(199), y, level=0.5)
        >>> print(f"{low.item():.2f} to {high.item():.2f}, by the model -0.67 to 0.67")
        -1.01 to 1.01, by the model -0.67 to 0.67
    """
    if not 0 < level < 1:
        raise ValueError(f"expected level between 0 and 1; got {level}")
    values = calibration.targets(y).reshape(len(calibration), -1)
    rank = _at_least(level * (len(values) + 1))
    if rank > len(values):
        needed = _at_least(level / (1 - level))
        raise ValueError(
            f"expected at least {needed} calibration rows for level {level}; got {len(values)}"
        )
    low, _, high, below, above = _limits(calibration, level)
    beyond = torch.maximum((low - values) / below, (values - high) / above)
    stretch = beyond.sort(0).values[rank - 1]
    low, middle, high, below, above = _limits(prediction, level)
    return (low - stretch * below).minimum(middle), (high + stretch * above).maximum(middle)


def _at_least(number: float) -> int:
    """The smallest whole number that is not below a number, but for its rounding."""
    return ceil(number - 1e-9)


def _limits(prediction: Prediction, level: float) -> tuple[torch.Tensor, ...]:
    """The limits of central intervals around the median, and the units in which they move."""
    low, middle, high = (prediction.quantile(q) for q in ((1 - level) / 2, 0.5, (1 + level) / 2))
    below, above = (
        torch.where(prediction.discrete, 1.0, step) for step in (middle - low, high - middle)
    )
    return low, middle, high, below, above
