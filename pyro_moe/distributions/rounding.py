"""The error of rounding of values on a grid."""

import math

import torch


def rounding_error(y: torch.Tensor) -> torch.Tensor:
    r"""The standard deviation h/√12 of the error of rounding for values on a grid of step h.

    .. math:: y_{nm} \in \{a_m + i h_m : i = 0, 1, \dots\}

    A column is taken to be on a grid if it has ties, and if all differences of its values are
    multiples of the smallest one.

    Args:
        y: Targets, shape (N, M).

    Returns:
        Shape (M,); zero for a column that is not on a grid, or has a single value.

    Example:
        >>> y = torch.tensor([[3.0, 0.1], [4.0, 0.7], [4.0, 0.25], [6.0, 0.9]])
        >>> [round(error, 4) for error in (rounding_error(y) * 12**0.5).tolist()]
        [1.0, 0.0]
    """
    steps = [_grid_step(column) for column in y.detach().double().unbind(-1)]
    return y.new_tensor(steps) / math.sqrt(12.0)


def _grid_step(column: torch.Tensor) -> float:
    values = column.unique()
    if not 2 <= len(values) < len(column):
        return 0.0
    multiples = (values[1:] - values[:-1]) / (values[1:] - values[:-1]).min()
    rounded = (multiples - multiples.round()).abs().max() < 1e-3
    return float((values[1:] - values[:-1]).min()) if rounded else 0.0
