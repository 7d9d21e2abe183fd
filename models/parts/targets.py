"""The target site ``y``: one expert's, observed or drawn, with rows that lack it."""

from typing import Any

import pyro
import torch
from torch import nn

from pyro_moe.distributions.mixture import Mixture


def choose(c: torch.Tensor, experts: Any) -> Mixture:
    """The expert of a one-hot ``c``; for a relaxed one the mixture with those weights.

    Args:
        c: Assignments, shape (..., K).
        experts: A distribution of batch shape (..., K).

    Example:
        >>> import pyro.distributions as dist
        >>> experts = dist.Normal(torch.tensor([[1.0, 2.0]]), 1.0)
        >>> choose(torch.tensor([[0.0, 1.0]]), experts).mean
        tensor([2.])
    """
    tiny = torch.finfo(c.dtype).tiny
    return Mixture(torch.where(c > 0, c.clamp_min(tiny).log(), -torch.inf), experts)


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


def maximize_likelihood(
    experts: nn.Module,
    context: torch.Tensor,
    y: torch.Tensor,
    weights: torch.Tensor,
    *,
    iterations: int = 50,
    prior_scale: float = 5.0,
) -> None:
    r"""Raise the weighted likelihood of experts of any kind, by L-BFGS from where they are.

    .. math:: \max \sum_{nk} r_{nk} \log p_k(y_n \mid x_n) - \frac{|W|^2}{2 s^2}

    with W the weights of the experts' maps: where classes can be separated, these would grow
    without end but for s. EM with such a step is generalized EM: the penalized likelihood rises,
    not always to the step's maximum. A step that ends where a parameter is not finite is undone.

    Args:
        experts: The module.
        context: What the experts see, shape (N, C).
        y: Targets, shape (N,) or (N, M); rows with NaN are left out.
        weights: Responsibilities r, shape (N, K).
        iterations: L-BFGS iterations at the most.
        prior_scale: s, in standard units.
    """
    y, context, weights = known_rows(y, context, weights)
    weights = weights.to(context)
    named = {name: p for name, p in experts.named_parameters() if p.requires_grad}
    maps = [p for name, p in named.items() if name.endswith("weight")]
    parameters = list(named.values())
    optimizer = torch.optim.LBFGS(parameters, max_iter=iterations, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        with torch.enable_grad():
            likelihood = (weights * log_likelihoods(experts(context), y)).sum()
            penalty = sum(p.square().sum() for p in maps) / (2 * prior_scale**2)
            value = (penalty - likelihood) / len(y)
            value.backward()
        return value

    before = [p.detach().clone() for p in parameters]
    optimizer.step(loss)
    optimizer.zero_grad()
    if not all(p.isfinite().all() for p in parameters):
        with torch.no_grad():
            for parameter, value in zip(parameters, before, strict=True):
                parameter.copy_(value)
