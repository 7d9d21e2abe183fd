"""Predictive checks: observed data compared with data simulated from the fitted model."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch

from pyro_moe.evaluation.traces import observed_sites
from pyro_moe.fitted import Fit, strange_rows_expected
from pyro_moe.inference.errors import SiteError
from pyro_moe.rows import Data, column_names, numbered, target_names

from .calibration import calibration
from .replicates import Features, Replicate, Targets
from .statistics import DISTANCE, Statistic
from .surprise import adjusted_p_values, allowing_for_estimates, predictive_p_values, standardized

LEAST_ROWS = 20  # of a component that is checked separately


@dataclass(frozen=True)
class Check:
    """The result of a predictive check.

    Attributes:
        table: A row for each statistic: ``site``, ``component`` (missing for all rows),
            ``statistic``, ``column``, ``observed``, ``replicated`` (the mean over replicates),
            ``standard_deviation`` (over replicates), ``p_value`` and ``adjusted_p_value``.
        pit: The probability integral transform F(y_m|x) of each target, shape (N, M). It is
            uniform if the model is correct. None for classes and for stories without a target.
        num_rows: Number of rows checked, each as many times as its weight says.
        num_replicates: Number of replicated data sets.
        ratio: N / N_fit, for which p-values allow, see `check`.
    """

    table: pd.DataFrame
    pit: torch.Tensor | None
    num_rows: int
    num_replicates: int
    ratio: float = 0.0

    @property
    def allowed(self) -> pd.DataFrame:
        """The table with the deviations that p-values use, which allow for estimated parameters."""
        squared = self.table["statistic"] == DISTANCE
        more = (1 + self.ratio) ** (0.5 + 0.5 * squared)
        return self.table.assign(
            replicated=self.table["replicated"] * more.where(squared, 1.0),
            standard_deviation=self.table["standard_deviation"] * more,
        )

    @property
    def p_value(self) -> float:
        """The smallest adjusted p-value, at most α with probability α if the model is correct."""
        return float(self.table["adjusted_p_value"].min())

    @property
    def calibration(self) -> pd.DataFrame | None:
        """Coverage of central prediction intervals by level, see `calibration`."""
        return None if self.pit is None else calibration(self.pit)

    def surprises(self, level: float = 0.05) -> pd.DataFrame:
        """Statistics with an adjusted p-value of at most ``level``, the smallest first."""
        found = self.table[self.table["adjusted_p_value"] <= level]
        return found.sort_values(["adjusted_p_value", "p_value"], kind="stable")

    def __str__(self) -> str:
        number = len(self.surprises())
        verb = "differ" if number > 1 else "differs"
        return (
            f"{number or 'none'} of {len(self.table)} statistics {verb} significantly from the "
            f"model's (smallest adjusted p-value: {self.p_value:.3f})"
        )


@strange_rows_expected()
def check(
    fit: Fit,
    data: Data | None = None,
    *,
    statistics: Mapping[str, Mapping[str, Statistic]] | None = None,
    num_replicates: int = 200,
    classes: Sequence[str] | None = None,
    seed: int = 0,
) -> Check:
    r"""Compare data with replicates simulated from the fitted model, overall and by component.

    .. math:: y^{rep}_n \sim p(y \mid x_n), \quad x^{rep} \sim p(x), \quad
              p_j = P\big(|T_j(y^{rep}) - \bar T_j| \ge |T_j(y) - \bar T_j|\big)

    Each replicate has as many rows as the data and is drawn from the model with discrete ``c``.
    Targets are replicated at the observed x. Where the data have groups, as the training rows of a
    fit by groups have, the rows of a group are replicated with one component. Features are
    replicated as new rows. A row belongs to the component that is most probable under the gate
    given x alone, in data and replicates alike. A row counts as many times as its weight says, up
    to rounding, see `Fit.repeats_of`. Sampling weights are left aside.

    Use held-out rows: checks on the training rows are optimistic. Replicates are drawn at the
    estimated parameters and do not show their estimation error. Deviations of replicated
    statistics from their mean are therefore multiplied by :math:`\sqrt{1 + N / N_{fit}}`, an upper
    bound on the effect of efficient estimates. Squared distances are multiplied by
    :math:`1 + N / N_{fit}`.

    Adjusted p-values account for the number and dependence of the statistics. If the model is
    correct, the probability of any false alarm at level α is about α.

    Args:
        fit: A fitted story with a site ``y`` or ``x``.
        data: Rows of the kind that was fitted; the training rows if None.
        statistics: Further test statistics, ``{"y": {"range": function}, "x": …}``. Each is a
            function of a `Sample` and returns a number, or one for each column.
        num_replicates: S. The smallest possible p-value is 1 / (S + 1).
        classes: Names of the classes, which name their shares in the table.
        seed: Seed of the replicates.

    Raises:
        DataError: If the data does not match what was fitted, or has fewer than two rows (with a
            target, if the story has targets); or if data is None for a fit that was restored
            without its training rows.
        SiteError: If the model has no site ``y`` and no site ``x``.
        ValueError: If ``statistics`` are given for another site.

    Source:
        Gelman, Meng and Stern, "Posterior predictive assessment of model fitness via realized
        discrepancies", Statistica Sinica 1996; Westfall and Young, "Resampling-based multiple
        testing", 1993 (maximum-T adjustment).

    Example:
        >>> import pyro_moe
        >>> from pyro_moe import models
        >>> x = torch.randn(400, 2, generator=torch.Generator().manual_seed(0))
        >>> story = models.GMM(x_dim=2, num_components=1)
        >>> fit = pyro_moe.fit(story.model, story.guide, x, loss="em", epochs=5, progress=False)
        >>> wider = check(fit, 2 * x[:100])
        >>> "standard deviation" in wider.surprises()["statistic"].tolist()
        True
    """
    columns = fit.training_rows if data is None else fit.as_tensors(data)
    places, groups = fit.repeats_of(data), fit.groups_of(data)
    if places is not None:
        columns = tuple(column[places] for column in columns)
        groups = None if groups is None else groups[places.cpu()]
    sites = observed_sites(fit)
    if not {"x", "y"} & set(sites):
        raise SiteError(f"expected an observed site 'x' or 'y' in the model; got {sites}")
    parts: list[Targets | Features] = []
    names = fit.columns or column_names(data) or numbered("x", fit.x_dim)
    if "y" in sites:
        targets = fit.targets or target_names(data)
        options: dict[str, Any] = {"names": targets, "classes": classes, "groups": groups}
        parts.append(Targets(fit, columns, x_names=names, seed=seed, **options))
    if "x" in sites:
        parts.append(Features(fit, columns[0], names=names, seed=seed))
    given = statistics or {}
    if not set(given) <= {part.site for part in parts}:
        raise ValueError(
            f"expected statistics of sites {[part.site for part in parts]}; got {list(given)}"
        )
    with torch.no_grad():
        compared = [_compare(part, given.get(part.site, {}), num_replicates) for part in parts]
    ratio = len(columns[0]) / fit.total
    pit = next((part.pit for part in parts if isinstance(part, Targets)), None)
    return Check(_judged(compared, ratio), pit, len(columns[0]), num_replicates, ratio)


@dataclass(frozen=True)
class _Compared:
    """Statistics of the data, shape (J,), and of replicates, shape (S, J), with their labels."""

    labels: list[tuple[str, int | None, str, str]]  # site, component, statistic, column
    observed: torch.Tensor
    replicated: torch.Tensor


def _compare(
    part: Targets | Features, given: Mapping[str, Statistic], num_replicates: int
) -> _Compared:
    sample, component = part.observed()
    counts = torch.bincount(component)
    views: list[tuple[int | None, Mapping[str, Statistic]]] = [(None, {**part.statistics, **given})]
    if len(counts) > 1:
        large = (counts >= LEAST_ROWS).nonzero().flatten().tolist()
        views += [(k, {**part.statistics_of(k), **given}) for k in large]

    def evaluate(replicate: Replicate, like: Sequence[torch.Tensor] = ()) -> list[torch.Tensor]:
        sample, component = replicate
        values: list[torch.Tensor] = []
        for k, statistics in views:
            members = sample if k is None else sample.take((component == k).nonzero().flatten())
            if len(members) < 2:  # a component that a replicate lacks
                lacking = like[len(values) : len(values) + len(statistics)]
                values += [torch.full_like(value, torch.nan) for value in lacking]
            else:
                found = [torch.as_tensor(f(members)) for f in statistics.values()]
                values += [value.double().reshape(-1) for value in found]
        return values

    observed = evaluate((sample, component))
    names = [(k, name) for k, statistics in views for name in statistics]
    labels = [
        (part.site, k, name, label)
        for (k, name), value in zip(names, observed, strict=True)
        for label in part.labels(name, len(value))
    ]
    replicated = [
        torch.cat(evaluate(replicate, observed)) for replicate in part.replicates(num_replicates)
    ]
    return _Compared(labels, torch.cat(observed), torch.stack(replicated))


def _judged(compared: list[_Compared], ratio: float) -> pd.DataFrame:
    observed = torch.cat([part.observed for part in compared])
    replicated = torch.cat([part.replicated for part in compared], 1)
    labels = [label for part in compared for label in part.labels]
    squared = torch.tensor([name == DISTANCE for _, _, name, _ in labels])
    allowed = allowing_for_estimates(replicated, ratio, squared=squared.to(replicated.device))
    distances = standardized(observed, allowed)
    table = pd.DataFrame(labels, columns=["site", "component", "statistic", "column"])
    numbers = {
        "observed": observed,
        "replicated": replicated.nanmean(0),
        "standard_deviation": (replicated - replicated.nanmean(0)).square().nanmean(0).sqrt(),
        "p_value": predictive_p_values(*distances),
        "adjusted_p_value": adjusted_p_values(*distances),
    }
    table["component"] = table["component"].astype("Int64")
    return table.assign(**{name: number.cpu().numpy() for name, number in numbers.items()})
