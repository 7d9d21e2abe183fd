"""A baseline of predictions: one linear model of the training rows."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from pyro_moe.fitted import Fit
from pyro_moe.inference.context import without_warnings
from pyro_moe.rows import Data, has_target

from .marginals import families
from .prediction import predict

Array = np.ndarray
Found = tuple[np.ndarray, np.ndarray, int]


@dataclass(frozen=True)
class Line:
    """What one linear model of the training rows says of rows.

    Attributes:
        log_density: Log p(y|x), shape (N,).
        mean: E[y|x], shape (N, M); for classes, the most probable one, shape (N, 1).
        num_parameters: The number of its coefficients and scales.
    """

    log_density: torch.Tensor
    mean: torch.Tensor
    num_parameters: int


def linear_baseline(fit: Fit, data: Data) -> torch.Tensor | None:
    r"""Log p(y|x) of each row under one linear model of the rows that were fitted, shape (N,).

    .. math:: y \mid x \sim N(a + \langle b, x \rangle, \sigma^2)

    Each column of y has its own σ², which is divided by the degrees of freedom. Counts have
    Poisson regression, and classes and binary targets logistic regression with scikit-learn's
    default penalty. A story whose predictions are not better has found nothing that one model
    lacks.

    Args:
        fit: A fit with targets.
        data: Rows (x, y). Use rows that were not fitted. Columns with names are matched by name.

    Returns:
        The log-densities in nats, or None if there is no linear model of this kind: a family that
        is none of these, fewer fitted rows than coefficients, rows of x with gaps, or a
        restored fit, whose rows are not known.

    Raises:
        DataError: As in `Fit.as_tensors`.

    Example:
        >>> import pyro_moe
        >>> from pyro_moe import models
        >>> x = torch.linspace(-1.0, 1.0, 40).unsqueeze(-1)
        >>> y = x[:, 0] + torch.tensor([0.1, -0.1]).repeat(20)
        >>> story = models.ME(x_dim=1, y_dim=1, num_components=1)
        >>> fit = pyro_moe.fit(story.model, story.guide, (x, y), progress=False)
        >>> gap = predict(fit, x).log_prob(y) - linear_baseline(fit, (x, y))
        >>> bool(gap.abs().mean() < 0.05)
        True
    """
    line = linear_model(fit, data)
    return None if line is None else line.log_density


def linear_model(fit: Fit, data: Data) -> Line | None:
    """One linear model of the rows that were fitted, see `linear_baseline`, at rows (x, y)."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.preprocessing import StandardScaler

    if fit.restored is not None or not fit.has_target:
        return None
    weights = fit.annotations.weights
    weights = torch.ones(len(fit.data[0])) if weights is None else weights.cpu()
    known = has_target(fit.data[1]).cpu() & (weights > 0)
    x, y, w = (part.cpu()[known].double().numpy() for part in (*fit.data[:2], weights))
    new_x, new_y = (part.double().cpu().numpy() for part in fit.as_tensors(data)[:2])
    if np.isnan(x).any() or np.isnan(new_x).any():
        return None
    names = {type(p).__name__ for p in families(predict(fit, fit.data[0][:1]).distributions[0])}
    model = next((MODELS[name] for name in names if name in MODELS), None)
    if len(names) != 1 or model is None or len(x) < x.shape[1] + 2:
        return None
    scaler = StandardScaler().fit(x, sample_weight=w)
    x, new_x = scaler.transform(x), scaler.transform(new_x)
    columns = zip(y.reshape(len(y), -1).T, new_y.reshape(len(new_y), -1).T, strict=True)
    with without_warnings(ConvergenceWarning):
        each = [model(x, column, w, new_x, new) for column, new in columns]
    densities, means, sizes = zip(*each, strict=True)
    return Line(
        torch.as_tensor(np.sum(densities, axis=0)), torch.as_tensor(np.stack(means, -1)), sum(sizes)
    )


def _normal(x: Array, y: Array, w: Array, new_x: Array, new_y: Array) -> Found:
    from scipy.stats import norm
    from sklearn.linear_model import LinearRegression

    line = LinearRegression().fit(x, y, w)
    freedom = max(w.sum() - x.shape[1] - 1, 1)
    scale = np.sqrt((w * np.square(y - line.predict(x))).sum() / freedom)
    tiny = 1e-9 * np.ptp(y) + np.finfo(float).eps * np.abs(y).max() + 1e-300
    mean = line.predict(new_x)
    return norm.logpdf(new_y, mean, max(scale, tiny)), mean, x.shape[1] + 2


def _poisson(x: Array, y: Array, w: Array, new_x: Array, new_y: Array) -> Found:
    from scipy.stats import poisson
    from sklearn.linear_model import PoissonRegressor

    line = PoissonRegressor(alpha=1e-6, max_iter=1000).fit(x, y, w)
    mean = line.predict(new_x)
    return poisson.logpmf(new_y, mean), mean, x.shape[1] + 1


def _classes(x: Array, y: Array, w: Array, new_x: Array, new_y: Array) -> Found:
    from sklearn.linear_model import LogisticRegression

    if len(set(y)) == 1:
        return np.where(new_y == y[0], 0.0, -np.inf), np.full(len(new_y), y[0]), 0
    line: Any = LogisticRegression(max_iter=1000).fit(x, y, w)
    place = np.searchsorted(line.classes_, new_y).clip(max=len(line.classes_) - 1)
    found = np.take_along_axis(line.predict_log_proba(new_x), place[:, None], axis=1)[:, 0]
    found = np.where(line.classes_[place] == new_y, found, -np.inf)
    return found, line.predict(new_x), line.coef_.size + line.intercept_.size


MODELS = {
    "Normal": _normal,
    "MultivariateNormal": _normal,
    "StudentT": _normal,
    "Poisson": _poisson,
    "Categorical": _classes,
    "Bernoulli": _classes,
}
