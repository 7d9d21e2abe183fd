"""Mixtures as distributions: of components of one family, or of any that share a support."""

from collections.abc import Sequence
from typing import Any

import torch
from pyro.distributions import TorchDistribution
from torch.distributions import constraints


class Mixture(TorchDistribution):
    r"""A mixture of K distributions.

    .. math:: p(y) = \sum_k w_k\, p_k(y), \quad
              \log p(y) = \mathrm{logsumexp}_k [\log w_k + \log p_k(y)]

    Unlike `torch.distributions.MixtureSameFamily`, weights may be exactly zero, so that one-hot
    weights choose one component, and components that are shared by several sets of weights
    broadcast: weights (K, 1, K) over components (N, K) make a batch (K, N).

    Args:
        log_weights: Shape (..., K), normalized here; entries may be -inf.
        components: A distribution whose rightmost batch dimension is K.

    Example:
        >>> import pyro.distributions as dist
        >>> components = dist.Normal(torch.tensor([-1.0, 1.0]), 1.0)
        >>> mixture = Mixture(torch.zeros(2), components)
        >>> mixture.mean, mixture.variance
        (tensor(0.), tensor(2.))
    """

    arg_constraints: dict[str, Any] = {}  # noqa: RUF012

    def __init__(
        self, log_weights: torch.Tensor, components: Any, validate_args: bool | None = None
    ) -> None:
        self.log_weights = log_weights.log_softmax(-1)
        self.component_distribution = components
        batch_shape = torch.broadcast_shapes(log_weights.shape, components.batch_shape)[:-1]
        super().__init__(batch_shape, components.event_shape, validate_args=validate_args)

    @property
    def mixture_distribution(self) -> torch.distributions.Categorical:
        """The choice of a component."""
        return torch.distributions.Categorical(self.log_weights.exp())

    @property
    def is_choice(self) -> bool:
        """Whether the weights are one-hot, so that each entry of the batch has one component."""
        return bool((self.log_weights.exp().amax(-1) == 1).all())

    @constraints.dependent_property
    def support(self) -> Any:
        """That of the components."""
        return self.component_distribution.support

    def expand(self, batch_shape: Any, _instance: Any = None) -> "Mixture":
        """The same distribution for a larger batch."""
        log_weights = self.log_weights.expand(*batch_shape, -1)
        return Mixture(log_weights, self.component_distribution, validate_args=False)

    def log_prob(self, value: torch.Tensor) -> torch.Tensor:
        """The log-density of a value, computed in log space."""
        each = self.component_distribution.log_prob(value.unsqueeze(-1 - self.event_dim))
        return (self.log_weights + each).logsumexp(-1)

    @property
    def mean(self) -> torch.Tensor:
        """Σ_k w_k E_k[y]."""
        return self._average(self.component_distribution.mean)

    @property
    def variance(self) -> torch.Tensor:
        """The variance within components and that between their means."""
        means = self.component_distribution.mean
        between = (means - self.mean.unsqueeze(-1 - self.event_dim)).square()
        return self._average(self.component_distribution.variance + between)

    def sample(self, sample_shape: Any = torch.Size()) -> torch.Tensor:  # noqa: B008
        """A component's sample, the component drawn by weight."""
        with torch.no_grad():
            shape = (*sample_shape, *self.batch_shape)
            weights = self.log_weights.exp().expand(*shape, -1)
            k = torch.distributions.Categorical(weights).sample()
            one_hot = torch.nn.functional.one_hot(k, weights.shape[-1])
            components = self.component_distribution.expand(
                torch.Size((*self.batch_shape, weights.shape[-1]))
            )
            each = components.sample(torch.Size(sample_shape))
            return self._sum(one_hot.to(each.dtype), each)

    def _average(self, each: torch.Tensor) -> torch.Tensor:
        return self._sum(self.log_weights.exp(), each)

    def _sum(self, weights: torch.Tensor, each: torch.Tensor) -> torch.Tensor:
        weights = weights.reshape(*weights.shape, *(1 for _ in self.event_shape))
        return (weights * each).sum(-1 - self.event_dim)


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


class Stacked(TorchDistribution):
    """K distributions of any families side by side, along a new rightmost batch dimension.

    Args:
        distributions: K of them, of equal batch and event shapes.

    Raises:
        ValueError: If their shapes differ.

    Example:
        >>> import pyro.distributions as dist
        >>> both = Stacked([dist.Normal(torch.zeros(3), 1.0), dist.Laplace(torch.ones(3), 1.0)])
        >>> both.log_prob(torch.zeros(3, 1)).shape
        torch.Size([3, 2])
    """

    arg_constraints: dict[str, Any] = {}  # noqa: RUF012

    def __init__(self, distributions: Sequence[Any], validate_args: bool | None = None) -> None:
        self.distributions = list(distributions)
        first, *others = self.distributions
        for other in others:
            if (other.batch_shape, other.event_shape) != (first.batch_shape, first.event_shape):
                raise ValueError(
                    "expected distributions of equal shapes; got batch and event shapes "
                    f"{tuple(first.batch_shape)}, {tuple(first.event_shape)} and "
                    f"{tuple(other.batch_shape)}, {tuple(other.event_shape)}"
                )
        batch_shape = torch.Size((*first.batch_shape, len(self.distributions)))
        super().__init__(batch_shape, first.event_shape, validate_args=validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> "Stacked":
        """The same distributions for a larger batch, K the last of its dimensions."""
        shape = torch.Size(batch_shape[:-1])
        return Stacked([p.expand(shape) for p in self.distributions], validate_args=False)

    @constraints.dependent_property
    def support(self) -> Any:
        """That of the first."""
        return self.distributions[0].support

    def log_prob(self, value: torch.Tensor) -> torch.Tensor:
        """The log-density of each one's value, or of one value for all, shape (..., K)."""
        dim = value.dim() - self.event_dim - 1
        values = value.expand(*value.shape[:dim], len(self.distributions), *value.shape[dim + 1 :])
        pairs = zip(self.distributions, values.unbind(dim), strict=True)
        return torch.stack([p.log_prob(v) for p, v in pairs], -1)

    @property
    def mean(self) -> torch.Tensor:
        """The means, shape (..., K) and the event's."""
        return torch.stack([p.mean for p in self.distributions], -1 - self.event_dim)

    @property
    def variance(self) -> torch.Tensor:
        """The variances, shape (..., K) and the event's."""
        return torch.stack([p.variance for p in self.distributions], -1 - self.event_dim)

    def sample(self, sample_shape: Any = torch.Size()) -> torch.Tensor:  # noqa: B008
        """A sample of each."""
        return torch.stack(
            [p.sample(sample_shape) for p in self.distributions], -1 - self.event_dim
        )
