"""The target site ``y``, which may be missing in some rows."""

from typing import Any

import pyro
import torch

from pyro_moe.distributions import in_double

ROWS = 2**16


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


def precise_log_likelihoods(experts: Any, y: torch.Tensor) -> torch.Tensor:
    """As `log_likelihoods`, in double precision."""
    return log_likelihoods(in_double(experts), y.double())


def posterior_logits(logits: torch.Tensor, experts: Any, y: torch.Tensor) -> torch.Tensor:
    r"""Log p(c=k|x, y), shape (N, K), by Bayes' rule; log p(c=k|x) in rows where y is missing.

    .. math:: \log p(c = k \mid x, y) = \mathrm{log\,softmax}_k
              [\log p(c = k \mid x) + \log p_k(y \mid x)]

    It is computed in double precision. A target far from all experts has log-likelihoods of -1e5
    or less, of which the differences count.

    Args:
        logits: log p(c=k|x) up to a constant, shape (N, K).
        experts: A distribution of batch shape (N, K).
        y: Targets, shape (N,) or (N, M).
    """
    joint = logits.double() + precise_log_likelihoods(experts, y)
    return joint.log_softmax(-1).to(logits)


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
        own = p.mean.dtype
        exact = (value.abs() <= 2 / torch.finfo(own).eps).all()  # else more digits than it has
        value = value.to(own if exact else torch.float64)
    return value, known


def known_rows(y: torch.Tensor, *others: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """The rows of y without NaN, and the same rows of other tensors."""
    if not any(_missing(part).any() for part in y.split(ROWS)):
        return (y, *others)
    missing = _missing(y)
    return (y[~missing], *(other[~missing] for other in others))


def _missing(y: torch.Tensor) -> torch.Tensor:
    return y.reshape(len(y), -1).isnan().any(-1)
