"""How many components: stories of several K, compared by the density of held-out rows."""

import math
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from numbers import Integral
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from tqdm import tqdm

from pyro_moe.evaluation.bounds import importance_weighted_bound
from pyro_moe.inference.context import reproducible
from pyro_moe.inference.errors import DataError, EmptyComponentWarning
from pyro_moe.plots.style import PALETTE

from .fitted import Fit
from .fitting import fit
from .rows import Data, as_tensors


@dataclass(frozen=True)
class Selection:
    """Held-out log densities by number of components, and the story of the recommended one.

    Attributes:
        log_densities: Of each row that was held out, in nats: a row each, by its number in the
            data, and a column for each K.
        table: For each K the mean over rows, its standard error, the difference from the best K,
            and the standard error of that difference, row by row; see `compare_log_densities`.
        best: K with the highest mean.
        num_components: The smallest K that is within one standard error of the best.
        fit: The story with so many components, fitted again to all rows.
    """

    log_densities: pd.DataFrame
    table: pd.DataFrame
    best: int
    num_components: int
    fit: Fit

    def plot(self) -> Figure:
        """The mean held-out log density by K; bars are standard errors of the lag."""
        table = self.table[np.isfinite(self.table["log_density"])]
        means = table["log_density"]
        figure = Figure(figsize=(6, 3.6), layout="constrained")
        axes = figure.subplots()
        axes.errorbar(
            means.index,
            means,
            yerr=table["difference_standard_error"],
            color=PALETTE[1],
            marker=".",
            capsize=3,
            label="mean ± standard error of the difference from the best",
        )
        for name, k, marker, size in (
            ("best", self.best, "s", 7),
            ("smallest within one standard error", self.num_components, "o", 13),
        ):
            axes.scatter(
                k,
                means[k],
                s=size**2,
                marker=marker,
                facecolor="none",
                edgecolor=PALETTE[0],
                label=f"{name}: {k}",
            )
        axes.set(xlabel="number of components", ylabel="held-out log density (nats per row)")
        axes.set_xticks(list(means.index))
        axes.margins(y=0.15)
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small")
        return figure


