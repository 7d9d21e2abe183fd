"""Rows as they count: means by weight, and rows that stand as many times as their weight says."""

from typing import Any

import torch

MOST_ROWS = 100_000


def counted(weights: Any, *, sampling: bool = False) -> torch.Tensor | None:
    """How many rows each row counts as, shape (N,), or None if each counts as one.

    Args:
        weights: Weights of rows, shape (N,), or None.
        sampling: Whether they are sampling weights, which have a mean of one.
    """
    if weights is None:
        return None
    found = torch.as_tensor(weights).detach().double()
    found = found / found[found > 0].mean() if sampling else found
    return None if bool((found == 1).all()) else found


def weighted_mean(values: torch.Tensor, weights: torch.Tensor | None = None) -> torch.Tensor:
    r"""The mean over rows, :math:`\sum_n w_n v_n / \sum_n w_n`.

    Args:
        values: v, shape (N, …).
        weights: w, shape (N,), or None for weights of one.

    Example:
        >>> weighted_mean(torch.tensor([1.0, 5.0]), torch.tensor([3.0, 1.0])).item()
        2.0
    """
    if weights is None:
        return values.mean(0)
    w = weights.to(values.device).double()
    w = w.reshape(-1, *(1 for _ in values.shape[1:]))
    return torch.where(w > 0, w * values.double(), 0.0).sum(0) / w.sum()


def repeats(weights: torch.Tensor, most: int) -> torch.Tensor:
    """The numbers of rows, each as many times as its weight says, in the order of the rows.

    If the weights are no whole numbers, each stands so often up to rounding, with the sum of
    weights in all; and if this is larger than ``most``, in proportion to the weights.

    Example:
        >>> repeats(torch.tensor([2.0, 0.0, 1.0]), 30)
        tensor([0, 0, 2])
    """
    ends = weights.double().cumsum(0)
    times = (min(1.0, most / float(ends[-1])) * ends).round().diff(prepend=ends.new_zeros(1))
    return torch.arange(len(times), device=times.device).repeat_interleave(times.long())
