"""Log-likelihood and information criteria of the training rows."""

import math

import torch

from pyro_moe.fitted import Fit
from pyro_moe.inference.context import reproducible
from pyro_moe.inference.handlers import Annotate, Annotations
from pyro_moe.inference.protocols import Countable
from pyro_moe.inference.traces import (
    enumerated_traces,
    is_labeled,
    other_latents,
    row_bounds,
    row_log_weights,
)

from .traces import batches

NAMES = ("log_likelihood", "parameters", "aic", "bic", "icl")


def information_criteria(fit: Fit) -> dict[str, float]:
    r"""The log-likelihood of the training rows, and what it costs.

    .. math:: \mathrm{AIC} = 2 p - 2 \ell, \quad \mathrm{BIC} = p \log N - 2 \ell, \quad
              \mathrm{ICL} = \mathrm{BIC} - 2 \sum_n \log \max_k p(c_n = k \mid d_n)

    with p free parameters. Rows count as many times as their weights say. It is the likelihood of
    the observed sites, of y given x if x is no site.

    Args:
        fit: A fit with its training rows.

    Returns:
        ``log_likelihood``, ``parameters``, ``aic``, ``bic`` and ``icl``. They are NaN for stories
        with latent variables besides assignments, and for rows in groups.

    Example:
        >>> from pyro_moe import fit, models
        >>> x = torch.randn(40, 1, generator=torch.Generator().manual_seed(0))
        >>> story = models.GMM(x_dim=1, num_components=1)
        >>> fitted = fit(story.model, story.guide, x, prior="none", progress=False)
        >>> information_criteria(fitted)["parameters"]
        2
    """
    total = certain = 0.0
    unknown = dict.fromkeys(NAMES, math.nan)
    about = fit.annotations
    if about.groups is not None:
        return unknown
    with torch.no_grad(), reproducible(0):
        first = 0
        for batch in batches(fit.training_rows):
            here = about.take(slice(first, first + len(batch[0])))
            with Annotate(here):
                traces = enumerated_traces(fit.model, fit.guide, *batch)
            if {*other_latents(*traces)} - {"y"}:
                return unknown
            total += float(row_bounds(*traces).sum())
            certain += float(_log_largest(row_log_weights(*traces), here).sum())
            first += len(batch[0])
    number, size = num_parameters(fit), about.total(fit.num_rows)
    bic = number * math.log(size) - 2.0 * total
    values = (total, number, 2.0 * number - 2.0 * total, bic, bic - 2.0 * certain)
    return dict(zip(NAMES, values, strict=True))


def _log_largest(log_weights: torch.Tensor, about: Annotations) -> torch.Tensor:
    """The logarithms of the largest probabilities of a component, times the weights, (N,)."""
    ones = torch.ones_like(log_weights[0])
    weights = ones if about.weights is None else about.weights.to(ones)
    largest = weights * (log_weights / weights).log_softmax(0).amax(0)
    largest = torch.where(weights > 0, largest, 0.0)
    if about.labels is None:
        return largest
    given = weights * about.labels.nan_to_num(1.0).amax(-1).log()
    return torch.where(is_labeled(about.labels), given, largest)


def num_parameters(fit: Fit) -> int:
    """The number of free parameters of a fit.

    A constant that can be added to all logits of a softmax is none, nor is an entry of a matrix
    that is not read.
    """
    counted: dict[int, int] = {}
    inside: set[int] = set()
    for whole in fit.programs.modules:
        for part in whole.modules():
            if isinstance(part, Countable) and id(part) not in inside:
                counted[id(part)] = part.num_free_parameters()
                inside |= {id(each) for each in part.modules()}
                inside |= {id(each) for each in part.parameters()}
    others = [p for p in fit.programs.parameters().values() if id(p) not in inside]
    return sum(counted.values()) + sum(p.numel() for p in others)
