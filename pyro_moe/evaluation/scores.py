"""Scores of clusterings and of predictions."""

from collections.abc import Sequence
from typing import Any

import torch
from numpy.typing import ArrayLike
from torch.distributions import Independent, MultivariateNormal, Normal

from pyro_moe.fitted import Fit, weighted_mean
from pyro_moe.inference.errors import DataError
from pyro_moe.rows import Data, as_tensor

from .bounds import importance_weighted_bound
from .marginals import families, has_classes
from .prediction import Prediction, predict


def score(fit: Fit, data: Data | None = None, *, seed: int = 0) -> float:
    r"""The mean log-density of rows, in nats per row: the larger, the better.

    .. math:: \frac{1}{N} \sum_n \log p(y_n \mid x_n), \text{ or } \frac{1}{N} \sum_n \log p(x_n)

    Rows count as many times as their weights say, see `Fit.weights_of`.

    Args:
        fit: A fit.
        data: Rows like those that were fitted, preferably held out; the training rows if None.
        seed: Seed of the draws of latent variables.

    Returns:
        That of y given x, over the rows with a target. Without targets, that of x, or for stories
        with z the bound of `importance_weighted_bound`.

    Raises:
        DataError: If the data does not match what was fitted, or is None for a fit that was
            restored without its training rows.
    """
    rows = fit.rows(data)
    if rows.y is not None:
        rows = rows.with_targets()
    weights = rows.annotations.get("weights")
    if rows.y is None:
        return weighted_mean(importance_weighted_bound(fit, rows, seed=seed), weights).item()
    log_density = predict(fit, rows, seed=seed).log_prob(torch.as_tensor(rows.y))
    return weighted_mean(log_density, weights).item()


def clustering_scores(
    gate: ArrayLike, labels: ArrayLike, weights: torch.Tensor | None = None
) -> dict[str, float]:
    r"""Score the agreement of clusters with labels that were not used for fitting.

    .. math:: \mathrm{accuracy} = \max_\pi \frac{1}{N} \sum_n 1[\pi(\hat c_n) = y_n]

    over one-to-one maps π from clusters to labels.

    Args:
        gate: Responsibilities (N, K), of which the largest is the cluster, or clusters (N,).
        labels: Labels (N,), integers.
        weights: How many rows each row counts as, shape (N,), or None.

    Returns:
        ``"accuracy"``, ``"nmi"`` (normalized mutual information) and ``"ari"`` (adjusted Rand
        index).

    Raises:
        DataError: If the number of labels differs from the number of rows, or a label is not a
            number.

    Example:
        >>> clustering_scores([[0.9, 0.1], [0.2, 0.8], [0.3, 0.7]], [1, 0, 0])["accuracy"]
        1.0
    """
    from scipy.optimize import linear_sum_assignment

    clusters, truth = as_tensor(gate, "gate"), as_tensor(labels, "labels")
    if clusters.dim() == 2:
        clusters = clusters.argmax(-1)
    if truth.shape != clusters.shape:
        raise DataError(f"expected {len(clusters)} labels; got shape {tuple(truth.shape)}")
    actual, predicted = (part.cpu().unique(return_inverse=True)[1] for part in (truth, clusters))
    counts = torch.zeros(int(actual.max()) + 1, int(predicted.max()) + 1).double()
    each = torch.ones(len(actual)) if weights is None else weights.cpu()
    counts.index_put_((actual, predicted), each.double(), accumulate=True)
    rows, columns = linear_sum_assignment(counts.numpy(), maximize=True)
    return {
        "accuracy": float(counts[rows, columns].sum() / counts.sum()),
        "nmi": _mutual_information(counts),
        "ari": _rand_index(counts),
    }


def _mutual_information(counts: torch.Tensor) -> float:
    """The mutual information of a table of counts, divided by the mean of the entropies."""
    joint = counts / counts.sum()
    each = sum(float(torch.special.entr(joint.sum(side)).sum()) for side in (0, 1))
    both = float(torch.special.entr(joint).sum())
    return max(each - both, 0.0) / (each / 2) if each > 0 else 1.0


def _rand_index(counts: torch.Tensor) -> float:
    """The Rand index of a table of counts, adjusted for chance."""
    same, rows, columns, all_pairs = (
        float((part * (part - 1) / 2).sum())
        for part in (counts, counts.sum(1), counts.sum(0), counts.sum())
    )
    expected, most = rows * columns / all_pairs if all_pairs else 0.0, (rows + columns) / 2
    return 1.0 if most == expected else (same - expected) / (most - expected)


