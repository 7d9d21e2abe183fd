"""A distribution of columns that are independent, and of several families."""

from collections.abc import Sequence
from typing import Any

import torch
from pyro.distributions import TorchDistribution
from torch.distributions import constraints


class Joint(TorchDistribution):
    r"""Independent blocks of columns, each with a distribution of its own.

    .. math:: p(y) = \prod_j p_j(y_j)

    Args:
        distributions: Distributions p_j of equal batch shapes, of event shapes ``(M_j,)``.
        validate_args: Whether to validate the arguments.

    Example:
        >>> import pyro.distributions as dist
        >>> normal = dist.Normal(torch.zeros(3, 1), 1.0).to_event(1)
        >>> count = dist.Poisson(torch.ones(3, 1)).to_event(1)
        >>> Joint([normal, count]).log_prob(torch.zeros(3, 2))
        tensor([-1.9189, -1.9189, -1.9189])
    """

    arg_constraints: dict[str, Any] = {}  # noqa: RUF012

    def __init__(self, distributions: Sequence[Any], validate_args: bool | None = None) -> None:
        self.distributions = list(distributions)
        self.widths = [p.event_shape.numel() for p in self.distributions]
        batch_shape = self.distributions[0].batch_shape
        event_shape = torch.Size((sum(self.widths),))
        super().__init__(batch_shape, event_shape, validate_args=validate_args)

    @constraints.dependent_property(event_dim=1)
    def support(self) -> Any:
        """The supports of the blocks."""
        return _Blocks([p.support for p in self.distributions], self.widths)

    def expand(self, batch_shape: Any, _instance: Any = None) -> "Joint":
        """The distribution expanded to a batch shape."""
        return Joint([p.expand(batch_shape) for p in self.distributions], validate_args=False)

    def log_prob(self, value: torch.Tensor) -> torch.Tensor:
        """The log-density of values, the sum over blocks."""
        blocks = zip(self.distributions, value.split(self.widths, -1), strict=True)
        return sum((p.log_prob(block) for p, block in blocks), value.new_zeros(()))

    @property
    def mean(self) -> torch.Tensor:
        """The means of the columns."""
        return torch.cat([p.mean for p in self.distributions], -1)

    @property
    def variance(self) -> torch.Tensor:
        """The variances of the columns."""
        return torch.cat([p.variance for p in self.distributions], -1)

    def sample(self, sample_shape: Any = torch.Size()) -> torch.Tensor:  # noqa: B008
        """A sample of each block."""
        return torch.cat([p.sample(sample_shape) for p in self.distributions], -1)


class _Blocks(constraints.Constraint):
    """A constraint on each block of columns."""

    event_dim = 1

    def __init__(self, supports: Sequence[Any], widths: Sequence[int]) -> None:
        self.supports, self.widths = list(supports), list(widths)
        self.is_discrete = all(each.is_discrete for each in supports)

    def check(self, value: torch.Tensor) -> torch.Tensor:
        blocks = zip(self.supports, value.split(self.widths, -1), strict=True)
        return torch.stack([support.check(block) for support, block in blocks]).all(0)
