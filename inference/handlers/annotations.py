"""What is known of rows besides their data: weights, groups, and components."""

from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import partial
from typing import Any

import torch
from pyro.poutine.messenger import Messenger

from ..programs import Program
from .assignment import is_assignment, is_in_plate


@dataclass(frozen=True)
class Annotations:
    r"""What is known of N rows besides their data.

    Attributes:
        weights: w, shape (N,): row n counts as w_n rows. None for weights of one.
        groups: Numbers of groups, shape (N,). The rows of a group have one c. None if each row
            has its own.
        labels: The probability r of each component, shape (N, K), NaN in rows whose component is
            not known. None if that of no row is known.
    """

    weights: torch.Tensor | None = None
    groups: torch.Tensor | None = None
    labels: torch.Tensor | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """The names of those that are given."""
        return tuple(each.name for each in fields(self) if getattr(self, each.name) is not None)

    @property
    def columns(self) -> tuple[torch.Tensor, ...]:
        """Those that are given, in the order of their names."""
        return tuple(getattr(self, name) for name in self.names)

    def each(self, change: Callable[[torch.Tensor], torch.Tensor]) -> "Annotations":
        """Those that are given, changed."""
        return Annotations(**{name: change(getattr(self, name)) for name in self.names})

    def take(self, rows: Any) -> "Annotations":
        """The annotations of some of the rows."""
        return self.each(lambda column: column[rows])

    def total(self, num_rows: int) -> float:
        """The sum of the weights, or the number of rows without weights."""
        return float(num_rows if self.weights is None else self.weights.double().sum())


UNANNOTATED = Annotations()


class Annotate(Messenger):
    """Scale sites in the plate ``"data"`` by the weights, and tell ``c`` of groups and labels.

    Args:
        annotations: Those of the rows of the plate.
    """

    def __init__(self, annotations: Annotations) -> None:
        super().__init__()
        self.annotations = annotations

    def _pyro_sample(self, msg: Any) -> None:
        weights = self.annotations.weights
        if weights is not None and is_in_plate(msg):
            msg["scale"] = msg["scale"] * weights
        if is_assignment(msg) and msg["name"] == "c":
            msg["infer"]["groups"] = self.annotations.groups
            msg["infer"]["labels"] = self.annotations.labels


def annotated(program: Program, names: tuple[str, ...]) -> Program:
    """A program that takes annotations of these names as its last columns."""
    return partial(_run, program, names) if names else program


def _run(program: Program, names: tuple[str, ...], *columns: torch.Tensor) -> Any:
    number = len(columns) - len(names)
    with Annotate(Annotations(**dict(zip(names, columns[number:], strict=True)))):
        return program(*columns[:number])
