"""Test statistics for the comparison of observed and replicated data."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Sample:
    """A data set of N rows, observed or replicated, with its scores under the fitted model.

    Attributes:
        x: Features, shape (N, D).
        y: Targets, shape (N,) or (N, M), or None where features are checked.
        scores: Normal scores of the targets, Φ⁻¹(F(y|x)), shape (N, M), which are standard
            normal if the model is correct; None for classes and where features are checked.
        log_density: Log p(y|x) of each row, or for features their ELBO from one draw, shape (N,).
    """

    x: torch.Tensor
    y: Any
    scores: Any
    log_density: torch.Tensor

    def __len__(self) -> int:
        return len(self.x)

    def take(self, rows: torch.Tensor | slice) -> "Sample":
        """Some of the rows."""
        y, scores = (None if part is None else part[rows] for part in (self.y, self.scores))
        return Sample(self.x[rows], y, scores, self.log_density[rows])


Statistic = Callable[[Sample], Any]
"""A function from a sample to a number, or to one number for each column."""

_OF_COLUMNS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "mean": lambda columns: columns.mean(0),
    "standard deviation": lambda columns: columns.std(0),
    "10 % quantile": lambda columns: columns.quantile(0.1, dim=0),
    "90 % quantile": lambda columns: columns.quantile(0.9, dim=0),
    "smallest": lambda columns: columns.amin(0),
    "largest": lambda columns: columns.amax(0),
}
DISTANCE = "distance of distributions"


def _of_features(name: str) -> Statistic:
    return lambda sample: _OF_COLUMNS[name](sample.x.double())


def _of_targets(name: str) -> Statistic:
    return lambda sample: _OF_COLUMNS[name](sample.y.reshape(len(sample), -1).double())


def _mean_log_density(sample: Sample) -> torch.Tensor:
    return sample.log_density.mean()


def skewness(columns: torch.Tensor) -> torch.Tensor:
    """The third standardized moment of each column: 0 for a normal distribution."""
    return _standardized(columns).pow(3).mean(0)


def log_kurtosis(columns: torch.Tensor) -> torch.Tensor:
    """The log of the fourth standardized moment of each column: log 3 for a normal distribution.

    It is smaller for bimodal columns and larger for heavy tails. The logarithm makes its sampling
    distribution more symmetric.
    """
    return _standardized(columns).pow(4).mean(0).log()


def _standardized(columns: torch.Tensor) -> torch.Tensor:
    centered = columns.double() - columns.double().mean(0)
    return centered / centered.square().mean(0).sqrt()


TARGET_STATISTICS: dict[str, Statistic] = {
    **{name: _of_targets(name) for name in _OF_COLUMNS},
    "mean of scores": lambda sample: sample.scores.mean(0),
    "standard deviation of scores": lambda sample: sample.scores.std(0),
    "skewness of scores": lambda sample: skewness(sample.scores),
    "log kurtosis of scores": lambda sample: log_kurtosis(sample.scores),
    "largest score": lambda sample: sample.scores.abs().amax(0),
    DISTANCE: lambda sample: cramer_von_mises(torch.special.ndtr(sample.scores)),
    "correlation of scores with": lambda sample: _correlations(sample.scores, sample.x),
    "correlation of scores with the square of": lambda sample: _correlations(
        sample.scores, (sample.x.double() - sample.x.double().mean(0)).square()
    ),
    "correlation of squared scores with": lambda sample: _correlations(
        sample.scores.square(), sample.x
    ),
    "mean log density": _mean_log_density,
}
_SHAPES: dict[str, Statistic] = {
    "skewness": lambda sample: skewness(sample.x),
    "log kurtosis": lambda sample: log_kurtosis(sample.x),
}
FEATURE_STATISTICS: dict[str, Statistic] = {
    **{name: _of_features(name) for name in _OF_COLUMNS},
    **_SHAPES,
    "mean ELBO": _mean_log_density,
    "standard deviation of ELBO": lambda sample: sample.log_density.std(),
}
COMPONENT_FEATURE_STATISTICS: dict[str, Statistic] = {
    **{name: _of_features(name) for name in ("mean", "standard deviation")},
    **_SHAPES,
}

OF_PAIRS = (
    "correlation",
    "correlation of scores with",
    "correlation of scores with the square of",
    "correlation of squared scores with",
)


def class_statistics(number: int) -> Mapping[str, Statistic]:
    """Statistics for targets that are one of ``number`` classes."""
    return {
        "share": lambda sample: (
            torch.nn.functional.one_hot(sample.y.long(), number).double().mean(0)
        ),
        "mean log density": _mean_log_density,
    }


def distance_from(reference: torch.Tensor) -> Statistic:
    """The Cramér-von Mises distance of each column of x from that of reference rows (R, D)."""
    columns = reference.mT.contiguous().sort().values.contiguous()

    def distance(sample: Sample) -> torch.Tensor:
        x = sample.x.mT.contiguous()
        ranks = torch.searchsorted(columns, x) + torch.searchsorted(columns, x, right=True)
        return cramer_von_mises(ranks.mT / (2.0 * columns.shape[1]))

    return distance


def cramer_von_mises(u: torch.Tensor) -> torch.Tensor:
    r"""The Cramér-von Mises distance of columns u, shape (N, M), from uniform, shape (M,).

    .. math:: \omega^2 = \frac{1}{12 N} + \sum_i \Big( u_{(i)} - \frac{2 i - 1}{2 N} \Big)^2
    """
    middles = (torch.arange(len(u)).to(u) + 0.5) / len(u)
    return 1.0 / (12.0 * len(u)) + (u.sort(0).values - middles.unsqueeze(-1)).square().sum(0)


def correlation(sample: Sample) -> torch.Tensor:
    """The correlation of each pair of columns of x, shape (D (D - 1) / 2,)."""
    first, second = torch.triu_indices(sample.x.shape[1], sample.x.shape[1], offset=1)
    return _correlations(sample.x, sample.x).reshape(sample.x.shape[1], -1)[first, second]


def _correlations(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """The correlation of each column of a (N, M) with each of b (N, D), shape (M D,)."""
    a, b = (part.double() - part.double().mean(0) for part in (a, b))
    scale = a.square().sum(0).unsqueeze(-1) * b.square().sum(0)
    return ((a.mT @ b) / scale.sqrt()).flatten()
