"""Replicated data sets, simulated from a fitted model: targets given x, and features."""

from collections.abc import Iterator, Mapping, Sequence

import torch

from pyro_moe import evaluation
from pyro_moe.evaluation.marginals import has_classes
from pyro_moe.evaluation.traces import batches, shared_latents
from pyro_moe.fitted import Fit
from pyro_moe.inference.context import reproducible, stream
from pyro_moe.inference.errors import DataError, SiteError
from pyro_moe.inference.traces import enumerated_traces, row_bounds
from pyro_moe.rows import has_target, numbered

from .calibration import normal_scores, probability_integral_transform
from .statistics import (
    COMPONENT_FEATURE_STATISTICS,
    DISTANCE,
    FEATURE_STATISTICS,
    OF_PAIRS,
    TARGET_STATISTICS,
    Sample,
    Statistic,
    class_statistics,
    correlation,
    distance_from,
)

MOST_PAIRED_COLUMNS = 20
MOST_COMPARED_COLUMNS = 100  # in distribution, which is the slowest statistic
REFERENCE_ROWS = 4096
ROWS_AT_ONCE = 10_000
Replicate = tuple[Sample, torch.Tensor]
"""A sample, and the most probable component of each of its rows, shape (N,)."""


class Targets:
    """Observed targets, without missing ones, and replicated targets at the same x."""

    site = "y"

    def __init__(
        self,
        fit: Fit,
        columns: tuple[torch.Tensor, ...],
        *,
        x_names: tuple[str, ...],
        names: tuple[str, ...] | None = None,
        classes: Sequence[str] | None = None,
        groups: torch.Tensor | None = None,
        seed: int = 0,
    ) -> None:
        x, y = columns[:2]
        known = has_target(y)
        self.x, self.y, self.seed = x[known], y[known], seed
        self.groups = None if groups is None else groups[known.cpu()]
        _expect_rows(self.x)
        self.prediction = evaluation.predict(fit, self.x, seed=seed)
        self.component = self.prediction.gate.argmax(-1)
        of_classes = has_classes(self.prediction.distributions[0])
        size = self.prediction.experts.shape[-1]
        self.statistics = class_statistics(size) if of_classes else TARGET_STATISTICS
        of_class = tuple(map(str, classes or range(size)))
        self.names = of_class if of_classes else names or numbered("y", size)
        self.x_names = x_names
        self.pit = None if of_classes else self._transform(self.y, seed)

    def statistics_of(self, component: int) -> Mapping[str, Statistic]:
        """Statistics for the rows of a component: the same as for all rows."""
        return self.statistics

    def observed(self) -> Replicate:
        """The observed targets."""
        return self._sample(self.y, self.seed), self.component

    def replicates(self, number: int) -> Iterator[Replicate]:
        """Data sets of targets drawn from the predictive distribution.

        The rows of a group have one component, as they had in the fit.
        """
        draws = self.prediction.sample(number, seed=stream(self.seed, 2), groups=self.groups)
        for i, y in enumerate(draws):
            yield self._sample(y, stream(self.seed, 2, i)), self.component

    def labels(self, statistic: str, length: int) -> list[str]:
        """Names of the entries of a statistic: columns, or pairs of columns."""
        pairs = [f"{name}, {x}" for name in self.names for x in self.x_names]
        return _labels(length, pairs if statistic in OF_PAIRS else self.names)

    def _sample(self, y: torch.Tensor, seed: int) -> Sample:
        scores = None if self.pit is None else normal_scores(self._transform(y, seed))
        return Sample(self.x, y, scores, self.prediction.log_prob(y))

    def _transform(self, y: torch.Tensor, seed: int) -> torch.Tensor:
        return probability_integral_transform(self.prediction, y, seed=stream(seed, 3))


class Features:
    """Observed features, and replicated data sets of as many new rows."""

    site = "x"

    def __init__(self, fit: Fit, x: torch.Tensor, *, names: tuple[str, ...], seed: int = 0) -> None:
        _expect_rows(x)
        self.fit, self.x, self.seed = fit, x, seed
        self.names = names
        self.reference = evaluation.sample(fit, REFERENCE_ROWS, seed=stream(seed, 5))
        self.reference_component = self._components(self.reference)
        self.statistics = {**FEATURE_STATISTICS, **self._distance_from(self.reference)}
        if 1 < fit.x_dim <= MOST_PAIRED_COLUMNS:
            self.statistics["correlation"] = correlation

    def statistics_of(self, component: int) -> Mapping[str, Statistic]:
        """Statistics for the rows of a component."""
        own = self.reference[self.reference_component == component]
        return {**COMPONENT_FEATURE_STATISTICS, **self._distance_from(own)}

    def _distance_from(self, reference: torch.Tensor) -> Mapping[str, Statistic]:
        few = self.fit.x_dim <= MOST_COMPARED_COLUMNS
        return {DISTANCE: distance_from(reference)} if few else {}

    def observed(self) -> Replicate:
        """The observed features."""
        return self._sample(self.x, self.seed)

    def replicates(self, number: int) -> Iterator[Replicate]:
        """Data sets of new rows, each with new latent variables."""
        rows, seed = len(self.x), stream(self.seed, 4)
        for i, block in enumerate(feature_blocks(self.fit, rows, number, seed=seed)):
            sample, component = self._sample(block.flatten(0, 1), stream(seed, i))
            for start in range(0, len(sample), rows):
                part = slice(start, start + rows)
                yield sample.take(part), component[part]

    def labels(self, statistic: str, length: int) -> list[str]:
        """Names of the entries of a statistic: columns, or pairs of columns."""
        pairs = [f"{a}, {b}" for i, a in enumerate(self.names) for b in self.names[i + 1 :]]
        return _labels(length, pairs if statistic in OF_PAIRS else self.names)

    def _sample(self, x: torch.Tensor, seed: int) -> Replicate:
        return Sample(x, None, None, _bounds(self.fit, x, seed)), self._components(x)

    def _components(self, x: torch.Tensor) -> torch.Tensor:
        try:
            return evaluation.gate(self.fit, x, num_samples=8, seed=self.seed).argmax(-1)
        except SiteError:  # a story without components
            return x.new_zeros(len(x), dtype=torch.long)


def feature_blocks(fit: Fit, rows: int, number: int, *, seed: int) -> Iterator[torch.Tensor]:
    """Data sets of new rows, ``number`` in all, in blocks of shape (B, rows, D)."""
    with reproducible(seed):  # rows are independent given the latent variables that they share
        together = 1 if shared_latents(fit) else max(1, ROWS_AT_ONCE // rows)
    for first in range(0, number, together):
        size = min(together, number - first)
        x = evaluation.sample(fit, size * rows, seed=stream(seed, 0, first))
        yield x.unflatten(0, (size, rows))


def _expect_rows(x: torch.Tensor) -> None:
    if len(x) < 2:
        raise DataError(
            f"expected at least 2 rows, with targets if the story has any; got {len(x)}"
        )


def _labels(length: int, names: Sequence[str]) -> list[str]:
    if length == len(names):
        return list(names)
    return [""] if length == 1 else [str(i) for i in range(length)]


def _bounds(fit: Fit, x: torch.Tensor, seed: int) -> torch.Tensor:
    """The ELBO of the features alone, from one sample of z, shape (N,)."""
    with torch.no_grad(), reproducible(seed):
        return torch.cat(
            [
                row_bounds(*enumerated_traces(fit.model, fit.guide, *batch))
                for batch in batches(fit.features(x))
            ]
        )
