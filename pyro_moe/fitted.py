"""What was fitted: a model and a guide with their parameters, and how they came about."""

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
    """A fitted model and guide, with the history of how they came about.

    Attributes:
        programs: The trained copies of model and guide, with their parameters.
        data: The columns that were fitted, tensors of N rows each.
        history: One record an epoch: phase, epoch, elbo (nats per row), temperature,
            learning_rate, seconds.
        settings: What `fit` was asked, defaults filled in.
        held_out_elbo: The marginal ELBO in nats per row of the rows that were held out to
            choose among restarts; None with one start.
        stopped: Why training ended early, or None.
        columns: Names of the columns of x, if what was fitted had names.
        training: The run of SVI or EM that `resume` goes on from; None for a restored fit.
        report: See `criticism.report`, which is this method.
        resume: See `pyro_moe.resume`, which is this method.
    """

    programs: Programs
    data: tuple[torch.Tensor, ...]
    history: list[dict[str, Any]]
    settings: dict[str, Any]
    held_out_elbo: float | None = None
    stopped: str | None = None
    columns: tuple[str, ...] | None = None
    training: Any = field(default=None, repr=False)

    # Methods that need what reads a fit: the front door, which sees both, hangs them in.
    report: ClassVar[Callable[..., Path]]
    resume: ClassVar[Callable[..., "Fit"]]

    @property
    def model(self) -> Program:
        """The fitted model, callable on data like the one that was given to `fit`."""
        return _in_store(self.programs.model, self.programs.store)

    @property
    def guide(self) -> Program:
        """The fitted guide, callable on data like the one that was given to `fit`."""
        return _in_store(self.programs.guide, self.programs.store)

    @property
    def story(self) -> Any:
        """This fit's own copy of the object whose methods model and guide are, or None."""
        return owner(self.programs.model)

    @property
    def x_dim(self) -> int:
        """Columns of the x that was fitted."""
        return self.data[0].shape[1]

    @property
    def has_target(self) -> bool:
        """Whether a target y was fitted beside x."""
        return len(self.data) > 1

    def parameters(self) -> dict[str, torch.Tensor]:
        """Copies of the learned parameters by name, unconstrained."""
        return {name: p.detach().clone() for name, p in self.programs.parameters().items()}

    def as_tensors(self, data: Data) -> tuple[torch.Tensor, ...]:
        """Data of the kind that was fitted, as checked tensors on the fit's device.

        Targets beside x are left out if the fit was of x alone, and may be missing, NaN, if
        they might be in what was fitted.

        Raises:
            DataError: If the data is bad or lacks targets that were fitted, or x is not as wide
                as the x that was fitted, or has other columns by their names.
        """
        columns = self._checked(data)[: len(self.data)]
        if len(columns) < len(self.data):
            raise DataError("expected data (x, y), as fitted; got x alone")
        return columns

    def features(self, data: Data) -> tuple[Any, ...]:
        """The arguments of `model` and `guide` for rows of which x alone is known.

        Returns:
            x, checked like `as_tensors` does, and None for each column beside it that was fitted.

        Raises:
            DataError: If x is bad, or not as wide as the x that was fitted, or has other columns
                by their names.
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
