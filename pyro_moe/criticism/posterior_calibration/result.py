"""The result of simulation-based calibration: ranks, their test, coverage, and a picture."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from pyro_moe.plots.names import label
from pyro_moe.plots.style import GRAY, PALETTE

from . import uniformity


@dataclass(frozen=True)
class SimulationBasedCalibration:
    """Ranks of true values among draws from guides fitted to simulated data.

    Attributes:
        ranks: The number of draws below the true value, with a row for each simulation and a
            column for each quantity.
        num_draws: L. Ranks are from 0 to L, and uniform if the guide is the posterior.
    """

    ranks: pd.DataFrame
    num_draws: int

    @property
    def p_values(self) -> pd.Series:
        """The p-value of the test of uniform ranks for each quantity, see `uniformity.p_value`."""
        return self.ranks.apply(partial(uniformity.p_value, num_draws=self.num_draws))

    @property
    def p_value(self) -> float:
        """The smallest p-value times the number of quantities (Bonferroni), at most one."""
        return float(min(1.0, self.p_values.min() * self.ranks.shape[1]))

    def coverage(self, levels: Sequence[float] = (0.5, 0.8, 0.9, 0.95)) -> pd.DataFrame:
        """The share of simulations whose central interval contains the true value.

        The interval omits the same number of the L draws at either end. The possible levels are
        1 - 2 a / (L + 1) for whole a. Each given level is replaced by the nearest possible one.

        Args:
            levels: Nominal levels of central intervals.

        Returns:
            A row for each quantity and level, with the ``coverage`` and its ``standard_error`` if
            the nominal level is correct.

        Raises:
            ValueError: If a level is not between 0 and 1.
        """
        for level in levels:
            if not 0 < level < 1:
                raise ValueError(f"expected levels between 0 and 1; got {level}")
        size = self.num_draws + 1
        records = []
        for name, ranks in self.ranks.items():
            for outside in dict.fromkeys(max(1, round((1 - x) / 2 * size)) for x in levels):
                level = 1 - 2 * outside / size
                covered = ranks.between(outside, self.num_draws - outside)
                error = math.sqrt(level * (1 - level) / len(ranks))
                records.append((name, level, covered.mean(), error))
        names = ["quantity", "level", "coverage", "standard_error"]
        return pd.DataFrame(records, columns=names).set_index(["quantity", "level"])

    def plot(self, *, level: float = 0.95) -> Figure:
        """Plot the ECDF of each quantity's ranks minus the uniform CDF, with a simultaneous band.

        If the line is above the band on the left and below it on the right, the guide is
        underdispersed. The reverse means that it is overdispersed. If the line is above the band
        throughout, the draws are too large.

        Args:
            level: Simultaneous coverage of the band over all ranks, for each quantity.
        """
        points = np.arange(1, self.num_draws + 1) / (self.num_draws + 1)
        bounds = uniformity.band(len(self.ranks), self.num_draws, level)
        low, high = (bound / len(self.ranks) - points for bound in bounds)
        num_columns = min(4, self.ranks.shape[1])
        num_rows = -(-self.ranks.shape[1] // num_columns)
        figure = Figure(figsize=(1 + 3 * num_columns, 0.6 + 2.4 * num_rows), layout="constrained")
        grid = figure.subplots(num_rows, num_columns, sharex=True, sharey=True, squeeze=False)
        for axes, (name, ranks) in zip(grid.flat, self.ranks.items(), strict=False):
            shares = uniformity.counts_below(ranks, self.num_draws) / len(ranks)
            axes.fill_between(points, low, high, color=PALETTE[4], alpha=0.4, linewidth=0)
            axes.axhline(0.0, color=GRAY, linewidth=0.8)
            axes.plot(points, shares - points, color=PALETTE[1])
            axes.set_title(f"{label(name)} (p = {self.p_values[name]:.2g})", fontsize="medium")
        for axes in grid.flat[self.ranks.shape[1] :]:
            axes.remove()
        figure.supxlabel("rank of the true value, as a share of the draws")
        figure.supylabel("ECDF of ranks - uniform")
        return figure
