"""The strength of the prior for few rows, by cross-validation of a shallow story."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from pyro.infer import ELBO

from pyro_moe.inference.context import reproducible, stream
from pyro_moe.inference.em import EM
from pyro_moe.inference.handlers import UNANNOTATED, Annotations
from pyro_moe.inference.prior import WEAK, Prior, penalized
from pyro_moe.inference.programs import Program, isolated, owner
from pyro_moe.inference.protocols import HasShallow
from pyro_moe.inference.starts.several import best_start
from pyro_moe.rows import as_double

from .annotations import em_takes_groups
from .arguments import has_em
from .columns import standardizes
from .reset import reset

ONE_MODEL = Prior(100.0)
PATH = (
    WEAK,
    Prior(0.1),
    Prior(1.0),
    Prior(10.0),
    Prior(30.0),
    ONE_MODEL,
    Prior(100.0, 1.0),
    Prior(100.0, 4.0),
    Prior(100.0, 16.0),
)
FOLDS = 5
MOST_ROWS = 2000
MOST_COLUMNS = 50
ROWS_PER_COEFFICIENT = 50
STARTS = 3
ITERATIONS = 10

Columns = tuple[torch.Tensor, ...]


def chosen_prior(
    model: Program,
    guide: Program,
    columns: Columns,
    num_components: int | None,
    loss: str | ELBO,
    learns: bool,
    seed: int,
    annotations: Annotations = UNANNOTATED,
) -> Prior:
    r"""The weak prior, or a stronger one if cross-validation is in its favor.

    .. math:: \hat\kappa = \arg\max_\kappa
              \sum_n \log p(y_n \mid x_n, \hat\theta_\kappa^{(-n)})

    Without targets it is the density of x. There are five folds. The weak prior is kept if the
    story then predicts better than with the strongest ones, which make all components one model.
    Otherwise it is the strongest whose sum is at most one standard error below the best. Deep
    stories and trees are represented by their shallow counterpart, see `protocols.HasShallow`.
    Nothing is compared if there are more than 2,000 rows or 50 columns, or more than fifty rows
    for each coefficient of the experts.

    Args:
        model: The model.
        guide: The guide.
        columns: All rows.
        num_components: K, or None for a model without ``c``.
        loss: The objective. Only ``"em"`` and ``"marginal"`` have a prior.
        learns: Whether the parameters are to be learned.
        seed: Seed of the folds and of the starts.
        annotations: What is known of the rows besides their data.
    """
    width = columns[0].shape[1]
    number = annotations.total(len(columns[0]))
    few = number <= min(MOST_ROWS, ROWS_PER_COEFFICIENT * (num_components or 1) * (width + 2))
    few = few and width <= MOST_COLUMNS
    columns = tuple(column[:] for column in columns) if few else columns
    if not learns or num_components is None or not few or number < FOLDS * (num_components + 1):
        return WEAK
    if not (isinstance(loss, str) and loss in ("em", "marginal")):
        return WEAK
    story = owner(model)
    if isinstance(story, HasShallow):
        shallow: Any = story.shallow()
        if shallow.num_components != num_components:
            annotations = replace(annotations, labels=None)
        model, guide, num_components = shallow.model, shallow.guide, shallow.num_components
    if not em_takes_groups(model):
        annotations = replace(annotations, groups=None)
    if standardizes(model, guide):
        columns = tuple(map(as_double, columns))
    first = _begin(model, guide, columns, annotations, seed, 0)
    if not has_em(first.model, first.guide, columns):
        return WEAK
    folds = _folds(model, guide, columns, num_components, seed, annotations)
    ones = torch.ones(len(columns[0]), dtype=torch.float64)
    parts = [about.weights for *_, about in folds if about.weights is not None]
    weights = torch.cat(parts).double().cpu() if parts else ones
    ends = _means(_scores(folds, (WEAK, ONE_MODEL)), weights)
    return WEAK if ends[0] >= ends[1] else PATH[_strongest(_scores(folds, PATH), weights)]


def with_networks(prior: Prior, num_rows: int, *programs: Program) -> Prior:
    """The prior with a standard normal one of the weights of networks, for at most 2,000 rows."""
    deep = any(part.role == "network" for part in penalized(*programs))
    return replace(prior, networks=1.0) if deep and num_rows <= MOST_ROWS else prior


def _folds(
    model: Program,
    guide: Program,
    columns: Columns,
    num_components: int,
    seed: int,
    annotations: Annotations,
) -> list[tuple[EM, Columns, Annotations]]:
    """A short fit to all folds but one, and the rows of that one, for each fold."""
    with reproducible(seed, 0, 10):
        order = torch.randperm(len(columns[0])).to(columns[0].device)
    folds = []
    for held in order.tensor_split(FOLDS):
        others = torch.ones_like(order, dtype=torch.bool).index_fill(0, held, False)
        data, about = tuple(column[others] for column in columns), annotations.take(others)
        run = best_start(partial(_begin, model, guide, data, about, seed), STARTS, num_components)
        test = tuple(column[held] for column in columns)
        folds.append((run, test, annotations.take(held)))
    return folds


def _scores(
    folds: Sequence[tuple[EM, Columns, Annotations]], priors: Sequence[Prior]
) -> torch.Tensor:
    """The log-density of each row by a fit to the other folds, shape (number of priors, N)."""
    scores = []
    for first, test, _ in folds:
        run = first.copy(epochs=ITERATIONS)
        of_priors = []
        for prior in priors:
            run = replace(run, prior=prior, history=[])
            for _ in run:  # until it converges, or for a few iterations
                pass
            of_priors.append(_log_density(run, test).double().cpu())
        scores.append(torch.stack(of_priors))
    return torch.cat(scores, -1).nan_to_num(-torch.inf)


def _means(scores: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """The means over rows, each as many times as its weight says."""
    return (weights * scores).sum(-1) / weights.sum()


def _strongest(scores: torch.Tensor, weights: torch.Tensor) -> int:
    """The last place whose mean is at most one standard error below the best.

    The standard error is that of the difference, paired by row.
    """
    lags = scores - scores[_means(scores, weights).argmax()]
    means, number = _means(lags, weights), weights.sum()
    squares = _means((lags - means.unsqueeze(-1)).square(), weights)
    errors = (squares / (number - 1)).sqrt()
    return int((means >= -errors).nonzero()[-1])  # NaN for infinite lags: not in


def _log_density(run: EM, data: Columns) -> torch.Tensor:
    """Log p(y|x) of each row, or log p(x) without targets, shape (N,)."""
    density = run.log_joint(data).logsumexp(0)
    if len(data) == 1:
        return density
    x, *others = data
    return density - run.log_joint((x, *(None for _ in others))).logsumexp(0)


def _begin(
    model: Program, guide: Program, data: Columns, about: Annotations, seed: int, number: int
) -> EM:
    model, guide = isolated(model, guide)
    seed = stream(seed, number)
    reset(model, guide, data, seed, weights=about.weights)
    return EM(model, guide, data, ITERATIONS, seed, WEAK, tolerance=0.01, annotations=about)
