"""Choice of the story and the number of components by the log density of held-out rows."""

import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from numbers import Integral
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from tqdm import tqdm

from pyro_moe.evaluation import importance_weighted_bound, information_criteria, predict
from pyro_moe.evaluation.criteria import NAMES as CRITERIA
from pyro_moe.evaluation.traces import observed_sites
from pyro_moe.inference.context import reproducible, without_warnings
from pyro_moe.inference.errors import DataError, EmptyComponentWarning
from pyro_moe.inference.prior import Prior
from pyro_moe.plots.style import PALETTE

from .fitted import Fit, strange_rows_expected
from .fitted.weights import counted
from .fitting import fit
from .rows import Data, Rows, as_tensor, as_tensors, has_target

Story = Callable[[int], Any]
MISSING = ("missing_targets", "missing_features")
NEGLIGIBLE = 1.0  # nats in all rows, which tell no choice from another


@dataclass(frozen=True)
class Selection:
    """Stories and numbers of components compared, and a fit of the recommended one.

    Attributes:
        log_densities: Log densities of held-out rows in nats. The index is the number of the row
            in the data; there is a column for each choice: K, or (story, K) of several stories.
        table: For each choice the mean over rows, its standard error, the difference from the
            best, and the standard error of that difference, paired by row, see
            `compare_log_densities`; of its fit to all rows the ``log_likelihood``, the number of
            ``parameters``, ``aic``, ``bic`` and ``icl``, see `evaluation.information_criteria`;
            and the ``seconds`` of all of its fits.
        best: The choice with the highest mean.
        num_components: K of the recommended choice: the smallest within one standard error of
            the best.
        fit: The recommended choice, refitted to all rows.
        story: Its name, or None if there is one story.
    """

    log_densities: pd.DataFrame
    table: pd.DataFrame
    best: Any
    num_components: int
    fit: Fit
    story: str | None = None

    def plot(self) -> Figure:
        """Plot the mean held-out log density by K, a curve for each story.

        Error bars are standard errors of the difference from the best.
        """
        table = self.table[np.isfinite(self.table["log_density"])]
        figure = Figure(figsize=(6, 3.6), layout="constrained")
        axes = figure.subplots()
        several = self.story is not None
        names = list(table.index.unique(0)) if several else [None]
        for number, name in enumerate(names):
            own = table.loc[name] if several else table
            axes.errorbar(
                own.index,
                own["log_density"],
                yerr=own["difference_standard_error"],
                color=PALETTE[(number + 1) % len(PALETTE)],
                marker=".",
                capsize=3,
                label=name or "mean ± standard error of the difference from the best",
            )
        chosen: Any = (self.story, self.num_components) if several else self.num_components
        marked: list[tuple[str, Any, str, int]] = [
            ("best", self.best, "s", 7),
            ("smallest within one standard error", chosen, "o", 13),
        ]
        for text, choice, marker, size in marked:
            k = choice[1] if several else choice
            of = f"{choice[0]}, {k}" if several else k
            axes.scatter(
                k,
                table["log_density"][choice],
                s=size**2,
                marker=marker,
                facecolor="none",
                edgecolor=PALETTE[0],
                label=f"{text}: {of}",
            )
        axes.set(xlabel="number of components", ylabel="held-out log density (nats per row)")
        axes.set_xticks(sorted(set(table.index.get_level_values(-1))))
        axes.margins(y=0.15)
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small")
        return figure


