"""Synthetic targets that are affine in x within each class."""

from dataclasses import replace

import numpy as np
import torch

from pyro_moe.inference.errors import DataError
from pyro_moe.rows import Rows


def piecewise_affine(
    train: Rows, test: Rows, *, y_dim: int = 1, seed: int = 0
) -> tuple[Rows, Rows]:
    r"""Add targets to labeled rows: an affine map of x for each class, without noise.

    .. math:: y = W_j x + b_j, \quad W_{jmd}, b_{jm} \sim N(0, 1)

    with j the class of the row. The true component of each row is then known.

    Args:
        train: Rows with labels.
        test: Rows with labels of the same classes, for which the same maps are used.
        y_dim: M, columns of y.
        seed: Seed of the maps.

    Returns:
        The training and test rows with y of shape (N, M), float32.

    Raises:
        DataError: If labels are missing, if test has a class that train does not have, or if the
            two differ in the number of columns.
        ValueError: If y_dim is below 1.

    Example:
        >>> rows = Rows(torch.eye(3), labels=torch.tensor([0, 1, 1]))
        >>> train, test = piecewise_affine(rows, rows, y_dim=2)
        >>> train.y.shape, torch.equal(train.y, test.y)
        (torch.Size([3, 2]), True)
    """
    if y_dim < 1:
        raise ValueError(f"expected y_dim of at least 1; got {y_dim}")
    labels, test_labels = _labels(train, "train"), _labels(test, "test")
    if test.x.shape[1] != train.x.shape[1]:
        raise DataError(
            f"expected as many columns of x in test as in train, {train.x.shape[1]}; "
            f"got {test.x.shape[1]}"
        )
    classes = labels.unique().tolist()
    unseen = sorted(set(test_labels.tolist()) - set(classes))
    if unseen:
        raise DataError(f"expected test rows of classes that train has; got class {unseen[0]}")
    generator = np.random.default_rng(seed)
    weights = generator.standard_normal((len(classes), y_dim, train.x.shape[1]))
    biases = generator.standard_normal((len(classes), y_dim))
    maps = dict(zip(classes, zip(weights, biases, strict=True), strict=True))
    return _mapped(train, maps, y_dim), _mapped(test, maps, y_dim)


def _labels(rows: Rows, name: str) -> torch.Tensor:
    if rows.labels is None:
        raise DataError(f"expected labels in {name}; got none")
    return rows.labels


def _mapped(rows: Rows, maps: dict[int, tuple[np.ndarray, np.ndarray]], y_dim: int) -> Rows:
    y = torch.empty(len(rows), y_dim, dtype=torch.float32, device=rows.x.device)
    for label, (weight, bias) in maps.items():
        members = rows.labels == label
        values = rows.x[members].double().cpu().numpy() @ weight.T + bias
        y[members] = torch.from_numpy(values).to(y)
    return replace(rows, y=y, targets=None)
