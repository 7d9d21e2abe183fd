"""What training changes of several runs, as one: parameters, moments of Adam, and buffers."""

from collections.abc import Sequence
from typing import Any

import torch
from torch.optim import Adam

from ..context import unchanged
from ..steps.flat import FlatAdam, begin, is_plain, is_small
from ..svi import SVI, at

State = tuple[list[torch.Tensor], list[int]]


class StackError(Exception):
    """Runs cannot take their steps as one, and are continued one by one."""


class Joint:
    """Parameters and buffers of S runs, side by side until `close`.

    A step of Adam is one of all runs, whose parameters and moments are the parts of one vector.

    Args:
        runs: Runs of copies of one story, which have taken equally many steps.

    Attributes:
        parameters: One tensor (S, ...) for each parameter.
        buffers: One tensor (S, ...) for each buffer, see `give_buffers`.

    Raises:
        StackError: If the runs are not alike, or if an optimizer is not that of a small model.
    """

    def __init__(self, runs: Sequence[SVI]) -> None:
        self.runs = runs
        try:
            optimizers = [_with_optimizer(run) for run in runs]
            copies = aligned([each.param_groups[0]["params"] for each in optimizers])
            joint = _joint([value for same in copies for value in same], optimizers)
            if not is_small(joint):
                raise StackError
            self._own = aligned([run.buffers() for run in runs])
        except StackError:
            self._begin_anew()
            raise
        self._adam = FlatAdam(joint)
        sizes = [len(same) * same[0].numel() for same in copies]
        parts = zip(self._adam.vector.split(sizes), copies, strict=True)
        self.parameters = [part.view(-1, *same[0].shape) for part, same in parts]
        self.buffers = [torch.stack(same) for same in self._own]

    def step(self, gradients: torch.Tensor, rate: float) -> None:
        """Update the parameters, given the gradients of `parameters` as one vector."""
        self._adam.optimizer.param_groups[0]["lr"] = rate
        self._adam.step(gradients)

    def state(self, free: State | None = None) -> State:
        """Copies of all that an epoch changes, and the numbers of completed epochs.

        Args:
            free: A state that is no longer used, whose memory is taken.
        """
        epochs, tensors = [len(run.history) for run in self.runs], self._tensors()
        if free is None:
            return [value.clone() for value in tensors], epochs
        torch._foreach_copy_(free[0], tensors)
        return free[0], epochs

    def go_back(self, state: State) -> None:
        """Return to a former state."""
        tensors, epochs = state
        for value, former in zip(self._tensors(), tensors, strict=True):
            value.copy_(former)
        self.give_buffers()
        for run, number in zip(self.runs, epochs, strict=True):
            del run.history[number:]

    def give_buffers(self) -> None:
        """Copy the buffers to the runs, whose parameters are up to date at any time."""
        for same, values in zip(self._own, self.buffers, strict=True):
            for own, value in zip(same, values, strict=True):
                own.copy_(value)

    def close(self) -> None:
        """Give the runs parameters and moments of their own."""
        self._adam.close()
        if not self._adam.step_number:
            self._begin_anew()

    def _begin_anew(self) -> None:
        for run in self.runs:
            if not run.history:
                run.optimizer = None

    def _tensors(self) -> list[torch.Tensor]:
        adam = self._adam
        return [adam.vector, adam.step_number, *adam.moments.values(), *self.buffers]


def aligned(lists: Sequence[Sequence[torch.Tensor]]) -> list[tuple[torch.Tensor, ...]]:
    """The tensors of the same place in several lists.

    Args:
        lists: One list of each run.

    Raises:
        StackError: If the lists are not alike.
    """
    shapes = [[value.shape for value in each] for each in lists]
    if any(other != shapes[0] for other in shapes):
        raise StackError
    return list(zip(*lists, strict=True))


def _with_optimizer(run: SVI) -> Adam:
    """The optimizer of a run, which it is given if it has not taken a step.

    Raises:
        StackError: If it is not that of a small model, see `FlatAdam`.
    """
    if not run.history:
        with unchanged(run.buffers()), run.steps(0):
            _, _, rows = next(run.batches(0))
            batch = tuple(column[rows] for column in run.columns)
            run.evaluate(batch, at(run.temperature, 0.0), len(rows))
        for parameter in run.parameters().values():
            parameter.grad = None
    if not is_plain(run.optimizer):
        raise StackError
    if not run.history:
        begin(run.optimizer)
    return run.optimizer


def _joint(parameters: list[torch.Tensor], optimizers: Sequence[Any]) -> Adam:
    """One optimizer of these parameters, which has the states of others in common with them."""
    joint = Adam([{**optimizers[0].param_groups[0], "params": parameters}])
    for optimizer in optimizers:
        joint.state.update(optimizer.state)
    return joint
