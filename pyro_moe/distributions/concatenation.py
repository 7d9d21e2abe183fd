"""Concatenation of distributions along a batch dimension."""

from collections.abc import Sequence
from typing import Any

import torch
from torch.distributions import Independent

from .double import parameters_of
from .joint import Joint
from .mixture import Mixture, Stacked


def concatenate(parts: Sequence[Any], dim: int) -> Any | None:
    """Concatenate distributions of one family along a batch dimension.

    Args:
        parts: Distributions of one family, with batch shapes that differ only in dimension
            ``dim``.
        dim: Index of the batch dimension, from the left.

    Returns:
        The distribution, or None if the family is not supported.

    Example:
        >>> parts = [torch.distributions.Normal(torch.zeros(n, 3), 1.0) for n in (2, 5)]
        >>> concatenate(parts, 0).batch_shape
        torch.Size([7, 3])
    """
    first: Any = parts[0]
    if len(parts) == 1:
        return first
    if isinstance(first, Independent):
        base = concatenate([part.base_dist for part in parts], dim)
        return base and base.to_event(first.reinterpreted_batch_ndims)
    if isinstance(first, Mixture):
        components = concatenate([part.component_distribution for part in parts], dim)
        weights = torch.cat([part.log_weights for part in parts], dim)
        return components and Mixture(weights, components, validate_args=False)
    if isinstance(first, Stacked | Joint):
        columns = zip(*(part.distributions for part in parts), strict=True)
        joined = [concatenate(column, dim) for column in columns]
        return None if None in joined else type(first)(joined, validate_args=False)
    exact = [getattr(part, "exact", None) or part for part in parts]
    whole: Any = [parameters_of(part.expand(part.batch_shape)) for part in exact]
    if whole[0] is None:
        return None
    values = {name: torch.cat([each[name] for each in whole], dim) for name in whole[0]}
    return type(first)(**values, validate_args=False)
