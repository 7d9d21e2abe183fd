"""Runs of EM of copies of one story, which take their iterations together."""

import time
from collections.abc import Sequence
from itertools import islice
from typing import Any

import torch

from ..context import late_imports
from ..em import EM
from ..prior import PERMUTATIONS, prior_rows, with_prior_rows, without_effect
from ..programs import beside, owner


class Together:
    """Runs of EM on the same rows, whose stories are evaluated and updated as one.

    The results are those of single runs up to rounding. Histories and parameters of the runs are
    updated by `iterate` and `m_step`.

    Args:
        runs: The runs, of copies of one model.
        stories: Their stories as one, see `protocols.HasSideBySide`.
    """

    def __init__(self, runs: Sequence[EM], stories: Any) -> None:
        self.runs, self.stories = runs, stories
        first = runs[0]
        self._copies = [first.data]
        if first.prior.null_rows and len(first.data) > 1:
            numbers = range(PERMUTATIONS)
            self._copies += [without_effect(first.data, first.seed, n) for n in numbers]

    def iterate(self, iterations: int, *, best_only: bool = False) -> None:
        """Take up to so many iterations of each run, until it converges.

        Args:
            iterations: Maximum number of iterations.
            best_only: Whether a run ends if it is not expected to become the best.
        """
        first = self.runs[0]
        margin = 10 * first.tolerance / len(first.data[0])
        going = {number for number, run in enumerate(self.runs) if not run.converged}
        for _ in range(iterations):
            if not going:
                return
            started = time.perf_counter()
            records = self._iteration()
            seconds = (time.perf_counter() - started) / len(self.runs)
            for number in going:
                history = self.runs[number].history
                record = {"epoch": len(history) + 1, **records[number], "seconds": seconds}
                history.append(record)
            highest = max(run.history[-1]["objective"] for run in self.runs) - margin
            for number in list(going):
                run = self.runs[number]
                if run.converged or (best_only and run.limit < highest):
                    self._put(number)
                    going.remove(number)
        for number in going:
            self._put(number)

    def m_step(self, responsibilities: torch.Tensor) -> None:
        """Update the parameters of all runs given responsibilities (N, S, K)."""
        self._m_step(responsibilities)
        for number in range(len(self.runs)):
            self._put(number)

    def _iteration(self) -> list[dict[str, float]]:
        first, size = self.runs[0], len(self.runs[0].data[0])
        with torch.no_grad(), late_imports():
            log_joint, *others = (self.stories.log_joint(*data) for data in self._copies)
            log_sums = log_joint.logsumexp(-1, keepdim=True)
            elbo = log_sums.sum((0, 2)) / size
            means = [each.sum((0, 2)) / size for each in (log_joint, *others)]
            log_prior = prior_rows(first.prior, means) - 0.5 * self.stories.penalties()
            objective = elbo + log_prior / size
            self._m_step((log_joint - log_sums).exp())
        pairs = zip(elbo.tolist(), objective.tolist(), strict=True)
        return [{"elbo": one, "objective": other} for one, other in pairs]

    def _m_step(self, responsibilities: torch.Tensor) -> None:
        first = self.runs[0]
        x, flat = first.data[0], responsibilities.flatten(1)
        weights, points, data = with_prior_rows(first.prior, flat, x, first.data, seed=first.seed)
        each = weights.unflatten(1, responsibilities.shape[1:])
        self.stories.m_step(each, points, *data)

    def _put(self, number: int) -> None:
        self.stories.put(number, owner(self.runs[number].model))


def together(runs: Sequence[EM]) -> Together | None:
    """The runs as one, or None if their story cannot do so or if they differ in more."""
    first, *others = runs
    names = ("log_joint", "m_step", "side_by_side")
    if not others or first.annotations.names:
        return None
    if any(beside(first.model, name) is None for name in names):
        return None
    if not first.is_direct(first.data):
        return None
    first.check_steps()
    for run in others:
        run.direct = True
    stories = beside(first.model, "side_by_side")([owner(run.model) for run in others])
    return None if stories is None else Together(runs, stories)


def iterate(runs: Sequence[EM], iterations: int, *, best_only: bool = False) -> None:
    """Take up to so many iterations of each run, together if possible, see `Together.iterate`."""
    several = together(runs)
    if several is not None:
        several.iterate(iterations, best_only=best_only)
        return
    for run in runs:
        for _ in islice(iter(run), iterations):
            pass


def m_steps(runs: Sequence[EM], responsibilities: Sequence[torch.Tensor]) -> None:
    """Update the parameters of runs given responsibilities (N, K) of each."""
    several = together(runs)
    if several is not None:
        several.m_step(torch.stack(list(responsibilities), 1))
        return
    for run, each in zip(runs, responsibilities, strict=True):
        run.m_step(each)