def select(
    story: Story | Mapping[str, Story],
    data: Data,
    *,
    num_components: Iterable[int] = range(1, 9),
    held_out: float = 0.2,
    folds: int | None = None,
    num_samples: int = 64,
    seed: int = 0,
    progress: bool = True,
    **fit_options: Any,
) -> Selection:
    r"""Choose the number of components, or the story, by the log density of held-out rows.

    .. math:: \hat\ell_K = \frac{1}{|H|} \sum_{n \in H} \log p(x_n, y_n \mid \hat\theta_K)

    with the parameters fitted by `fit` to the rows outside H. The density of one story is that of
    the observed sites: of y given x, if x is not a site. That of several is the density of y given
    x, if there are targets. It is exact for stories without z. For others it is
    the bound of `evaluation.importance_weighted_bound`. If experts have a prior, the density is
    averaged over their posterior. Do not include test rows in the data.

    The recommendation follows the one-standard-error rule of Breiman et al.: the smallest K whose
    difference from the best is at most one standard error, or whose fit to all rows by EM has the
    likelihood of the best up to one nat, because then further components coincide with others and
    change only how strong the prior is; of several stories the better. The standard error is that
    of the difference, paired by row, so that variation between rows that is common to all K
    cancels. With folds, rows scored by the same fit are treated as independent.
    All fits of a choice have one prior; ``prior="auto"`` chooses it in the rows of the first.

    The table also has information criteria, of a fit to all rows by EM. They are NaN for stories
    that EM does not fit, and, if several are compared by y given x, for those that model x, whose
    likelihood is that of other data.

    Args:
        story: A function from K to a story with ``model`` and ``guide``; or several by name.
        data: x (N, D), or a pair (x, y), as for `fit`. Labels are ignored.
        num_components: Values of K to compare.
        held_out: Share of the rows to hold out, if ``folds`` is None.
        folds: Number of folds of cross-validation. Every row is then scored by a fit to the other
            folds.
        num_samples: Samples of z, or of other latent variables, for each row's density.
        seed: Seed of the split, and of every random draw.
        progress: Whether to show a progress bar, with one step for each fit.
        **fit_options: Further arguments of `fit`, such as ``loss``, ``epochs``, ``restarts`` or
            ``weights``.

    Returns:
        The log densities, the comparison, the recommended choice and its fit to all rows.

    Raises:
        DataError: If there are too few rows, or no K gives the held-out rows a finite density.
        ValueError: If an argument is invalid.
        KeyboardInterrupt: After Ctrl-C. An interrupted fit is not comparable with the others.

    References:
        Breiman, Friedman, Olshen, Stone (1984), *Classification and Regression Trees*, §3.4.3.

    Example:
        >>> from pyro_moe import models
        >>> generator = torch.Generator().manual_seed(0)
        >>> x = torch.cat([torch.randn(60, 2, generator=generator) + 9.0 * k for k in range(2)])
        >>> selection = select(
        ...     lambda k: models.GMM(x_dim=2, num_components=k),
        ...     x, num_components=[1, 2], loss="em", epochs=50, progress=False)
        >>> selection.num_components
        2
    """
    numbers = _numbers(num_components)
    fit_options = {**(data.annotations if isinstance(data, Rows) else {}), **fit_options}
    stories = dict(story) if isinstance(story, Mapping) else {"": story}
    for each in stories.values():
        _check_options(each, fit_options)
    missing = {name: fit_options.get(name, False) for name in MISSING}
    # Double precision loses no digits; each fit converts to the type of its story.
    columns = as_tensors(data, dtype=torch.float64, **missing)
    parts = _parts(len(columns[0]), held_out, folds, seed)
    rows = torch.cat(parts).tolist()
    by_target = len(stories) > 1 and len(columns) > 1
    choices = [(name, k) for name in stories for k in numbers]
    with tqdm(total=len(choices) * (len(parts) + 1), disable=not progress) as bar:
        priors: dict[Any, Prior] = {}  # of the first fit of each choice, for its others

        def fitted(choice: Any, data: Data, rows: torch.Tensor | None = None) -> Fit:
            name, number = choice
            bar.set_postfix(num_components=number, **({"story": name} if name else {}))
            with reproducible(seed, 0, 11):
                untrained = stories[name](number)
            # the density shows the effect of an empty component
            with without_warnings(EmptyComponentWarning):
                options = _of_rows(fit_options, rows)
                options |= {"prior": priors[choice]} if choice in priors else {}
                result = _fit(untrained, data, seed, options)
            priors[choice] = Prior(**result.settings["prior"])
            bar.update()
            return result

        def scores(choice: Any) -> tuple[np.ndarray, bool]:
            each, loss = [], ""
            for held in parts:
                kept = _others(len(columns[0]), held)
                one = fitted(choice, tuple(column[kept] for column in columns), kept)
                test = tuple(column[held] for column in columns)
                with strange_rows_expected():
                    each.append(_log_density(one, test, by_target, num_samples, seed))
                loss = one.settings["loss"]
            return torch.cat(each).double().cpu().numpy(), loss == "em"

        densities: dict[Any, np.ndarray] = {}
        details: dict[Any, dict[str, float]] = {}
        whole: dict[Any, Fit] = {}
        for choice in choices:
            started = time.perf_counter()
            densities[choice], by_em = scores(choice)
            details[choice] = dict.fromkeys(CRITERIA, math.nan)
            if by_em:
                whole[choice] = fitted(choice, data)
                models_x = by_target and "x" in observed_sites(whole[choice])
                if not models_x:
                    details[choice] = information_criteria(whole[choice])
            details[choice]["seconds"] = time.perf_counter() - started
        log_densities = pd.DataFrame(densities, index=rows).sort_index()
        criteria = pd.DataFrame(list(details.values()))
        log_densities.columns = pd.MultiIndex.from_tuples(choices, names=["story", "K"])
        weights, sampling = _weights_of(fit_options, rows)
        table = compare_log_densities(log_densities, weights, sampling=sampling)
        table = table.join(criteria.set_axis(table.index))
        best = table["difference"].eq(0).idxmax()
        close = table["difference"] >= -table["difference_standard_error"]
        alike = table["log_likelihood"] >= table["log_likelihood"][best] - NEGLIGIBLE
        enough = table[close | alike]
        smallest = enough[enough.index.get_level_values("K") == min(k for _, k in enough.index)]
        chosen = smallest["log_density"].idxmax()
        found = whole.get((chosen[0], int(chosen[1]))) or fitted(chosen, data)
    if not isinstance(story, Mapping):
        table, best = table.droplevel(0).rename_axis(None), best[1]
        log_densities = log_densities.droplevel(0, axis=1).rename_axis(None, axis=1)
    return Selection(log_densities, table, best, int(chosen[1]), found, chosen[0] or None)


