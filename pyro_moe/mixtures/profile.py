"""Intervals of one parameter by the profile of the likelihood."""

import torch
from scipy.optimize import brentq
from scipy.stats import chi2

from pyro_moe.inference.em import EM

from .information import Parameters, informed

STEPS = 30
CLOSE = 1e-9


def profile_interval(
    run: EM, parameters: Parameters, place: int, error: float, alpha: float
) -> tuple[float, float]:
    """The ends of the interval of one parameter, infinite where the likelihood does not fall.

    Args:
        run: A run of EM at the maximum, whose parameters are changed in place.
        parameters: θ as a function of the parameters of the run.
        place: The number of the parameter.
        error: Its standard error.
        alpha: One minus the confidence.
    """
    learned = list(run.parameters().values())
    top = [value.detach().clone() for value in learned]
    with torch.no_grad():
        estimate = float(parameters()[place])
        limit = float(run.log_likelihoods().sum()) - 0.5 * chi2.isf(alpha, 1)

    def excess(value: float) -> float:
        return profiled(run, parameters, place, value) - limit

    ends = []
    for side in (-1.0, 1.0):
        restore(learned, top)
        near, far = estimate, estimate + side * error * chi2.isf(alpha, 1) ** 0.5
        for _ in range(12):
            if excess(far) < 0:
                ends.append(brentq(excess, near, far, xtol=1e-4 * error))
                break
            near, far = far, far + side * error * 2.0
        else:
            ends.append(side * float("inf"))
    restore(learned, top)
    return ends[0], ends[1]


def profiled(run: EM, parameters: Parameters, place: int, value: float) -> float:
    """The largest log-likelihood with one parameter at a value, by Newton's method.

    From the present parameters. Steps are halved until the likelihood increases.
    """
    learned = list(run.parameters().values())
    best = -float("inf")
    for _ in range(STEPS):
        found = informed(run, parameters)
        others = torch.arange(len(found.gradient)) != place
        with torch.no_grad():
            move = value - float(parameters()[place])
        step = torch.zeros_like(found.gradient)
        step[place] = move
        # Of the others: the maximum of the quadratic model, given the move of the one
        block = found.observed[others][:, others]
        pull = found.gradient[others] - found.observed[others, place] * move
        step[others] = torch.linalg.lstsq(block, pull.unsqueeze(-1)).solution.squeeze(-1)
        before = [p.detach().clone() for p in learned]
        there = abs(move) < 1e-7 * (1.0 + abs(value))
        for halvings in range(10):
            shift(learned, before, found.lift @ (step * 0.5**halvings))
            with torch.no_grad():
                reached = float(run.log_likelihoods().sum())
            if not there or reached >= best - CLOSE:
                break
        if there and abs(reached - best) < 1e-6:
            return reached
        best = reached
    return best


def shift(learned: list[torch.Tensor], before: list[torch.Tensor], step: torch.Tensor) -> None:
    """Set parameters to earlier values plus a step, a vector of all of them."""
    pieces = step.split([value.numel() for value in learned])
    with torch.no_grad():
        for value, old, piece in zip(learned, before, pieces, strict=True):
            value.copy_(old + piece.reshape(old.shape))


def restore(learned: list[torch.Tensor], values: list[torch.Tensor]) -> None:
    """Set parameters to earlier values."""
    with torch.no_grad():
        for value, old in zip(learned, values, strict=True):
            value.copy_(old)
