"""Scores of a fit on test rows, and their printed names."""

from dataclasses import replace
from typing import Any

import torch

from pyro_moe import evaluation
from pyro_moe.evaluation.marginals import has_classes
from pyro_moe.fitted import Fit, weighted_mean
from pyro_moe.inference.errors import SiteError
from pyro_moe.rows import Rows, has_target

NAMES = {
    "test_elbo": "test ELBO, nats per row",
    "elbo": "ELBO, nats per row",
    "importance_weighted_bound": "importance-weighted bound",
    "accuracy": "clustering accuracy",
    "nmi": "normalized mutual information",
    "ari": "adjusted Rand index",
    "effective_components": "effective number of components",
    "error": "squared error, summed over targets",
    "rmse": "root mean squared error",
    "log_likelihood": "test log-likelihood, nats per row",
    "linear_log_likelihood": "the same of one linear model",
    "crps": "continuous ranked probability score",
    "log_loss": "log loss, nats per row",
    "seconds": "seconds of training",
}


def scores(fit: Fit, test: Rows) -> dict[str, float]:
    """All applicable scores of a fit on test rows, by name."""
    weights = fit.weights_of(test)
    bounds = {
        "test_elbo": evaluation.elbo(fit, test),
        "importance_weighted_bound": evaluation.importance_weighted_bound(fit, test),
    }
    found = {name: weighted_mean(bound, weights).item() for name, bound in bounds.items()}
    try:
        g = evaluation.gate(fit, test)
    except SiteError:  # a model without components
        return found
    if test.labels is not None:
        found |= evaluation.clustering_scores(g, test.labels, weights)
    found["effective_components"] = torch.special.entr(weighted_mean(g, weights)).sum().exp().item()
    return found | _of_targets(fit, known(test))


def _of_targets(fit: Fit, test: Rows) -> dict[str, float]:
    if test.y is None:
        return {}
    prediction, weights = evaluation.predict(fit, test), fit.weights_of(test)
    found: dict[str, Any]
    line = evaluation.linear_baseline(fit, test)
    baseline = (
        {} if line is None else {"linear_log_likelihood": weighted_mean(line, weights).item()}
    )
    if has_classes(prediction.distributions[0]):
        found = evaluation.classification_scores(prediction, test.y, weights=weights)
        return {"accuracy of classes": found.pop("accuracy"), **found, **baseline}
    found = evaluation.regression_scores(prediction, test.y, weights=weights)
    coverage = found.pop("coverage")
    shares = {f"coverage of {level:.0%} intervals": share for level, share in coverage.items()}
    crps = found.pop("crps")
    return found | baseline | {"crps": crps} | shares


def known(rows: Rows) -> Rows:
    """The rows with known targets, or all rows without y if there are none."""
    if rows.y is None:
        return rows
    there = has_target(rows.y)
    return rows.take(there) if there.any() else replace(rows, y=None)