def compare_log_densities(
    log_densities: pd.DataFrame, weights: torch.Tensor | None = None, *, sampling: bool = False
) -> pd.DataFrame:
    r"""Compare columns of log densities by their means and paired differences from the best.

    .. math:: d_K = \frac{1}{N} \sum_n (\ell_{nK} - \ell_{n \hat K}), \quad
              \mathrm{se}(d_K) = \frac{\mathrm{sd}_n (\ell_{nK} - \ell_{n \hat K})}{\sqrt N}

    With weights, rows count as many times as they say, and N is their sum. The standard errors of
    means by sampling weights are those of :math:`\sum_n w_n \ell_n / N` over samples.

    Args:
        log_densities: Log densities with a column for each choice, shape (N, number of choices).
        weights: How many rows each row counts as, shape (N,), or None.
        sampling: Whether they are sampling weights.

    Returns:
        For each choice the mean ``"log_density"``, its ``"standard_error"``, its ``"difference"``
        from the best, and the ``"difference_standard_error"``, all in nats per row.

    Raises:
        DataError: If no mean is finite.

    Example:
        >>> compare_log_densities(pd.DataFrame({1: [0.0, 2.0], 2: [1.0, 5.0]}))["difference"]
        1   -2.0
        2    0.0
        Name: difference, dtype: float64
    """
    values = log_densities.to_numpy()
    w = np.ones(len(values)) if weights is None else weights.cpu().numpy()
    values, w = values[w > 0], w[w > 0][:, None]
    with np.errstate(invalid="ignore"):
        means = (w * values).sum(0) / w.sum()
    if not np.isfinite(means).any():
        raise DataError("expected a finite log density of every held-out row for some K; got none")
    best = np.where(np.isfinite(means), means, -np.inf).argmax()
    with np.errstate(invalid="ignore"):  # differences of infinite values are NaN
        lags = values - values[:, [best]]
        lag = (w * lags).sum(0) / w.sum()
        pairs, number = ((values, means), (lags, lag)), w.sum()
        shares = w**2 if sampling else w
        squares = [(shares * (each - mean) ** 2).sum(0) for each, mean in pairs]
        errors = [np.sqrt(each / (number - 1) / number) for each in squares]
    columns = {
        "log_density": means,
        "standard_error": errors[0],
        "difference": lag,
        "difference_standard_error": errors[1],
    }
    return pd.DataFrame(columns, index=log_densities.columns)


