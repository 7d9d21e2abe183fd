"""The predictive distribution of targets, a mixture of experts in each row."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from numpy.typing import ArrayLike

from pyro_moe.distributions import in_double
from pyro_moe.fitted import in_order
from pyro_moe.inference.context import reproducible
from pyro_moe.inference.errors import DataError
from pyro_moe.rows import as_tensors

from ..gating import log_mean_exp
from ..marginals import cdf_of, discrete_columns, has_classes, mean_of, of_one_column, variance_of


@dataclass(frozen=True)
class Prediction:
    r"""The predictive distribution of each of N rows, a mixture of S x K experts.

    .. math:: p(y \mid x) = \frac{1}{S} \sum_s \sum_k g_{sk}(x)\, p_{sk}(y \mid x)

    If the experts depend on latent variables other than ``c``, S is the number of draws of these.
    Otherwise S is one. All is computed in double precision, and the weights as logarithms: far
    from the training data the expert that fits a target may have a weight of 1e-60.

    Attributes:
        log_weights: log g of each draw, shape (S, N, K).
        distributions: For each draw the K experts' distributions, of batch shape (N, K), or
            (K, N) if ``leading``.
        leading: Whether K is the first batch dimension of the distributions.
        names: Names of the fitted columns of y, or None. Targets with names are matched by name.
    """

    log_weights: torch.Tensor
    distributions: tuple[Any, ...]
    leading: bool = False
    names: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "log_weights", self.log_weights.double())
        object.__setattr__(self, "distributions", tuple(map(in_double, self.distributions)))

    def __len__(self) -> int:
        return self.log_weights.shape[1]

    @property
    def weights(self) -> torch.Tensor:
        """G of each draw, shape (S, N, K)."""
        return self.log_weights.exp()

    @property
    def gate(self) -> torch.Tensor:
        """The probability of each expert, shape (N, K)."""
        return self.weights.mean(0)

    @property
    def experts(self) -> torch.Tensor:
        """Each expert's mean, shape (N, K, M); for classes, their probabilities."""
        return self._means().mean(0)

    @property
    def mean(self) -> torch.Tensor:
        """The mean of y, shape (N, M); for classes, their probabilities."""
        return self._average(self._means())

    @property
    def within(self) -> torch.Tensor:
        """The variance within experts: the mean of the experts' variances, shape (N, M)."""
        return self._average(self._stack(variance_of))

    @property
    def between(self) -> torch.Tensor:
        """The variance between experts: of their means, over experts and draws, shape (N, M)."""
        return self._average((self._means() - self.mean.unsqueeze(1)).square())

    @property
    def variance(self) -> torch.Tensor:
        """The variance of y, within + between, shape (N, M)."""
        return self.within + self.between

    @property
    def discrete(self) -> torch.Tensor:
        """Whether each column of y has a mass function, as counts have, shape (M,)."""
        p = self.distributions[0]
        flags = torch.full((p.event_shape.numel(),), bool(p.support.is_discrete))
        flags[discrete_columns(p)] = True
        return flags.to(self.log_weights.device)

    def log_prob(self, y: ArrayLike) -> torch.Tensor:
        """The log-density of targets, jointly over their columns, shape (N,).

        Args:
            y: Targets, shape (N,) or (N, M), in their own units.

        Raises:
            DataError: If y does not have the shape of the prediction, or a value is outside the
                support, such as an unknown class.
        """
        value = self._along_batch(self.targets(y))
        self._check_support(value)
        each = self._stack(lambda p: p.log_prob(value), events=False)
        return log_mean_exp((each + self.log_weights).logsumexp(-1), 0)

    def posterior(self, y: ArrayLike, groups: torch.Tensor | None = None) -> torch.Tensor:
        r"""The probability of each expert given x and the target, shape (N, K).

        .. math:: p(c = k \mid x, y) \propto \sum_s g_{sk}(x)\, p_{sk}(y \mid x)

        Args:
            y: Targets, shape (N,) or (N, M), in their own units.
            groups: Numbers of groups, shape (N,), whose rows have one expert: that of the whole
                group is then given all of its targets. If None, each row has its own.

        Raises:
            DataError: As `log_prob`.
        """
        value = self._along_batch(self.targets(y))
        self._check_support(value)
        each = self._stack(lambda p: p.log_prob(value), events=False)
        if groups is None:
            return (each + self.log_weights).logsumexp(0).softmax(-1)
        groups = groups.to(each.device)
        labels, place, sizes = groups.unique(return_inverse=True, return_counts=True)
        terms = each + self.log_weights / sizes[place].unsqueeze(-1)
        of_groups = terms.new_zeros(len(terms), len(labels), terms.shape[-1])
        return of_groups.index_add(1, place, terms).logsumexp(0).softmax(-1)[place]

    def cdf(self, y: ArrayLike) -> torch.Tensor:
        """P(y_m ≤ value) for each column separately, shape (N, M).

        Raises:
            DataError: If y does not have the shape of the prediction, or is a class.
        """
        return self._cdf(self.targets(y))

    def _cdf(self, value: torch.Tensor) -> torch.Tensor:
        along = self._along_batch(value)
        return self._average(self._stack(lambda p: cdf_of(p, along)))

    def quantile(self, q: float) -> torch.Tensor:
        """The quantile of each column, shape (N, M).

        It is found by bisection of `cdf`. For counts it is the smallest whole number whose
        cumulative probability is at least q.

        Args:
            q: Between 0 and 1.

        Raises:
            DataError: If y is a class.
            ValueError: If q is not between 0 and 1.
        """
        if not 0 < q < 1:
            raise ValueError(f"expected q between 0 and 1; got {q}")
        if has_classes(self.distributions[0]):
            raise DataError("expected a target whose values have an order; got classes")
        low, high = self._bracket(q)
        discrete = self.discrete
        for step in range(200):  # more than 60 where experts are far apart and narrow
            if discrete.all() and (high - low < 0.4).all():  # one whole number is between them
                break
            if step >= 60 and (high - low <= 4e-16 * (low.abs() + high.abs())).all():
                break
            middle = (low + high) / 2
            above = self._cdf(middle.reshape(len(self), *self.distributions[0].event_shape)) >= q
            low, high = torch.where(above, low, middle), torch.where(above, middle, high)
        return torch.where(discrete, high.round(), high)

    def _bracket(self, q: float) -> tuple[torch.Tensor, torch.Tensor]:
        """Values below and above the quantile, shape (N, M)."""
        means, deviations = self._means(), self._stack(variance_of).sqrt()
        reach = min(q, 1 - q) ** -0.5  # Chebyshev's inequality, for each expert
        rounding = 1e-12 * (means.abs() + deviations)
        low = (means - reach * deviations - rounding).amin((0, 2))
        high = (means + reach * deviations + rounding).amax((0, 2))
        if low.isfinite().all() and high.isfinite().all():
            return low, high
        # Heavy tails may have no variance or no mean: increase the distance from the middle.
        middle = means.nan_to_num().mean((0, 2))
        return self._beyond(middle, -1, q), self._beyond(middle, 1, q)

    def _beyond(self, middle: torch.Tensor, side: int, q: float) -> torch.Tensor:
        """Values on one side of the middle such that the quantile lies between them."""
        step = torch.ones_like(middle)
        while True:
            value = middle + side * step
            below = self._cdf(value.reshape(len(self), *self.distributions[0].event_shape)) < q
            near = below if side > 0 else ~below
            if not near.any() or not value.isfinite().all():
                return value
            step = torch.where(near, 2 * step, step)

    def sample(
        self, num_samples: int, *, seed: int = 0, groups: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Draw targets of all rows, shape (num_samples, N) or (num_samples, N, M).

        Each sample uses one draw of the shared latent variables for all rows.

        Args:
            num_samples: Number of samples.
            seed: Seed of the draws.
            groups: Numbers of groups, shape (N,), whose rows have one expert, drawn by the gate
                of the group's first row. If None, each row has its own.
        """
        first, place = None, None
        if groups is not None:
            labels, place = groups.cpu().unique(return_inverse=True)
            rows = torch.arange(len(place))
            first = rows.new_full((len(labels),), len(place)).scatter_reduce(0, place, rows, "amin")
        with reproducible(seed):
            draws = range(num_samples)
            return torch.stack(
                [self._sample(i % len(self.log_weights), first, place) for i in draws]
            )

    def _sample(
        self, draw: int, first: torch.Tensor | None, place: torch.Tensor | None
    ) -> torch.Tensor:
        each = self.distributions[draw].sample()
        each = each.transpose(0, 1) if self.leading else each
        weights = self.log_weights[draw].exp()
        chosen = torch.multinomial(weights if first is None else weights[first], 1).squeeze(-1)
        chosen = chosen if place is None else chosen[place]
        return each[torch.arange(len(self), device=each.device), chosen]

    def components(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Weights (N, S K, 1), means and variances (N, S K, M) of all mixture components."""
        shares = self.weights.unsqueeze(-1) / len(self.log_weights)
        parts = (shares, self._means(), self._stack(variance_of))
        weights, means, variances = (part.transpose(0, 1).flatten(1, 2) for part in parts)
        return weights, means, variances

    def _means(self) -> torch.Tensor:
        return self._stack(mean_of)

    def _stack(self, read: Callable[[Any], torch.Tensor], *, events: bool = True) -> torch.Tensor:
        """Values of each draw's distributions, shape (S, N, K), or (S, N, K, M) if ``events``."""
        each = torch.stack([read(p) for p in self.distributions]).double()
        if self.leading:
            each = each.transpose(1, 2)
        return each.reshape(*each.shape[:3], -1) if events else each

    def _average(self, each: torch.Tensor) -> torch.Tensor:
        weights = self.weights.unsqueeze(-1)  # of zero also where a variance is infinite
        return torch.where(weights > 0, weights * each, 0.0).sum(2).mean(0)

    def targets(self, y: ArrayLike) -> torch.Tensor:
        """Targets (N,) or (N, M) in the shape of the site, (N,) or (N, M).

        Raises:
            DataError: If y does not have the shape of the prediction, lacks a column by name, or
                has a value that is not finite.
        """
        event_shape = self.distributions[0].event_shape
        rows = in_order((self.gate, y), None, self.names)
        _, value = as_tensors(rows, dtype=torch.float64)
        value = value.to(self.log_weights)
        if value.shape[1:].numel() != event_shape.numel():
            expected = (len(self), *event_shape)
            raise DataError(f"expected y of shape {expected}; got {tuple(value.shape)}")
        return value.reshape(len(self), *event_shape)

    def _check_support(self, value: torch.Tensor) -> None:
        support = self.distributions[0].support
        possible = support.check(value).reshape(len(self), -1).all(-1)
        if not possible.all():
            row = int((~possible).nonzero()[0])
            base = of_one_column(support)
            got = value.reshape(len(self), -1)[row].tolist()
            raise DataError(f"expected y in the support of its distribution, {base}; got {got}")

    def _along_batch(self, value: torch.Tensor) -> torch.Tensor:
        return value if self.leading else value.unsqueeze(1)
