"""An exact test of uniform ranks, and the simultaneous confidence band that belongs to it."""

import functools
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats


def p_value(ranks: ArrayLike, num_draws: int) -> float:
    r"""The p-value of an exact test that ranks are uniform.

    .. math:: \gamma = \min_{1 \le j \le L} 2 \min\{ P(B_j \le N_j),\, P(B_j \ge N_j) \}, \quad
              N_j = \#\{s : r_s < j\}, \quad B_j \sim \mathrm{Bin}(S, j / (L + 1))

    The p-value is P(γ' ≤ γ) for S independent ranks that are uniform on 0, …, L. It is computed
    exactly by the recursion of Säilynoja et al. over j.

    Args:
        ranks: r, shape (S,), integers from 0 to L.
        num_draws: L, the number of draws among which each value was ranked.

    Raises:
        ValueError: If a rank is out of its range.

    References:
        Säilynoja, Bürkner, Vehtari (2022), "Graphical test for discrete uniformity and its
        applications in goodness-of-fit evaluation and multiple sample comparison", algorithm 1.

    Example:
        >>> round(p_value([3, 3, 3, 3], num_draws=3), 6)  # or all 0: 2 / 4**4
        0.007812
    """
    counts = counts_below(ranks, num_draws)
    tails = _tails(len(np.asarray(ranks)), num_draws)
    gamma = tails[np.arange(num_draws), counts].min()
    return max(0.0, 1.0 - _probability_within(tails > _beyond(gamma)))


def band(num_ranks: int, num_draws: int, level: float = 0.95) -> tuple[np.ndarray, np.ndarray]:
    """A simultaneous band for the counts of uniform ranks.

    `p_value` is at most ``1 - level`` if and only if a count is outside the band.

    Args:
        num_ranks: S.
        num_draws: L.
        level: The least probability that all counts are inside.

    Returns:
        Lower and upper bounds of each of `counts_below`, shape (L,) each.

    Example:
        >>> band(num_ranks=4, num_draws=3, level=0.9)
        (array([0, 0, 1]), array([3, 4, 4]))
    """
    tails = _tails(num_ranks, num_draws)
    values = np.unique([0.0, *tails.flat])
    low, high = 0, len(values)  # as γ grows the region shrinks
    while high - low > 1:
        middle = (low + high) // 2
        enough = _probability_within(tails > _beyond(values[middle])) >= level
        low, high = (middle, high) if enough else (low, middle)
    within = tails > _beyond(values[low])
    return within.argmax(1), num_ranks - within[:, ::-1].argmax(1)


def counts_below(ranks: ArrayLike, num_draws: int) -> np.ndarray:
    """The number of ranks below j, for j from 1 to L, shape (L,).

    Raises:
        ValueError: If a rank is out of its range.
    """
    ranks = np.asarray(ranks)
    if not (len(ranks) and ranks.min() >= 0 and ranks.max() <= num_draws):
        raise ValueError(f"expected ranks from 0 to {num_draws}; got {ranks}")
    return np.bincount(ranks, minlength=num_draws + 1).cumsum()[:-1]


@functools.lru_cache(maxsize=8)
def _tails(num_ranks: int, num_draws: int) -> Any:
    """2 min{P(B_j ≤ n), P(B_j ≥ n)}, shape (L, S + 1)."""
    points = np.arange(1, num_draws + 1)[:, None] / (num_draws + 1)
    n = np.arange(num_ranks + 1)
    binomial = stats.binom(num_ranks, points)
    return 2 * np.minimum(binomial.cdf(n), binomial.sf(n - 1))


def _beyond(gamma: float) -> float:
    """γ with a tolerance for rounding, so that equal tails compare as equal."""
    return gamma * (1 + 1e-9)


def _probability_within(within: np.ndarray) -> float:
    """The probability that each count of uniform ranks is in its set, shape (L, S + 1).

    The increments of the counts are Poisson variables, conditional on their sum S.
    """
    num_draws, size = within.shape
    growth = stats.poisson.pmf(np.arange(size), (size - 1) / (num_draws + 1))
    weights = np.zeros(size)
    weights[0] = 1.0
    for allowed in within:
        weights = np.convolve(weights, growth)[:size] * allowed
    return float(weights @ growth[::-1] / stats.poisson.pmf(size - 1, size - 1))
