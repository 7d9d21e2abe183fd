"""The bootstrap of a mixture: standard errors, intervals, and a test of K components."""

import copy
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import torch
from joblib import Parallel, delayed

from pyro_moe.inference.context import reproducible, stream, without_warnings
from pyro_moe.inference.errors import ConvergenceWarning, EmptyComponentWarning
from pyro_moe.inference.handlers import Annotations
from pyro_moe.inference.prior import Prior

from .entry import fitted_to
from .result import MixtureFit, check_alpha
from .stories import Made

KINDS = ("parametric", "rows")
COARSE = 0.01  # nats, of a statistic
Columns = tuple[torch.Tensor, ...]
Table = tuple[Columns, Annotations]


@dataclass(frozen=True)
class Bootstrap:
    """Estimates of a mixture from resampled tables.

    Attributes:
        fit: The fit.
        params: Estimates, one row a table, with the columns of `MixtureFit.params`.
        kind: ``"parametric"`` or ``"rows"``.
    """

    fit: MixtureFit = field(repr=False)
    params: pd.DataFrame = field(repr=False)
    kind: str

    @property
    def bse(self) -> pd.Series:
        """The standard deviations of the estimates."""
        return self.params.std().rename("standard error")

    def cov_params(self) -> pd.DataFrame:
        """The covariance of the estimates."""
        return self.params.cov()

    def conf_int(self, alpha: float = 0.05) -> pd.DataFrame:
        """Intervals of confidence 1 - α, the quantiles of the estimates.

        Args:
            alpha: α, between 0 and 1.
        """
        check_alpha(alpha)
        ends = self.params.quantile([alpha / 2, 1 - alpha / 2]).T
        return ends.set_axis(["lower", "upper"], axis=1)


@dataclass(frozen=True)
class BootstrapTest:
    """A test of the number of components.

    Attributes:
        statistic: Twice the difference of the log-likelihoods.
        null: The statistic in tables drawn from the smaller mixture.
        larger: The larger mixture.
    """

    statistic: float
    null: np.ndarray = field(repr=False)
    larger: MixtureFit = field(repr=False)

    @property
    def pvalue(self) -> float:
        """The share of tables, the fitted one included, with a statistic at least as large."""
        return float((1 + (self.null >= self.statistic).sum()) / (1 + len(self.null)))


def bootstrap(
    fit: MixtureFit,
    number: int = 200,
    *,
    kind: str = "parametric",
    seed: int = 0,
    n_jobs: int = 1,
) -> Bootstrap:
    """Refit a mixture to resampled tables.

    Each refit starts at the estimates, so that components keep their labels.

    Args:
        fit: The fit.
        number: The number of tables.
        kind: ``"parametric"``, targets drawn from the fit, w for a row of weight w; or ``"rows"``,
            rows or groups drawn with replacement.
        seed: Seed of the draws.
        n_jobs: Processes, as of joblib.

    Raises:
        ValueError: If an argument is invalid; or if targets are to be drawn for rows with sampling
            weights, or with replication weights that are not whole.
        DataError: If the fit was restored without its training rows.
    """
    if kind not in KINDS:
        raise ValueError(f"expected kind in {KINDS}; got {kind!r}")
    if number < 2:
        raise ValueError(f"expected number of at least 2; got {number}")
    if kind == "parametric":
        check_weights(fit)
    draw = simulated if kind == "parametric" else resampled
    run = partial(_estimates, fit, draw)
    each = Parallel(n_jobs=n_jobs)(delayed(run)(stream(seed, i)) for i in range(number))
    return Bootstrap(fit, pd.DataFrame(np.stack(each), columns=fit.params.index), kind)


def bootstrap_test(
    fit: MixtureFit, *, number: int = 99, restarts: int = 6, seed: int = 0, n_jobs: int = 1
) -> BootstrapTest:
    r"""Test K components against K + 1 by the parametric bootstrap (McLachlan 1987).

    .. math:: -2 \log \lambda = 2 [\ell_{K+1} - \ell_K]

    Its distribution is no χ², because under the hypothesis the larger mixture is not identified.

    Args:
        fit: The mixture of K components.
        number: The number of tables drawn from it.
        restarts: Starts of each fit of K + 1 components.
        seed: Seed of the draws.
        n_jobs: Processes, as of joblib.

    Raises:
        ValueError: If number is below 1, or weights are as `bootstrap` does not take them.

    References:
        McLachlan (1987), *On bootstrapping the likelihood ratio test statistic for the number of
        components in a normal mixture*, Applied Statistics 36.
    """
    if number < 1:
        raise ValueError(f"expected number of at least 1; got {number}")
    check_weights(fit)
    table = fit.training_rows, fit.annotations
    larger = _larger(fit, table, restarts, fit.settings["seed"])
    run = partial(_statistic, fit, restarts)
    null = Parallel(n_jobs=n_jobs)(delayed(run)(stream(seed, i)) for i in range(number))
    return BootstrapTest(2.0 * (larger.llf - fit.llf), np.array(null), larger)