def select(
    story: Callable[[int], Any],
    data: Data,
    *,
    num_components: Iterable[int] = range(2, 9),
    held_out: float = 0.2,
    folds: int | None = None,
    num_samples: int = 64,
    seed: int = 0,
    progress: bool = True,
    **fit_options: Any,
) -> Selection:
    r"""Choose the number of components by the log density of held-out rows.

    .. math:: \hat\ell_K = \frac{1}{|H|} \sum_{n \in H} \log p(x_n, y_n \mid \hat\theta_K)

    with the parameters fitted to the rows outside H, by `fit`. The density is that of what the
    story observes: of y given x, where x is not a site. It is exact for stories without a z, and
    for others the bound of `evaluation.importance_weighted_bound`; where experts have a prior, it
    is averaged over their posterior. Only the data given is used: keep test rows out of it.

    The recommendation is Breiman's: the smallest K whose lag behind the best is no more than one
    standard error, here that of the lag itself, row by row, in which it does not count that some
    rows are harder than others for every K. With folds, rows that were scored by one fit are
    taken as independent.

    Args:
        story: A function from K to a story with ``model`` and ``guide``.
        data: x (N, D), or a pair (x, y), as `fit` takes it. Labels in it are not looked at.
        num_components: Values of K to try.
        held_out: Share of the rows to score, if there are no ``folds``.
        folds: So many parts, each scored by a fit to the others, such that every row is scored.
        num_samples: Samples of z, or of what else is latent, for each row's density.
        seed: Seed of the split, and of every random draw.
        progress: Whether to show a progress bar, a step a fit.
        **fit_options: What else `fit` takes, such as ``loss``, ``epochs`` or ``restarts``, for
            every fit.

    Returns:
        The log densities, the comparison, the recommended K and its fit to all rows.

    Raises:
        DataError: If there are too few rows, or no K gives the held-out rows a finite density.
        ValueError: If an argument is none of its choices.
        KeyboardInterrupt: After Ctrl-C: what one fit alone was told is no comparison.

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
    _check_options(story, fit_options)
    missing = fit_options.get("missing_targets", False)
    # Doubles hold what was given; each fit takes them into the type of its story.
    columns = as_tensors(data, dtype=torch.float64, missing_targets=missing)
    parts = _parts(len(columns[0]), held_out, folds, seed)
    rows = torch.cat(parts).tolist()
    with tqdm(total=len(numbers) * len(parts) + 1, disable=not progress) as bar:

        def fitted(number: int, data: Data) -> Fit:
            bar.set_postfix(num_components=number)
            result = _fit(story(number), data, seed, fit_options)
            bar.update()
            return result

        def scores(number: int) -> torch.Tensor:
            with warnings.catch_warnings():  # the density says what an empty component costs
                warnings.simplefilter("ignore", EmptyComponentWarning)
                fits = [fitted(number, _without(columns, held)) for held in parts]
            held_rows = [tuple(column[held] for column in columns) for held in parts]
            pairs = zip(fits, held_rows, strict=True)
            each = [
                importance_weighted_bound(*pair, num_samples=num_samples, seed=seed)
                for pair in pairs
            ]
            return torch.cat(each).double().cpu()

        densities = {number: scores(number).numpy() for number in numbers}
        log_densities = pd.DataFrame(densities, index=rows).sort_index()
        table = compare_log_densities(log_densities)
        best = int(table["difference"].eq(0).idxmax())
        enough = table["difference"] >= -table["difference_standard_error"]
        chosen = int(enough.idxmax())
        return Selection(log_densities, table, best, chosen, fitted(chosen, data))


def compare_log_densities(log_densities: pd.DataFrame) -> pd.DataFrame:
    r"""Means of columns of log densities, and how far each is behind the best.

    .. math:: d_K = \frac{1}{N} \sum_n (\ell_{nK} - \ell_{n \hat K}), \quad
              \mathrm{se}(d_K) = \frac{\mathrm{sd}_n (\ell_{nK} - \ell_{n \hat K})}{\sqrt N}

    Args:
        log_densities: A row for each of N rows, a column for each choice.

    Returns:
        For each choice ``"log_density"``, its ``"standard_error"``, its ``"difference"`` from the
        highest and the ``"difference_standard_error"`` of that, all in nats per row.

    Raises:
        DataError: If no mean is finite.

    Example:
        >>> compare_log_densities(pd.DataFrame({1: [0.0, 2.0], 2: [1.0, 5.0]}))["difference"]
        1   -2.0
        2    0.0
        Name: difference, dtype: float64
    """
    values = log_densities.to_numpy()
    with np.errstate(invalid="ignore"):
        means = values.mean(0)
    if not np.isfinite(means).any():
        raise DataError("expected a finite log density of every held-out row for some K; got none")
    best = np.where(np.isfinite(means), means, -np.inf).argmax()
    with np.errstate(invalid="ignore"):  # a difference from what is infinite has no spread
        lags = values - values[:, [best]]
        errors = [each.std(0, ddof=1) / math.sqrt(len(values)) for each in (values, lags)]
    columns = {
        "log_density": means,
        "standard_error": errors[0],
        "difference": lags.mean(0),
        "difference_standard_error": errors[1],
    }
    return pd.DataFrame(columns, index=log_densities.columns)


def _numbers(num_components: Iterable[int]) -> list[int]:
    given = list(num_components) if isinstance(num_components, Iterable) else [num_components]
    if not given or not all(isinstance(k, Integral) and k >= 1 for k in given):
        raise ValueError(f"expected num_components of whole numbers from 1 on; got {given}")
    return sorted({int(k) for k in given})


def _check_options(story: Any, fit_options: dict[str, Any]) -> None:
    if hasattr(story, "model") or not callable(story):
        raise ValueError(
            "expected a function from the number of components to a story, such as "
            f"lambda k: models.GMM(2, k); got {type(story).__name__}"
        )
    start = fit_options.get("initialize")
    if not (start is None or isinstance(start, str)):
        raise ValueError("expected initialize by name, for every K; got responsibilities")


def _parts(
    num_rows: int, held_out: float, folds: int | None, seed: int
) -> tuple[torch.Tensor, ...]:
    """Numbers of the rows to score by one fit to all others, for each fit."""
    if folds is not None and not 2 <= folds <= num_rows:
        raise ValueError(f"expected folds from 2 to {num_rows}, one a row; got {folds}")
    if not 0 < held_out < 1:
        raise ValueError(f"expected held_out between 0 and 1; got {held_out}")
    with reproducible(seed):
        order = torch.randperm(num_rows)
    if folds is not None:
        return tuple(part.sort().values for part in order.tensor_split(folds))
    num_held = math.ceil(held_out * num_rows)
    if not 2 <= num_held < num_rows:
        raise DataError(f"expected 2 rows to score and 1 to fit at least; got {num_rows} rows")
    return (order[:num_held].sort().values,)


def _without(columns: tuple[torch.Tensor, ...], rows: torch.Tensor) -> tuple[torch.Tensor, ...]:
    kept = torch.ones(len(columns[0]), dtype=torch.bool).index_fill(0, rows, False)
    return tuple(column[kept] for column in columns)


def _fit(story: Any, data: Data, seed: int, fit_options: dict[str, Any]) -> Fit:
    fitted = fit(story.model, story.guide, data, seed=seed, progress=False, **fit_options)
    if fitted.stopped == "interrupted" and "callback" not in fit_options:
        raise KeyboardInterrupt
    return fitted
