"""Mixture distributions, of components of one family or of several with the same support."""

from collections.abc import Sequence
from typing import Any

import torch
from pyro.distributions import TorchDistribution
from torch.distributions import constraints

from .relaxed import log_of


class Mixture(TorchDistribution):
    r"""A mixture of K distributions.

    .. math:: p(y) = \sum_k w_k\, p_k(y), \quad
              \log p(y) = \mathrm{logsumexp}_k [\log w_k + \log p_k(y)]

    In contrast to `torch.distributions.MixtureSameFamily`, weights may be exactly zero, so that
    one-hot weights select a component. Weights and components broadcast: weights of shape
    (K, 1, K) and components of batch shape (N, K) give the batch shape (K, N).

    Args:
        log_weights: Logarithms of the weights up to a constant, shape (..., K). Entries may be
            -inf.
        components: A distribution whose rightmost batch dimension is K.
        validate_args: Whether to validate the arguments.

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
        """The categorical distribution of the component."""
        return torch.distributions.Categorical(logits=self.log_weights, validate_args=False)

    @property
    def is_choice(self) -> bool:
        """Whether all weights are one-hot: all but one are zero, and not just too small."""
        return bool((self.log_weights.isneginf().sum(-1) == self.log_weights.shape[-1] - 1).all())

    @constraints.dependent_property
    def support(self) -> Any:
        """The support of the components."""
        return self.component_distribution.support

    def expand(self, batch_shape: Any, _instance: Any = None) -> "Mixture":
        """The distribution expanded to a batch shape."""
        log_weights = self.log_weights.expand(*batch_shape, -1)
        return self._with(log_weights, self.component_distribution, batch_shape)

    def of(self, components: Any) -> "Mixture":
        """The mixture of other components with the same weights, in double precision."""
        return self._with(self.log_weights.double(), components, self.batch_shape)

    def _with(self, log_weights: torch.Tensor, components: Any, batch_shape: Any) -> "Mixture":
        new = type(self).__new__(type(self))
        new.log_weights, new.component_distribution = log_weights, components
        TorchDistribution.__init__(
            new, torch.Size(batch_shape), components.event_shape, validate_args=False
        )
        return new

    def log_prob(self, value: torch.Tensor) -> torch.Tensor:
        """The log-density of a value."""
        each = self.component_distribution.log_prob(value.unsqueeze(-1 - self.event_dim))
        return (self.log_weights + each).logsumexp(-1)

    @property
    def mean(self) -> torch.Tensor:
        """Σ_k w_k E_k[y]."""
        return self._average(self.component_distribution.mean)

    @property
    def variance(self) -> torch.Tensor:
        """Σ_k w_k (Var_k[y] + (E_k[y] − E[y])²), by the law of total variance."""
        means = self.component_distribution.mean
        between = (means - self.mean.unsqueeze(-1 - self.event_dim)).square()
        return self._average(self.component_distribution.variance + between)

    def sample(self, sample_shape: Any = torch.Size()) -> torch.Tensor:  # noqa: B008
        """Draw a component by its weight, and a sample from it. Not reparameterized."""
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
    r"""The distribution of the expert that ``c`` selects.

    .. math:: p(y \mid c) = \sum_k c_k\, p_k(y)

    A one-hot ``c`` selects one expert. A relaxed ``c`` gives the mixture with weights ``c``.

    Args:
        c: One-hot or relaxed assignments, shape (..., K).
        experts: A distribution of batch shape (..., K).

    Example:
        >>> import pyro.distributions as dist
        >>> experts = dist.Normal(torch.tensor([[1.0, 2.0]]), 1.0)
        >>> choose(torch.tensor([[0.0, 1.0]]), experts).mean
        tensor([2.])
    """
    if getattr(c, "are_all", False):
        return _Each(c, experts)
    log_c = getattr(c, "log_value", None)  # where c itself underflows
    return Mixture(log_of(c) if log_c is None else log_c, experts)


class _Each(Mixture):
    """The K distributions of the components, batch shape (K, N), as mixtures of one-hot weights."""

    is_choice = True

    def __init__(self, c: torch.Tensor, components: Any) -> None:
        self.log_weights, self.component_distribution = c.log(), components
        shape = torch.Size((len(c), *(components.batch_shape[:-1] or (1,))))
        TorchDistribution.__init__(self, shape, components.event_shape, validate_args=False)

    def log_prob(self, value: torch.Tensor) -> torch.Tensor:
        """The log-density of a value."""
        each = self.component_distribution.log_prob(value.unsqueeze(-1 - self.event_dim))
        if each.dim() > 2 or len(self.batch_shape) > 2:  # it has values of its own for each k
            return (self.log_weights + each).logsumexp(-1)
        if each.mT.shape == self.batch_shape:
            return each.mT
        return each.mT.expand(torch.broadcast_shapes(each.mT.shape, self.batch_shape))


class Stacked(TorchDistribution):
    """K distributions of any families, stacked along a new rightmost batch dimension.

    Args:
        distributions: K distributions with equal batch and event shapes.
        validate_args: Whether to validate the arguments.

    Raises:
        ValueError: If the shapes differ.

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
        """The distributions expanded to a batch shape (..., K)."""
        shape = torch.Size(batch_shape[:-1])
        return Stacked([p.expand(shape) for p in self.distributions], validate_args=False)

    @constraints.dependent_property
    def support(self) -> Any:
        """The support of the first distribution."""
        return self.distributions[0].support

    def log_prob(self, value: torch.Tensor) -> torch.Tensor:
        """Log-densities, shape (..., K), of K values or of one value under all distributions."""
        dim = value.dim() - self.event_dim - 1
        values = value.expand(*value.shape[:dim], len(self.distributions), *value.shape[dim + 1 :])
        pairs = zip(self.distributions, values.unbind(dim), strict=True)
        return torch.stack([p.log_prob(v) for p, v in pairs], -1)

    @property
    def mean(self) -> torch.Tensor:
        """The means, of shape (..., K) followed by the event shape."""
        return torch.stack([p.mean for p in self.distributions], -1 - self.event_dim)

    @property
    def variance(self) -> torch.Tensor:
        """The variances, of shape (..., K) followed by the event shape."""
        return torch.stack([p.variance for p in self.distributions], -1 - self.event_dim)

    def sample(self, sample_shape: Any = torch.Size()) -> torch.Tensor:  # noqa: B008
        """One sample from each distribution."""
        return torch.stack(
            [p.sample(sample_shape) for p in self.distributions], -1 - self.event_dim
        )
