"""Rows in groups, of which each has one component."""

from collections.abc import Iterator

import torch


def places(groups: torch.Tensor) -> torch.Tensor:
    """The groups of rows, numbered from 0 in ascending order, shape (N,).

    No shape depends on the values, so that it can be recorded.

    Example:
        >>> places(torch.tensor([7, 4, 7, 9]))
        tensor([1, 0, 1, 2])
    """
    order = groups.argsort()
    begins = torch.ones_like(order)
    begins[1:] = groups[order].diff().ne(0).to(begins)
    return torch.zeros_like(order).scatter(0, order, begins.cumsum(0) - 1)


def sums_of_groups(values: torch.Tensor, groups: torch.Tensor) -> torch.Tensor:
    """The sum over the group of each row, of values (..., N) in the same shape.

    Example:
        >>> sums_of_groups(torch.tensor([1.0, 2.0, 5.0]), torch.tensor([4, 7, 4]))
        tensor([6., 2., 6.])
    """
    place = places(groups)
    return torch.zeros_like(values).index_add(-1, place, values)[..., place]


def rows_in_group(groups: torch.Tensor, weights: torch.Tensor | None = None) -> torch.Tensor:
    """The number of rows in the group of each row, or the sum of their weights, shape (N,).

    Example:
        >>> rows_in_group(torch.tensor([4, 7, 4]))
        tensor([2., 1., 2.], dtype=torch.float64)
    """
    each = torch.ones_like(groups) if weights is None else weights
    return sums_of_groups(each.double(), groups)


def shares_of_groups(groups: torch.Tensor, weights: torch.Tensor | None = None) -> torch.Tensor:
    """Each row's share of the weight of its group, zero in groups without weight, shape (N,).

    Example:
        >>> shares_of_groups(torch.tensor([4, 7, 4]), torch.tensor([1.0, 1.0, 3.0]))
        tensor([0.2500, 1.0000, 0.7500], dtype=torch.float64)
    """
    whole = rows_in_group(groups, weights)
    each = torch.ones_like(whole) if weights is None else weights.to(whole)
    return each / whole.clamp_min(torch.finfo(whole.dtype).tiny)


def whole_groups(groups: torch.Tensor, batch_size: int) -> Iterator[torch.Tensor]:
    """Rows of minibatches of whole groups in random order, of about equal size.

    Args:
        groups: The groups of N rows.
        batch_size: Rows of a minibatch, which has more if this completes a group.
    """
    place = places(groups.cpu())
    number = int(place.max()) + 1
    order = torch.randperm(number)[place].argsort(stable=True)
    ends = place[order].diff().nonzero().flatten() + 1
    steps = max(1, -(-len(place) // batch_size))
    wanted = torch.arange(1, steps) * len(place) // steps
    near = torch.searchsorted(ends, wanted).clamp(max=len(ends) - 1)
    cuts = ends[near].unique() if len(ends) else ends
    yield from order.to(groups.device).tensor_split(cuts.tolist())
