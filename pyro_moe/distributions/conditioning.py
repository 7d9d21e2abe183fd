"""Conditional and marginal distributions of columns of x."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from pyro.distributions import TorchDistribution
from torch.distributions import Independent, LowRankMultivariateNormal, MultivariateNormal

from .double import in_double
from .mixture import Mixture


@dataclass(frozen=True)
class Conditional:
    r"""The distribution of the missing columns of x given the observed ones, in double precision.

    Attributes:
        log_prob: log p(x_observed), of the batch shape of the distribution, (..., N).
        mean: E[x | x_observed], shape (..., N, D). Observed columns have their observed values.
        variance: The variance of each column, shape (..., N, D), zero for observed columns.
        covariance: A function to the covariances of x | x_observed, shape (..., N, D, D).
        complete: A function from draws of x, shape (..., N, D), to draws of x | x_observed of the
            same type.
    """

    log_prob: torch.Tensor
    mean: torch.Tensor
    variance: torch.Tensor
    complete: Callable[[torch.Tensor], torch.Tensor]
    covariance: Callable[[], torch.Tensor]


def condition(p: Any, x: torch.Tensor, observed: torch.Tensor) -> Conditional:
    """Condition a distribution of rows x on the observed entries.

    Args:
        p: A distribution with independent columns, a multivariate normal, or one of several such
            that `choose` took for each of the K values of c; batch shape (..., N).
        x: Rows, shape (N, D), with any finite number where not observed.
        observed: Which entries are observed, shape (N, D).

    Raises:
        ValueError: If p is neither.

    Example:
        >>> import pyro.distributions as dist
        >>> p = dist.MultivariateNormal(torch.zeros(1, 2), torch.tensor([[1.0, 0.5], [0.5, 1.0]]))
        >>> known = condition(p, torch.tensor([[2.0, 0.0]]), torch.tensor([[True, False]]))
        >>> known.mean, known.variance
        (tensor([[2., 1.]], dtype=torch.float64), tensor([[0.0000, 0.7500]], dtype=torch.float64))
    """
    p, x = in_double(p), x.double()
    if isinstance(p, MultivariateNormal | LowRankMultivariateNormal):
        return _normal(p, x, observed)
    if isinstance(p, Mixture) and p.is_choice:
        return _chosen(p, x, observed)
    if not isinstance(p, Independent) or p.base_dist.event_shape:
        raise ValueError(
            "expected columns of x that are independent given the latent variables, or normal; "
            f"got {type(p).__name__}"
        )

    def complete(draws: torch.Tensor) -> torch.Tensor:
        return torch.where(observed, x.to(draws), draws)

    log_prob = torch.where(observed, p.base_dist.log_prob(x), 0.0).sum(-1)
    variance = torch.where(observed, 0.0, p.variance)
    return Conditional(log_prob, complete(p.mean), variance, complete, variance.diag_embed)


def _chosen(p: Mixture, x: torch.Tensor, observed: torch.Tensor) -> Conditional:
    """Condition each component, and take the one that each row has."""
    each = condition(p.component_distribution, x.unsqueeze(-2), observed.unsqueeze(-2))
    weights = p.log_weights.exp()

    def take(values: torch.Tensor, event_dim: int) -> torch.Tensor:
        chosen = weights.reshape(*weights.shape, *(1,) * event_dim)
        return (chosen * values).sum(-1 - event_dim)

    def complete(draws: torch.Tensor) -> torch.Tensor:
        return take(each.complete(draws.unsqueeze(-2)), 1).to(draws)

    return Conditional(
        take(each.log_prob, 0),
        take(each.mean, 1),
        take(each.variance, 1),
        complete,
        lambda: take(each.covariance(), 2),
    )


def _normal(p: Any, x: torch.Tensor, observed: torch.Tensor) -> Conditional:
    r"""Condition a normal. O is the diagonal matrix of observed entries; O Σ O + I − O = A = L L^T.

    E[x | x_o] = μ + Σ O A^{-1} O (x − μ) and Var[x | x_o] = Σ − Σ O A^{-1} O Σ. The same linear
    map of residuals turns a draw of x into one of x | x_o (Matheron's rule; Wilson et al. 2020).
    """
    known = observed.double()
    covariance = p.covariance_matrix
    seen = known.unsqueeze(-1) * covariance
    scale_tril = torch.linalg.cholesky(seen * known.unsqueeze(-2) + torch.diag_embed(1.0 - known))
    gain = torch.linalg.solve_triangular(scale_tril, seen, upper=False)

    def whitened(values: torch.Tensor) -> torch.Tensor:
        residuals = (known * (x - values)).unsqueeze(-1)
        return torch.linalg.solve_triangular(scale_tril, residuals, upper=False)

    def complete(draws: torch.Tensor) -> torch.Tensor:
        correction = (gain.mT @ whitened(draws)).squeeze(-1)
        return torch.where(observed, x.to(draws), draws + correction.to(draws))

    variance = covariance.diagonal(dim1=-2, dim2=-1) - gain.square().sum(-2)
    log_prob = (
        -0.5 * whitened(p.mean).square().sum((-2, -1))
        - scale_tril.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        - 0.5 * math.log(2.0 * math.pi) * known.sum(-1)
    )
    variance = torch.where(observed, 0.0, variance.clamp_min(0.0))
    return Conditional(
        log_prob, complete(p.mean), variance, complete, lambda: covariance - gain.mT @ gain
    )


class Observed(TorchDistribution):
    """A distribution of rows whose density is the marginal density of their observed entries.

    Args:
        p: A distribution that `condition` accepts.
        observed: Which entries are observed, shape (N, D), or (D,) for the same in all rows.

    Example:
        >>> import pyro.distributions as dist
        >>> p = dist.Normal(torch.zeros(3, 2), 1.0).to_event(1)
        >>> Observed(p, torch.tensor([False, True])).log_prob(torch.tensor([9.0, 0.0])).exp()
        tensor([0.3989, 0.3989, 0.3989], dtype=torch.float64)
    """

    arg_constraints: dict[str, Any] = {}  # noqa: RUF012

    def __init__(self, p: Any, observed: torch.Tensor) -> None:
        self.p, self.observed = p, observed
        super().__init__(p.batch_shape, p.event_shape, validate_args=False)

    @property
    def support(self) -> Any:
        """The support of the rows."""
        return self.p.support

    def sample(self, sample_shape: Any = torch.Size()) -> torch.Tensor:  # noqa: B008
        """Draw complete rows."""
        return self.p.sample(sample_shape)

    def log_prob(self, value: torch.Tensor) -> torch.Tensor:
        """The log-density of the observed entries, for rows of shape (..., N, D)."""
        value = value.nan_to_num(0.0)
        return condition(self.p, value, self.observed.expand(value.shape)).log_prob


_INCOMPLETE = ContextVar("rows may lack entries", default=False)


def rows_are_incomplete() -> bool:
    """Whether stories now run on rows of x that may have NaN where an entry is missing."""
    return _INCOMPLETE.get()


@contextmanager
def incomplete() -> Iterator[None]:
    """Run stories on rows of x with missing entries in this block.

    Stories ask `rows_are_incomplete` rather than the rows: what they compute then does not
    depend on values, so that it can be recorded.
    """
    token = _INCOMPLETE.set(True)
    try:
        yield
    finally:
        _INCOMPLETE.reset(token)
