"""A summary of a fit as text."""

import math

import torch

from pyro_moe import evaluation
from pyro_moe.evaluation.marginals import has_classes
from pyro_moe.fitted import Fit, strange_rows_expected, weighted_mean
from pyro_moe.inference.errors import SiteError
from pyro_moe.rows import Data, Rows

from .health import health


@strange_rows_expected()
def summary(fit: Fit, data: Data | None = None, *, seed: int = 0) -> str:
    """What was fitted, how well it describes rows, and how the components share them.

    Args:
        fit: A fit.
        data: Rows like those that were fitted, preferably held out; the training rows if None.
        seed: Seed of every draw.

    Returns:
        Some lines of text, to be printed.

    Raises:
        DataError: If the data does not match what was fitted, or is None for a fit that was
            restored without its training rows.

    Example:
        >>> import torch, pyro_moe
        >>> from pyro_moe import models
        >>> x = torch.randn(60, 2, generator=torch.Generator().manual_seed(0))
        >>> story = models.GMM(x_dim=2, num_components=1)
        >>> fit = pyro_moe.fit(story.model, story.guide, x, progress=False)
        >>> print(summary(fit).splitlines()[0])
        Fit of GMM with num_components=1 to 60 rows: x (2 columns)
    """
    rows = fit.rows(data)
    size = sum(parameter.numel() for parameter in fit.parameters().values())
    weights = rows.annotations.get("weights")
    number = len(rows) if weights is None else float(weights.sum())
    where = "training rows" if data is None else f"{number:,.10g} given rows"
    lines = [repr(fit), f"parameters: {size:,}", "", f"on the {where}:"]
    lines += [f"  {name:<42}{value:>12.5g}" for name, value in _scores(fit, rows, seed).items()]
    try:
        found = health(fit, rows, seed=seed)
    except SiteError:  # a story without components
        return "\n".join(lines)
    lines += ["", "component  share of the rows"]
    lines += [f"{k:>9}  {share:>17.2%}" for k, share in enumerate(found.shares.tolist())]
    return "\n".join([*lines, *(f"warning: {text}" for text in found.warnings())])


def _scores(fit: Fit, rows: Rows, seed: int) -> dict[str, float]:
    if rows.y is None:
        return {"log-density of x, nats per row": evaluation.score(fit, rows, seed=seed)}
    rows = rows.with_targets()
    weights = rows.annotations.get("weights")
    prediction, y = evaluation.predict(fit, rows, seed=seed), torch.as_tensor(rows.y)
    found = {
        "log-density of y given x, nats per row": weighted_mean(
            prediction.log_prob(y), weights
        ).item()
    }
    line = evaluation.linear_baseline(fit, rows)
    if line is not None:
        found["the same of one linear model"] = weighted_mean(line, weights).item()
    if has_classes(prediction.distributions[0]):
        scores = evaluation.classification_scores(prediction, y, weights=weights)
        return found | {"share of classes that are right": scores["accuracy"]}
    target = prediction.targets(y).reshape(len(prediction), -1)
    squared = weighted_mean((target - prediction.mean).square(), weights).mean().item()
    return found | {"root mean squared error": math.sqrt(squared)}