def regression_scores(
    prediction: Prediction,
    y: ArrayLike,
    *,
    weights: torch.Tensor | None = None,
    levels: Sequence[float] = (0.5, 0.8, 0.9, 0.95),
) -> dict[str, Any]:
    r"""Score predictions of numeric targets: errors, log-likelihood, CRPS and coverage.

    .. math:: \mathrm{error} = \frac{1}{N} \sum_n |y_n - E[y|x_n]|^2, \quad
              \mathrm{crps} = \int (F(t) - 1\{t \ge y\})^2 dt
              = 2 \int_0^1 \rho_q(y - F^{-1}(q))\, dq

    Args:
        prediction: The result of `predict`.
        y: Targets, shape (N,) or (N, M), in their own units.
        weights: How many rows each row counts as, shape (N,), or None.
        levels: Nominal levels of central intervals.

    Returns:
        ``"error"`` (the squared error summed over columns, averaged over rows, as in the paper),
        ``"rmse"`` (root mean squared error over rows and columns), ``"log_likelihood"`` (nats per
        row, jointly over columns), ``"crps"`` (averaged over rows and columns, in the units of y,
        see `continuous_ranked_probability_score`) and ``"coverage"`` (by level, the share of
        targets inside their central interval).

    Raises:
        DataError: If y does not have the shape of the prediction, or is a class.

    Source:
        Gneiting and Raftery, "Strictly proper scoring rules, prediction, and estimation", JASA
        2007, section 4.2.
    """
    target = prediction.targets(y).reshape(len(prediction), -1)
    squared = (target - prediction.mean).square()
    coverage = {}
    for level in levels:
        low, high = (prediction.quantile(0.5 + side * level / 2) for side in (-1, 1))
        inside = ((low <= target) & (target <= high)).float()
        coverage[level] = weighted_mean(inside, weights).mean().item()
    crps = continuous_ranked_probability_score(prediction, y)
    return {
        "error": weighted_mean(squared.sum(-1), weights).item(),
        "rmse": weighted_mean(squared, weights).mean().sqrt().item(),
        "log_likelihood": weighted_mean(prediction.log_prob(y), weights).item(),
        "crps": weighted_mean(crps, weights).mean().item(),
        "coverage": coverage,
    }


def continuous_ranked_probability_score(prediction: Prediction, y: ArrayLike) -> torch.Tensor:
    r"""The continuous ranked probability score (CRPS) in the units of y, shape (N, M).

    .. math:: \mathrm{crps} = \int (F(t) - 1\{t \ge y\})^2\, dt
              = E|Y - y| - \tfrac{1}{2} E|Y - Y'| = 2 \int_0^1 \rho_q(y - F^{-1}(q))\, dq

    It has a closed form for normal experts. For others, the integral over q is approximated by the
    midpoint rule with 50 points.

    Args:
        prediction: The result of `predict`.
        y: Targets, shape (N,) or (N, M).

    Raises:
        DataError: If y does not have the shape of the prediction, or is a class.

    Source:
        Grimit, Gneiting, Berrocal and Johnson, "The continuous ranked probability score for
        circular variables and its application to mesoscale forecast ensemble verification", 2006,
        section 2 (mixtures of normals); Gneiting and Raftery, JASA 2007, section 4.2.
    """
    target = prediction.targets(y).reshape(len(prediction), -1)
    if all(isinstance(_base(p), (Normal, MultivariateNormal)) for p in prediction.distributions):
        return _of_normals(prediction, target)
    losses = []
    for q in ((torch.arange(50, dtype=torch.float64) + 0.5) / 50).tolist():
        excess = target - prediction.quantile(q)
        losses.append(torch.maximum(q * excess, (q - 1) * excess))
    return 2 * torch.stack(losses).mean(0)


def _base(p: Any) -> Any:
    return p.base_dist if isinstance(p, Independent) else p


def _of_normals(prediction: Prediction, target: torch.Tensor) -> torch.Tensor:
    """Σ_i w_i A(y − μ_i, σ_i²) − ½ Σ_ij w_i w_j A(μ_i − μ_j, σ_i² + σ_j²), shape (N, M)."""
    weights, means, variances = prediction.components()
    near = (weights * _absolute(target.unsqueeze(1) - means, variances)).sum(1)
    spread = sum(
        (weights[:, i, None] * weights * _absolute(means[:, i, None] - means, v + variances)).sum(1)
        for i, v in enumerate(variances.unsqueeze(2).unbind(1))
    )
    return near - spread / 2


def _absolute(mean: torch.Tensor, variance: torch.Tensor) -> torch.Tensor:
    """E|X| of a normal X."""
    deviation = variance.sqrt()
    unit = Normal(torch.zeros_like(mean), 1.0)
    standard = mean / deviation
    return 2 * deviation * unit.log_prob(standard).exp() + mean * (2 * unit.cdf(standard) - 1)


def classification_scores(
    prediction: Prediction, y: ArrayLike, *, weights: torch.Tensor | None = None
) -> dict[str, float]:
    r"""Score predictions of classes: accuracy and log loss.

    Args:
        prediction: The result of `predict` for classes.
        y: Classes, shape (N,).
        weights: How many rows each row counts as, shape (N,), or None.

    Returns:
        ``"accuracy"`` and ``"log_loss"``, :math:`-\frac{1}{N} \sum_n \log p(y_n | x_n)`.

    Raises:
        DataError: If the number of classes differs from the number of rows, or y is not a class.
    """
    if not has_classes(prediction.distributions[0]):
        (family, *_) = families(prediction.distributions[0])
        raise DataError(f"expected a prediction of classes; got one of {type(family).__name__}")
    log_prob = prediction.log_prob(y)
    right = prediction.mean.argmax(-1) == prediction.targets(y)
    return {
        "accuracy": weighted_mean(right.float(), weights).item(),
        "log_loss": -weighted_mean(log_prob, weights).item(),
    }
