"""Intervals of one parameter by the profile of the objective: the likelihood and its prior."""

import torch
from scipy.stats import chi2

from pyro_moe.inference.em import EM

from .information import Parameters, informed

EVALUATIONS, STEPS = 40, 30
CLOSE = 1e-9


def profile_interval(
    run: EM, parameters: Parameters, place: int, error: float, alpha: float
) -> tuple[float, float]:
    """The ends of the interval of one parameter, infinite where the objective does not fall.

    Args:
        run: A run of EM at the maximum, whose parameters are changed in place.
        parameters: θ as a function of the parameters of the run.
        place: The number of the parameter.
        error: Its standard error.
        alpha: One minus the confidence.
    """
    learned = list(run.parameters().values())
    top, z = copies(learned), chi2.isf(alpha, 1) ** 0.5
    with torch.no_grad():
        estimate, highest = float(parameters()[place]), float(run.log_posterior())

    def end(side: float) -> float:
        # The root of twice the decrease is nearly linear in the parameter
        near, low, state = estimate, 0.0, top
        far, high = estimate + side * z * error, float("inf")
        value = far
        for _ in range(EVALUATIONS):
            restore(learned, state)
            fall = highest - profiled(run, parameters, place, value)
            root = (2.0 * max(fall, 0.0)) ** 0.5
            if abs(root - z) < 1e-5 * z:
                return float(value)
            if root < z:
                near, low, state = value, root, copies(learned)
            else:
                far, high = value, root
            if high == float("inf"):
                value = far = near + side * z * error
            elif high > 2.0 * z or not high < float("inf"):
                value = 0.5 * (near + far)
            else:
                value = near + (far - near) * (z - low) / (high - low)
        return float(value) if high < float("inf") else side * float("inf")

    ends = end(-1.0), end(1.0)
    restore(learned, top)
    return ends


def profiled(run: EM, parameters: Parameters, place: int, value: float) -> float:
    """The largest objective with one parameter at a value, by Newton's method.

    From the present parameters. Steps are halved until it increases.
    """
    learned = list(run.parameters().values())
    best = -float("inf")
    for _ in range(STEPS):
        try:
            found = informed(run, parameters)
        except torch.linalg.LinAlgError:  # steps led to where nothing is finite: too far away
            return -float("inf")
        others = torch.arange(len(found.gradient)) != place
        with torch.no_grad():
            move = value - float(parameters()[place])
        step = torch.zeros_like(found.gradient)
        step[place] = move
        # Of the others: the maximum of the quadratic model, given the move of the one
        block = found.observed[others][:, others]
        pull = found.gradient[others] - found.observed[others, place] * move
        step[others] = torch.linalg.lstsq(block, pull.unsqueeze(-1)).solution.squeeze(-1)
        before = copies(learned)
        there = abs(move) < 1e-7 * (1.0 + abs(value))
        for halvings in range(10):
            shift(learned, before, found.lift @ (step * 0.5**halvings))
            with torch.no_grad():
                reached = float(run.log_posterior())
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


def copies(learned: list[torch.Tensor]) -> list[torch.Tensor]:
    """Copies of parameters."""
    return [value.detach().clone() for value in learned]


def restore(learned: list[torch.Tensor], values: list[torch.Tensor]) -> None:
    """Set parameters to earlier values."""
    with torch.no_grad():
        for value, old in zip(learned, values, strict=True):
            value.copy_(old)