def _numbers(num_components: Iterable[int]) -> list[int]:
    given = list(num_components) if isinstance(num_components, Iterable) else [num_components]
    if not given or not all(isinstance(k, Integral) and k >= 1 for k in given):
        raise ValueError(f"expected whole numbers of at least 1 in num_components; got {given}")
    return sorted({int(k) for k in given})


def _check_options(story: Any, fit_options: dict[str, Any]) -> None:
    if hasattr(story, "model") or not callable(story):
        raise ValueError(
            "expected a function from the number of components to a story, such as "
            f"lambda k: models.GMM(2, k); got {type(story).__name__}"
        )
    start = fit_options.get("initialize")
    if fit_options.get("groups") is not None:
        raise ValueError("expected no groups, whose rows have no density of their own; got groups")
    if not (start is None or isinstance(start, str)):
        raise ValueError("expected initialize by name, valid for every K; got responsibilities")


def _parts(
    num_rows: int, held_out: float, folds: int | None, seed: int
) -> tuple[torch.Tensor, ...]:
    """Numbers of the held-out rows of each fit."""
    if folds is not None and not 2 <= folds <= num_rows:
        raise ValueError(f"expected folds from 2 to {num_rows}, the number of rows; got {folds}")
    if not 0 < held_out < 1:
        raise ValueError(f"expected held_out between 0 and 1; got {held_out}")
    with reproducible(seed):
        order = torch.randperm(num_rows)
    if folds is not None:
        return tuple(part.sort().values for part in order.tensor_split(folds))
    num_held = math.ceil(held_out * num_rows)
    if not 2 <= num_held < num_rows:
        raise DataError(f"expected at least 2 held-out rows and 1 to fit; got {num_rows} rows")
    return (order[:num_held].sort().values,)


def _others(number: int, rows: torch.Tensor) -> torch.Tensor:
    """The numbers of the other rows."""
    kept = torch.ones(number, dtype=torch.bool).index_fill(0, rows, False)
    return kept.nonzero().flatten()


def _of_rows(fit_options: dict[str, Any], rows: torch.Tensor | None) -> dict[str, Any]:
    """The options of `fit` for some of the rows, or for all."""
    if rows is None:
        return dict(fit_options)
    found = dict(fit_options)
    for name in ("labels", "weights"):
        if found.get(name) is not None:
            found[name] = np.asarray(found[name])[rows.numpy()]
    return found


def _weights_of(fit_options: dict[str, Any], rows: list[int]) -> tuple[torch.Tensor | None, bool]:
    """The weights of the held-out rows, in their order, and whether they are of a sample."""
    sampling = fit_options.get("weight_type") == "sampling"
    given = fit_options.get("weights")
    if given is None:
        return None, sampling
    of_rows = as_tensor(given, "weights")[sorted(rows)]
    return counted(of_rows, sampling=sampling), sampling


def _log_density(
    fit: Fit, data: tuple[torch.Tensor, ...], by_target: bool, num_samples: int, seed: int
) -> torch.Tensor:
    """The log density of held-out rows, or of their targets alone, shape (N,)."""
    if not by_target:
        return importance_weighted_bound(fit, data, num_samples=num_samples, seed=seed)
    known = has_target(data[1])
    found = torch.zeros(len(known), dtype=torch.float64)  # rows without a target say nothing
    prediction = predict(fit, data[0][known], num_samples=max(8, num_samples), seed=seed)
    return found.masked_scatter(known, prediction.log_prob(data[1][known]).double().cpu())


def _fit(story: Any, data: Data, seed: int, fit_options: dict[str, Any]) -> Fit:
    fitted = fit(story.model, story.guide, data, seed=seed, progress=False, **fit_options)
    return fitted if "callback" in fit_options else fitted.uninterrupted()
