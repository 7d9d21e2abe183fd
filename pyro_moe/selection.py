"""Choice of the number of components by the log density of held-out rows."""

import math
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
from pyro_moe.inference.context import reproducible, without_warnings
from pyro_moe.inference.errors import DataError, EmptyComponentWarning
from pyro_moe.plots.style import PALETTE

from .fitted import Fit, strange_rows_expected
from .fitting import fit
from .rows import Data, as_tensors


@dataclass(frozen=True)
class Selection:
    """Held-out log densities by number of components, and a fit with the recommended number.

    Attributes:
        log_densities: Log densities of held-out rows in nats. The index is the number of the row
            in the data; there is a column for each K.
        table: For each K the mean over rows, its standard error, the difference from the best K,
            and the standard error of that difference, paired by row. See `compare_log_densities`.
        best: K with the highest mean.
        num_components: The smallest K within one standard error of the best.
        fit: The story with the recommended number of components, refitted to all rows.
    """

    log_densities: pd.DataFrame
    table: pd.DataFrame
    best: int
    num_components: int
    fit: Fit

    def plot(self) -> Figure:
        """Plot the mean held-out log density by K.

        Error bars are standard errors of the difference from the best K.
        """
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
    num_components: Iterable[int] = range(1, 9),
    held_out: float = 0.2,
    folds: int | None = None,
    num_samples: int = 64,
    seed: int = 0,
    progress: bool = True,
    **fit_options: Any,
) -> Selection:
    r"""Choose the number of components by the log density of held-out rows.

    .. math:: \hat\ell_K = \frac{1}{|H|} \sum_{n \in H} \log p(x_n, y_n \mid \hat\theta_K)

    with the parameters fitted by `fit` to the rows outside H. The density is that of the observed
    sites: of y given x, if x is not a site. It is exact for stories without z. For others it is
    the bound of `evaluation.importance_weighted_bound`. If experts have a prior, the density is
    averaged over their posterior. Do not include test rows in the data.

    The recommendation follows the one-standard-error rule of Breiman et al.: the smallest K whose
    difference from the best is at most one standard error. The standard error is that of the
    difference, paired by row, so that variation between rows that is common to all K cancels.
    With folds, rows scored by the same fit are treated as independent.

    Args:
        story: A function from K to a story with ``model`` and ``guide``.
        data: x (N, D), or a pair (x, y), as for `fit`. Labels are ignored.
        num_components: Values of K to compare.
        held_out: Share of the rows to hold out, if ``folds`` is None.
        folds: Number of folds of cross-validation. Every row is then scored by a fit to the other
            folds.
        num_samples: Samples of z, or of other latent variables, for each row's density.
        seed: Seed of the split, and of every random draw.
        progress: Whether to show a progress bar, with one step for each fit.
        **fit_options: Further arguments of `fit`, such as ``loss``, ``epochs`` or ``restarts``.

    Returns:
        The log densities, the comparison, the recommended K and its fit to all rows.

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
    _check_options(story, fit_options)
    missing = fit_options.get("missing_targets", False)
    # Double precision loses no digits; each fit converts to the type of its story.
    columns = as_tensors(data, dtype=torch.float64, missing_targets=missing)
    parts = _parts(len(columns[0]), held_out, folds, seed)
    rows = torch.cat(parts).tolist()
    with tqdm(total=len(numbers) * len(parts) + 1, disable=not progress) as bar:

        def fitted(number: int, data: Data) -> Fit:
            bar.set_postfix(num_components=number)
            with reproducible(seed, 0, 11):
                untrained = story(number)
            result = _fit(untrained, data, seed, fit_options)
            bar.update()
            return result

        def scores(number: int) -> torch.Tensor:
            # the density shows the effect of an empty component
            with without_warnings(EmptyComponentWarning):
                fits = [fitted(number, _without(columns, held)) for held in parts]
            held_rows = [tuple(column[held] for column in columns) for held in parts]
            pairs = zip(fits, held_rows, strict=True)
            with strange_rows_expected():
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
    r"""Compare columns of log densities by their means and paired differences from the best.

    .. math:: d_K = \frac{1}{N} \sum_n (\ell_{nK} - \ell_{n \hat K}), \quad
              \mathrm{se}(d_K) = \frac{\mathrm{sd}_n (\ell_{nK} - \ell_{n \hat K})}{\sqrt N}

    Args:
        log_densities: Log densities with a column for each choice, shape (N, number of choices).

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
    with np.errstate(invalid="ignore"):
        means = values.mean(0)
    if not np.isfinite(means).any():
        raise DataError("expected a finite log density of every held-out row for some K; got none")
    best = np.where(np.isfinite(means), means, -np.inf).argmax()
    with np.errstate(invalid="ignore"):  # differences of infinite values are NaN
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
        raise ValueError(f"expected whole numbers of at least 1 in num_components; got {given}")
    return sorted({int(k) for k in given})


def _check_options(story: Any, fit_options: dict[str, Any]) -> None:
    if hasattr(story, "model") or not callable(story):
        raise ValueError(
            "expected a function from the number of components to a story, such as "
            f"lambda k: models.GMM(2, k); got {type(story).__name__}"
        )
    start = fit_options.get("initialize")
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


def _without(columns: tuple[torch.Tensor, ...], rows: torch.Tensor) -> tuple[torch.Tensor, ...]:
    kept = torch.ones(len(columns[0]), dtype=torch.bool).index_fill(0, rows, False)
    return tuple(column[kept] for column in columns)


def _fit(story: Any, data: Data, seed: int, fit_options: dict[str, Any]) -> Fit:
    fitted = fit(story.model, story.guide, data, seed=seed, progress=False, **fit_options)
    if fitted.interrupted and "callback" not in fit_options:
        raise KeyboardInterrupt
    return fitted
