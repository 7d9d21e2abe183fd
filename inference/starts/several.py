"""Several starts of EM: short runs of all, longer ones of the best, and the best goes on."""

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import islice

import numpy as np
import torch

from ..context import reproducible, stream
from ..em import EM
from ..rows import OnDisk
from ..rows.order import chosen
from .clustering import few_places, unit_variance

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
    whole = first.data
    runs = [first, *(begin(index) for index in range(1, number))]
    runs = [replace(run, data=tuple(part[rows] for part in whole)) for run in runs]
    for index, run in enumerate(runs):
        if index % 3:
            run.m_step(_assigned(run, num_components, random=index % 3 == 2))
    for share, iterations in ROUNDS:
        runs = sorted(runs, key=_objective, reverse=True)[: math.ceil(share * len(runs))]
        for run in runs:
            _iterate(run, iterations)
    best = max(runs, key=_objective)
    history = best.history if len(best.data[0]) == len(whole[0]) else []
    return replace(best, data=whole, history=history)


def _some(run: EM) -> torch.Tensor:
    number = len(run.data[0])
    if isinstance(run.data[0], OnDisk):
        return chosen(run.data, run.seed, ROWS)
    with reproducible(run.seed, 0, 7):
        order = torch.randperm(number)[:ROWS].sort().values
    return order.to(run.data[0].device)


def _iterate(run: EM, iterations: int) -> None:
    records: Iterator[dict[str, float]] = iter(run)
    for _ in islice(records, iterations):
        pass


def _objective(run: EM) -> float:
    value = run.history[-1]["objective"] if run.history else 0.0
    return value if math.isfinite(value) else -math.inf


def _assigned(run: EM, num_components: int, *, random: bool) -> torch.Tensor:
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
    """x, and y if it has real values in all rows, as columns of unit variance."""
    parts = [part.reshape(len(part), -1) for part in data[:2]]
    parts = [part for part in parts if part.is_floating_point() and not part.isnan().any()]
    return unit_variance(torch.cat([part.double() for part in parts], -1)).cpu().numpy()
