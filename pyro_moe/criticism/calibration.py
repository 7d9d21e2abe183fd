"""Calibration of predictive distributions: does what they give a chance of happen so often?"""

import numpy as np
import pandas as pd
import torch
from numpy.typing import ArrayLike

from pyro_moe.evaluation import Prediction
from pyro_moe.inference.context import reproducible


def probability_integral_transform(
    prediction: Prediction, y: ArrayLike, *, seed: int = 0
) -> torch.Tensor:
    r"""Where each target lies in its predictive distribution, shape (N, M).

    .. math:: u = F(y^- \mid x) + v\, [F(y \mid x) - F(y^- \mid x)], \quad v \sim U(0, 1)

    Uniform if the predictions are right: F(y|x) for reals, and for counts and yes-or-no, whose F
    has steps, a random point within the step.

    Args:
        prediction: What `evaluation.predict` gave.
        y: Targets, shape (N,) or (N, M).
        seed: Seed of v.

    Raises:
        DataError: If y has not the shape of what was predicted, or is a class.

    Source:
        Czado, Gneiting and Held, "Predictive model assessment for count data", Biometrics 2009.
    """
    u = prediction.cdf(y)
    if not prediction.distributions[0].support.is_discrete:
        return u
    below = prediction.cdf(prediction.targets(y) - 1)
    with reproducible(seed):
        return below + torch.rand(u.shape, dtype=u.dtype).to(u.device) * (u - below)


def normal_scores(pit: torch.Tensor) -> torch.Tensor:
    r"""The transform in units of a standard normal, :math:`\Phi^{-1}(u)`, between -4.75 and 4.75.

    Single precision cannot tell probabilities from one much beyond these.
    """
    return torch.special.ndtri(pit.clamp(1e-6, 1 - 1e-6))


def calibration(pit: ArrayLike, *, num_levels: int = 19) -> pd.DataFrame:
    r"""The share of targets in their central intervals, beside the intervals' level.

    .. math:: \frac{1}{N M} \#\{(n, m) : |u_{nm} - \tfrac{1}{2}| \le \alpha / 2\}

    Args:
        pit: u, shape (N, M), see `probability_integral_transform`.
        num_levels: How many levels α, equally spaced between 0 and 1.

    Returns:
        Columns ``level``, ``coverage`` and ``standard_error``, that of a share which equals the
        level, among N independent rows.
    """
    u = np.asarray(pit)
    levels = np.arange(1, num_levels + 1) / (num_levels + 1)
    distances = np.abs(u - 0.5).reshape(-1)
    coverage = [(distances <= level / 2).mean() for level in levels]
    error = np.sqrt(levels * (1 - levels) / len(u))
    return pd.DataFrame({"level": levels, "coverage": coverage, "standard_error": error})
