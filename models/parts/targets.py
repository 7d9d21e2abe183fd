"""The target site ``y``: one expert's, observed or drawn, with rows that lack it."""

from typing import Any

import pyro
import torch


def observe_target(p: Any, y: torch.Tensor | None) -> torch.Tensor:
    """The site ``y``: observed where it is known, skipped where a row holds NaN.

    Args:
        p: Its distribution, of batch shape (..., N).
        y: Targets, shape (N,) or (N, M), or None to draw them.

    Returns:
        The value of the site.
    """
    if y is None:
        return pyro.sample("y", p)
    value, known = as_value(y, p)
    with pyro.poutine.mask(mask=known):
        return pyro.sample("y", p, obs=value)


def log_likelihoods(experts: Any, y: torch.Tensor) -> torch.Tensor:
    """Log p_k(y|x) of each row under each expert, shape (N, K); zero where y is missing.

    Args:
        experts: A distribution of batch shape (N, K).
        y: Targets, shape (N,) or (N, M).
    """
    value, known = as_value(y, experts)
    each = experts.log_prob(value.unsqueeze(1))
    return torch.where(known.unsqueeze(-1), each, torch.zeros_like(each))


def as_value(y: torch.Tensor, p: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Targets (N,) or (N, M) in the event shape of p, NaN set to zero, and which rows have none.

    Raises:
        ValueError: If y has not as many columns as p.
    """
    if y.shape[1:].numel() != p.event_shape.numel():
        raise ValueError(
            f"expected y with {p.event_shape.numel()} columns; got {y.shape[1:].numel()}"
        )
    known = ~_missing(y)
    value = y.nan_to_num(0.0).reshape(len(y), *p.event_shape)
    if not value.is_floating_point():  # a Bernoulli's density takes no whole numbers
        value = value.to(p.mean.dtype)
    return value, known


def known_rows(y: torch.Tensor, *others: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """The rows of y, and of tensors beside it, in which y has no NaN."""
    known = ~_missing(y)
    return (y[known], *(other[known] for other in others))


def _missing(y: torch.Tensor) -> torch.Tensor:
    return y.reshape(len(y), -1).isnan().any(-1)