def check_weights(fit: MixtureFit) -> None:
    """Check that rows have no weights, or are as many rows as their weights say.

    Raises:
        ValueError: If weights are those of a sample, or have fractions.
    """
    weights = fit.annotations.weights
    if weights is None:
        return
    if fit.weight_type == "sampling":
        raise ValueError(
            "expected no sampling weights to draw targets of all rows, of which they are a sample; "
            "got some: bootstrap(kind='rows') takes them"
        )
    if bool((weights != weights.round()).any()):
        value = float(weights[weights != weights.round()][0])
        raise ValueError(
            f"expected whole weights to draw targets, as a row of weight w is w rows; got {value:g}"
            ": bootstrap(kind='rows') takes them"
        )


def simulated(fit: MixtureFit, seed: int) -> Table:
    """The training rows with targets drawn from a fit; one component for each group.

    Known components stay as they are. A row of weight w is w rows, each with a draw of its own.
    """
    (x, y), about = fit.training_rows, fit.annotations
    if about.weights is not None:
        rows = torch.arange(len(x)).repeat_interleave(about.weights.long())
        x, y, about = x[rows], y[rows], replace(about, weights=None).take(rows)
    labels, groups = about.labels, about.groups
    with torch.no_grad(), reproducible(seed):
        gate, experts = fit.story.gate(x).probs, fit.story.experts(x)
        if labels is not None:
            gate = torch.where(labels.isnan(), gate, labels)
        drawn = torch.multinomial(gate, 1).squeeze(-1)
        if groups is not None:
            _, place = groups.unique(return_inverse=True)
            first = torch.zeros(int(place.max()) + 1, dtype=torch.long)
            first[place] = torch.arange(len(place))
            drawn = drawn[first[place]]
        values = experts.sample()[torch.arange(len(x)), drawn]
    return (x, values.reshape(y.shape).to(y.dtype)), about


def resampled(fit: MixtureFit, seed: int) -> Table:
    """The training rows, or whole groups of them, drawn with replacement."""
    columns, about = fit.training_rows, fit.annotations
    generator = np.random.default_rng(seed)
    if about.groups is not None:
        place = about.groups.unique(return_inverse=True)[1].numpy()
        drawn = generator.integers(0, place.max() + 1, place.max() + 1)
        rows = [np.flatnonzero(place == group) for group in drawn]
        groups = torch.from_numpy(np.repeat(np.arange(len(drawn)), [len(each) for each in rows]))
        chosen = np.concatenate(rows)
        about = replace(about.take(chosen), groups=groups)
    elif about.weights is not None and fit.weight_type == "replication":
        weights = about.weights.double().numpy()  # a row of weight w is w rows
        counts = generator.multinomial(round(weights.sum()), weights / weights.sum())
        chosen = np.flatnonzero(counts)
        drawn = torch.from_numpy(counts[chosen]).to(about.weights)
        about = replace(about.take(chosen), weights=drawn)
    else:
        chosen = generator.integers(0, len(columns[0]), len(columns[0]))
        about = about.take(chosen)
    return tuple(column[chosen] for column in columns), about


def _estimates(fit: MixtureFit, draw: Any, seed: int) -> np.ndarray:
    return _refitted(fit, draw(fit, seed)).params.to_numpy()


def _statistic(fit: MixtureFit, restarts: int, seed: int) -> float:
    table = simulated(fit, seed)
    smaller, larger = _refitted(fit, table), _larger(fit, table, restarts, seed)
    return max(0.0, 2.0 * (larger.llf - smaller.llf))


def _refitted(fit: MixtureFit, table: Table) -> MixtureFit:
    """The mixture fitted to other rows, from its estimates."""
    return _fitted(fit, copy.deepcopy(fit.story), table, initialize="keep")


def _larger(fit: MixtureFit, table: Table, restarts: int, seed: int) -> MixtureFit:
    """A mixture of one more component."""
    story = fit.story.resized(fit.num_components + 1)
    columns, about = table
    if about.labels is not None:  # of which none is the further component
        labels = torch.cat([about.labels, 0.0 * about.labels[:, :1]], -1)
        table = columns, replace(about, labels=labels)
    return _fitted(fit, story, table, restarts=restarts, seed=seed, tolerance=COARSE)


def _fitted(fit: MixtureFit, story: Any, table: Table, **options: Any) -> MixtureFit:
    given = {
        "prior": Prior(**fit.settings["prior"]),
        "tolerance": fit.settings["tolerance"],
        "weight_type": fit.weight_type,
        **dict(zip(table[1].names, table[1].columns, strict=True)),
        **options,
    }
    arguments = {**(fit.story_arguments or {}), "num_components": story.num_components}
    made = Made(story, fit.story_name, arguments)
    with without_warnings(EmptyComponentWarning), without_warnings(ConvergenceWarning):
        fitted = fitted_to(made, fit.design, table[0], fit.family, progress=False, **given)
    return fitted.uninterrupted()
