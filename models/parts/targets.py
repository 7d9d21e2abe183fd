"""The target site ``y``, which may be missing in some rows."""

from typing import Any

import pyro
import torch


def observe_target(p: Any, y: torch.Tensor | None) -> torch.Tensor:
    """The site ``y``: observed in rows where it is known, and masked in rows with NaN.

    Args:
        p: The distribution of y, batch shape (..., N).
        y: Targets, shape (N,) or (N, M), or None to draw them.

    Returns:
        The value of the site. It is zero where y is NaN.
    """
    if y is None:
        return pyro.sample("y", p)
    value, known = as_value(y, p)
    with pyro.poutine.mask(mask=known):
        return pyro.sample("y", p, obs=value)


def log_likelihoods(experts: Any, y: torch.Tensor) -> torch.Tensor:
    """Log p_k(y|x), shape (N, K); zero in rows where y is missing.

    Args:
        experts: A distribution of batch shape (N, K).
        y: Targets, shape (N,) or (N, M).
    """
    value, known = as_value(y, experts)
    each = experts.log_prob(value.unsqueeze(1))
    return torch.where(known.unsqueeze(-1), each, torch.zeros_like(each))


def as_value(y: torch.Tensor, p: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Targets in the event shape of p, with NaN replaced by zero, and a mask of rows without NaN.

    Raises:
        ValueError: If y and p differ in the number of columns.
    """
    if y.shape[1:].numel() != p.event_shape.numel():
        raise ValueError(
            f"expected y with {p.event_shape.numel()} columns; got {y.shape[1:].numel()}"
        )
    known = ~_missing(y)
    value = y.nan_to_num(0.0).reshape(len(y), *p.event_shape)
    if not value.is_floating_point():  # Bernoulli.log_prob does not accept integers
        value = value.to(p.mean.dtype)
    return value, known


def known_rows(y: torch.Tensor, *others: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """The rows of y without NaN, and the same rows of other tensors."""
    known = ~_missing(y)
    return (y[known], *(other[known] for other in others))


def _missing(y: torch.Tensor) -> torch.Tensor:
    return y.reshape(len(y), -1).isnan().any(-1)
