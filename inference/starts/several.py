"""Several starts of EM: short runs of all, longer ones of the best, and the best goes on."""

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch

from ..context import reproducible, stream
from ..em import EM
from ..rows import OnDisk
from ..rows.order import chosen
from .clustering import few_places, unit_variance
from .labels import matched, with_labels
from .together import iterate, m_steps

ROUNDS = ((1.0, 10), (0.34, 40))  # the share of the starts that run, and their iterations
ROWS = 4000


def best_start(begin: Callable[[int], EM], number: int, num_components: int | None) -> EM:
    r"""The best of several starts of EM, after a few iterations on all rows or on some.

    One third of the starts keep the initial parameters of the story, which for a Gaussian mixture
    are distant rows. One third begin at a k-means clustering of the standardized rows (x, y), and
    one third at a random assignment of the rows. All take ten iterations. The best third take up
    to forty more, and the one with the highest objective is returned (Biernacki, Celeux, Govaert
    2003). If there are more than 4,000 rows, a random choice of as many is used.

    Args:
        begin: The run of a start by its number, with its own parameters.
        number: Number of starts.
        num_components: K, or None for a model without ``c``.

    Returns:
        The run, on all rows, with its history if the start had all rows.
    """
    first = begin(0)
    if number == 1 or num_components in (None, 1):
        return first
    rows = _some(first)
    runs = [run.on(rows) for run in (first, *(begin(index) for index in range(1, number)))]
    others = [(run, index % 3 == 2) for index, run in enumerate(runs) if index % 3]
    m_steps(
        [run for run, _ in others],
        [_assigned(run, num_components, random=random) for run, random in others],
    )
    for share, iterations in ROUNDS:
        runs = sorted(runs, key=_objective, reverse=True)[: math.ceil(share * len(runs))]
        iterate(runs, iterations, best_only=share < 1)
    best = max(runs, key=_objective)
    history = best.history if len(best.data[0]) == len(first.data[0]) else []
    return replace(best, data=first.data, annotations=first.annotations, history=history)


def _some(run: EM) -> torch.Tensor:
    number = len(run.data[0])
    if isinstance(run.data[0], OnDisk):
        return chosen(run.data, run.seed, ROWS)
    with reproducible(run.seed, 0, 7):
        order = torch.randperm(number)[:ROWS].sort().values
    return order.to(run.data[0].device)


def _objective(run: EM) -> float:
    value = run.history[-1]["objective"] if run.history else 0.0
    return value if math.isfinite(value) else -math.inf


def _assigned(run: EM, num_components: int, *, random: bool) -> torch.Tensor:
    """Responsibilities (N, K) of a start that agree with the known components."""
    start = matched(_clustered(run, num_components, random=random), run.annotations)
    return with_labels(start, run.annotations)


def _clustered(run: EM, num_components: int, *, random: bool) -> torch.Tensor:
    """Responsibilities (N, K): one-hot at random, or of a k-means clustering."""
    x = run.data[0]
    seed = stream(run.seed, 0, 8)
    if random:
        labels = np.random.default_rng(seed).permutation(len(x)) % num_components
    else:
        points = _standardized(run.data)
        places = few_places(points, num_components)
        if places is not None:
            return torch.as_tensor(places, device=x.device)
        from sklearn.cluster import KMeans

        labels = KMeans(num_components, n_init=1, random_state=seed).fit_predict(points)
    one_hot = np.eye(num_components)[labels]
    return torch.as_tensor(one_hot, dtype=torch.float64, device=x.device)


def _standardized(data: tuple[torch.Tensor, ...]) -> np.ndarray:
    """x, and y if it has real values in all rows, as columns of unit variance.

    Missing entries of x are the means of their columns.
    """
    x, *targets = [part.reshape(len(part), -1) for part in data[:2]]
    means = x.nanmean(0)
    parts = [x.where(~x.isnan(), means)]
    parts += [y for y in targets if y.is_floating_point() and not y.isnan().any()]
    return unit_variance(torch.cat([part.double() for part in parts], -1)).cpu().numpy()
