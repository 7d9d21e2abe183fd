"""Calibration of predictive distributions: PIT values and the coverage of intervals."""

import numpy as np
import pandas as pd
import torch
from numpy.typing import ArrayLike

from pyro_moe.evaluation import Prediction
from pyro_moe.inference.context import reproducible


def probability_integral_transform(
    prediction: Prediction, y: ArrayLike, *, seed: int = 0
) -> torch.Tensor:
    r"""The probability integral transform (PIT) of each target, shape (N, M).

    .. math:: u = F(y^- \mid x) + v\, [F(y \mid x) - F(y^- \mid x)], \quad v \sim U(0, 1)

    It is uniform if the predictive distributions are correct. For continuous targets it is
    F(y|x). For counts and binary targets it is drawn uniformly within the step of F at y.

    Args:
        prediction: The result of `evaluation.predict`.
        y: Targets, shape (N,) or (N, M).
        seed: Seed of v.

    Raises:
        DataError: If y does not have the shape of the prediction, or is a class.

    Source:
        Czado, Gneiting and Held, "Predictive model assessment for count data", Biometrics 2009.
    """
    u = prediction.cdf(y)
    if not prediction.discrete.any():
        return u
    below = prediction.cdf(prediction.targets(y) - prediction.discrete.to(u))
    with reproducible(seed):
        return below + torch.rand(u.shape, dtype=u.dtype).to(u.device) * (u - below)


def normal_scores(pit: torch.Tensor) -> torch.Tensor:
    r"""Normal quantiles of the PIT, :math:`\Phi^{-1}(u)`, clipped to between -4.75 and 4.75.

    The limits keep one row far out from determining a statistic of all rows.
    """
    return torch.special.ndtri(pit.clamp(1e-6, 1 - 1e-6))


def calibration(pit: ArrayLike, *, num_levels: int = 19) -> pd.DataFrame:
    r"""The coverage of central prediction intervals at several nominal levels.

    .. math:: \frac{1}{N M} \#\{(n, m) : |u_{nm} - \tfrac{1}{2}| \le \alpha / 2\}

    Args:
        pit: u, shape (N, M), see `probability_integral_transform`.
        num_levels: Number of levels α, equally spaced between 0 and 1.

    Returns:
        Columns ``level``, ``coverage`` and ``standard_error``. The standard error assumes that the
        level is the true coverage and that the N rows are independent.
    """
    u = np.asarray(pit)
    levels = np.arange(1, num_levels + 1) / (num_levels + 1)
    distances = np.abs(u - 0.5).reshape(-1)
    coverage = [(distances <= level / 2).mean() for level in levels]
    error = np.sqrt(levels * (1 - levels) / len(u))
    return pd.DataFrame({"level": levels, "coverage": coverage, "standard_error": error})
