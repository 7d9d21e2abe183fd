"""The result of `fit`: a model and a guide with their parameters, and the training history."""

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch

from pyro_moe.inference.context import running
from pyro_moe.inference.errors import DataError
from pyro_moe.inference.programs import Program, Programs, owner

from .rows import Data, as_tensors, column_names


@dataclass(frozen=True)
class Fit:
    """A fitted model and guide, with the settings and the history of training.

    Attributes:
        programs: The trained copies of model and guide, with their parameters.
        data: The fitted columns, tensors of N rows each.
        history: One record for each epoch: phase, epoch, elbo (nats per row), temperature,
            learning_rate, seconds.
        settings: The arguments of `fit`, including defaults.
        held_out_elbo: The marginal ELBO, in nats per row, of the rows held out to choose among
            restarts; None with one start.
        stopped: Why training ended early, or None.
        columns: Names of the columns of x, or None.
        run: The run of SVI or EM that `resume` continues; None for a restored fit.
        report: The function `criticism.report` as a method.
        resume: The function `pyro_moe.resume` as a method.
    """

    programs: Programs
    data: tuple[torch.Tensor, ...]
    history: list[dict[str, Any]]
    settings: dict[str, Any]
    held_out_elbo: float | None = None
    stopped: str | None = None
    columns: tuple[str, ...] | None = None
    run: Any = field(default=None, repr=False)

    # Assigned in pyro_moe/__init__.py: a definition here would be a circular import.
    report: ClassVar[Callable[..., Path]]
    resume: ClassVar[Callable[..., "Fit"]]

    @property
    def model(self) -> Program:
        """The fitted model, callable with the columns of data like those of `fit`."""
        return _in_store(self.programs.model, self.programs.store)

    @property
    def guide(self) -> Program:
        """The fitted guide, callable with the columns of data like those of `fit`."""
        return _in_store(self.programs.guide, self.programs.store)

    @property
    def story(self) -> Any:
        """This fit's copy of the object that has model and guide as methods, or None."""
        return owner(self.programs.model)

    @property
    def x_dim(self) -> int:
        """D, the number of columns of x."""
        return self.data[0].shape[1]

    @property
    def has_target(self) -> bool:
        """Whether a target y was fitted."""
        return len(self.data) > 1

    def parameters(self) -> dict[str, torch.Tensor]:
        """Copies of the learned parameters by name, in unconstrained form."""
        return {name: p.detach().clone() for name, p in self.programs.parameters().items()}

    def as_tensors(self, data: Data) -> tuple[torch.Tensor, ...]:
        """Convert data like the fitted data to validated tensors on the fit's device.

        Targets are dropped if only x was fitted. They may be NaN if the fit had
        ``missing_targets=True``.

        Raises:
            DataError: If the data is invalid, if targets are required and absent, or if x differs
                from the fitted x in the number or the names of columns.
        """
        columns = self._checked(data)[: len(self.data)]
        if len(columns) < len(self.data):
            raise DataError("expected data (x, y), as fitted; got x alone")
        return columns

    def features(self, data: Data) -> tuple[Any, ...]:
        """The arguments of `model` and `guide` for rows with unknown targets.

        Returns:
            x, validated as in `as_tensors`, and None for each other fitted column.

        Raises:
            DataError: If x is invalid, or differs from the fitted x in the number or the names of
                columns.
        """
        return (self._checked(data)[0], *(None for _ in self.data[1:]))

    def _checked(self, data: Data) -> tuple[torch.Tensor, ...]:
        like = self.data[0]
        missing = self.settings.get("missing_targets", False)
        columns = as_tensors(data, dtype=like.dtype, missing_targets=missing)
        if columns[0].shape[1] != self.x_dim:
            raise DataError(
                f"expected x with {self.x_dim} columns, as fitted; got {columns[0].shape[1]}"
            )
        names = column_names(data)
        for i, (fitted, given) in enumerate(zip(self.columns or (), names or (), strict=False)):
            if fitted != given:
                raise DataError(
                    f"expected column {i} of x to be {fitted!r}, as fitted; got {given!r}"
                )
        return tuple(column.to(like.device) for column in columns)


def _in_store(program: Program, store: dict[str, Any]) -> Program:
    @functools.wraps(program)
    def run(*args: Any, **kwargs: Any) -> Any:
        with running(store):
            return program(*args, **kwargs)

    return run
