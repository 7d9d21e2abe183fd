"""Means, variances and distribution functions of each column of a target."""

from typing import Any

import torch
from torch.distributions import (
    Bernoulli,
    Binomial,
    Categorical,
    Independent,
    MixtureSameFamily,
    MultivariateNormal,
    NegativeBinomial,
    Normal,
    Poisson,
    StudentT,
    constraints,
)

from pyro_moe.distributions import Joint, Mixture, Observed, Stacked
from pyro_moe.inference.errors import DataError

MIXTURES = (Mixture, MixtureSameFamily)


def mean_of(p: Any) -> torch.Tensor:
    """The mean of a distribution; for classes, their probabilities."""
    if isinstance(p, Categorical):
        return p.probs
    if isinstance(p, MIXTURES):
        each = mean_of(p.component_distribution)
        return _average(p, each, each.dim() - len(p.component_distribution.batch_shape))
    if isinstance(p, Stacked):
        return torch.stack([mean_of(q) for q in p.distributions], len(p.batch_shape) - 1)
    return p.mean


def variance_of(p: Any) -> torch.Tensor:
    """The variance of a distribution; for classes, of the indicator of each."""
    if has_classes(p):
        probs = mean_of(p)
        return probs * (1.0 - probs)
    return p.variance


def has_classes(p: Any) -> bool:
    """Whether a distribution is categorical."""
    return any(isinstance(q, Categorical) for q in families(p))


def is_binary(p: Any) -> bool:
    """Whether all columns are Bernoulli variables."""
    return all(isinstance(q, Bernoulli) for q in families(p))


def families(p: Any) -> list[Any]:
    """The component distributions of a mixture or a stack."""
    if isinstance(p, MIXTURES):
        return families(p.component_distribution)
    if isinstance(p, Stacked | Joint):
        return [leaf for q in p.distributions for leaf in families(q)]
    return families(p.base_dist) if isinstance(p, Independent) else [p]


def discrete_columns(p: Any) -> list[int]:
    """The columns of a target of several families that have a mass function."""
    if isinstance(p, MIXTURES):
        return discrete_columns(p.component_distribution)
    if isinstance(p, Stacked):
        return discrete_columns(p.distributions[0])
    if not isinstance(p, Joint):
        return []
    flags = [
        q.support.is_discrete
        for q, width in zip(p.distributions, p.widths, strict=True)
        for _ in range(width)
    ]
    return [column for column, flag in enumerate(flags) if flag]


def of_one_column(support: Any) -> Any:
    """The constraint on each column, of one on rows of independent columns."""
    independent = isinstance(support, constraints.independent)
    return support.base_constraint if independent else support


def cdf_of(p: Any, value: torch.Tensor) -> torch.Tensor:
    """P(y_m ≤ value) for each column separately.

    Raises:
        DataError: If y is a class, or the distribution function of the family is not available.
    """
    if isinstance(p, Independent):
        return cdf_of(p.base_dist, value)
    column = -1 - len(p.event_shape)
    if isinstance(p, MIXTURES):
        each = cdf_of(p.component_distribution, value.unsqueeze(column))
        return _average(p, each, len(p.event_shape))
    if isinstance(p, Stacked):
        each = value.expand(*torch.broadcast_shapes(value.shape, (*p.batch_shape, *p.event_shape)))
        pairs = zip(p.distributions, each.unbind(column), strict=True)
        return torch.stack([cdf_of(q, v) for q, v in pairs], column)
    if isinstance(p, Joint):
        blocks = zip(p.distributions, value.split(p.widths, -1), strict=True)
        return torch.cat([cdf_of(q, block) for q, block in blocks], -1)
    if isinstance(p, MultivariateNormal):
        return Normal(p.loc, p.variance.sqrt()).cdf(value)
    if isinstance(p, StudentT):
        from scipy.special import stdtr

        standard = (value - p.loc) / p.scale
        below = stdtr(p.df.cpu().numpy(), standard.cpu().numpy())
        return torch.as_tensor(below).to(value)
    if isinstance(p, Poisson):
        below = torch.special.gammaincc(value.double().floor().clamp_min(0.0) + 1.0, p.rate)
        return torch.where(value < 0, torch.zeros_like(below), below)
    if isinstance(p, NegativeBinomial):
        from scipy.special import betainc

        failure = torch.sigmoid(-p.logits)
        known = (p.total_count, value.double().floor().clamp_min(0.0) + 1.0, failure)
        below = torch.as_tensor(betainc(*(part.cpu().numpy() for part in known)))
        return torch.where(value < 0, torch.zeros_like(value), below.to(value))
    if isinstance(p, Binomial):
        from scipy.special import betainc

        count = value.double().floor().clamp_min(0.0)
        known = ((p.total_count - count).clamp_min(0.5), count + 1.0, 1.0 - p.probs)
        below = torch.as_tensor(betainc(*(part.cpu().numpy() for part in known))).to(value)
        below = torch.where(count >= p.total_count, torch.ones_like(below), below)
        return torch.where(value < 0, torch.zeros_like(below), below)
    if isinstance(p, Bernoulli):
        below = (1.0 - p.probs) * (value >= 0)
        return torch.where(value < 1, below, torch.ones_like(below))
    try:
        return p.cdf(value)
    except NotImplementedError as error:
        raise DataError(
            f"expected a target with a distribution function; got {type(p).__name__}"
        ) from error


def _average(p: Any, each: torch.Tensor, event_dim: int) -> torch.Tensor:
    """The average of values of a mixture's components by its weights."""
    weights = p.mixture_distribution.probs
    return (weights.reshape(*weights.shape, *(1,) * event_dim) * each).sum(-1 - event_dim)


def of_column(p: Any, column: int) -> Observed:
    """A distribution of rows whose density is the marginal density of one column.

    Args:
        p: A distribution that `condition` accepts.
        column: The number of the column.
    """
    return Observed(p, torch.arange(p.event_shape[-1], device=p.mean.device) == column)
