"""Runs of SVI of copies of one story, which take their steps as one."""

import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any

import torch
from torch.fx import GraphModule

from pyro_moe.processes import Processes

from ..context import reproducible, stream, without_warnings
from ..steps import Recording, stacked
from ..steps.gradients import alike
from ..steps.products import largest
from ..steps.recording import record
from ..svi import SVI, Data, at
from .joint import Joint, StackError, aligned

WORTHWHILE = 60  # steps, after which tracing them has paid
LARGE = 2**22  # multiplications of a product; larger ones of one run keep a core busy


def side_by_side(runs: Sequence[SVI]) -> Generator[dict[str, float], None, None]:
    """Take epochs of several runs as one, as long as this saves time.

    Runs of small networks spend their time on calling operations. Here an operation is called
    once for all runs, whose parameters are the parts of one tensor. Each run has its own
    minibatches and random numbers, so that its results are those of the run alone, up to rounding.

    Iterate each run afterwards. It goes on from there if it has epochs left: if its steps cannot be
    recorded, see `Gradients`, or have products of large matrices; if a value is not finite, or a
    stacked gradient is not that of the run alone; or if most of the other runs have ended.

    Args:
        runs: Runs on the same rows, which differ in parameters and seeds. Those that have epochs
            left have completed equally many.

    Yields:
        The record of the run with the highest ELBO, after each epoch.
    """
    going = [run for run in runs if not run.ended]
    together = len({len(run.history) for run in going}) == 1
    if len(going) < 2 or not together or not _may_be_stacked(runs[0]):
        return
    with suppress(StackError), closing(Joint(going)) as joint:
        stack = Stack(going, joint)
        while 2 * len(stack.going) > len(runs):
            stack.epoch()
            yield max((run.history[-1] for run in runs), key=lambda record: record["elbo"])


def _may_be_stacked(run: SVI) -> bool:
    return (
        run.at_once
        and run.epochs * len(run.data[0]) / run.batch_size >= WORTHWHILE
        and run.annotations.groups is None
        and all(type(each) is torch.Tensor and each.device.type == "cpu" for each in run.columns)
        and Processes.running().size == 1
    )


@dataclass
class Step:
    """A recorded step of all runs.

    Attributes:
        draw: A function that draws the random numbers of one run.
        recording: The losses (S,) and the gradients of all runs.
        taken: How often it was taken.
    """

    draw: GraphModule
    recording: Recording
    taken: int = 0


class Stack:
    """The epochs of S runs.

    Args:
        runs: The runs.
        joint: Their parameters, moments and buffers.
    """

    def __init__(self, runs: Sequence[SVI], joint: Joint) -> None:
        self.runs, self.first, self.joint = runs, runs[0], joint
        self._columns = aligned([run.columns for run in runs])
        self._random: list[torch.Tensor] = []  # the states of the streams of random numbers
        self._steps: dict[Any, Step] = {}
        self._states = [joint.state()]

    @property
    def going(self) -> list[SVI]:
        """The runs that have epochs left."""
        return [run for run in self.runs if not run.ended]

    def epoch(self) -> None:
        """Take the next epoch of the runs that have epochs left.

        Raises:
            StackError: If the runs have to be continued one by one. They are at a former epoch.
            KeyboardInterrupt: The runs are at the end of the epoch before.
        """
        going = self.going
        try:
            records = self._records(len(going[0].history))
        except KeyboardInterrupt:
            self.joint.go_back(self._states[-1])
            raise
        except StackError:
            # Only a finite step from a state shows that the state is valid.
            self.joint.go_back(self._states[0])
            raise
        self.joint.give_buffers()
        for run, found in zip(self.runs, records, strict=True):
            if any(run is other for other in going):
                run.history.append(found)
                run.validate(found)
        free = self._states[0] if len(self._states) > 1 else None
        self._states = [self._states[-1], self.joint.state(free)]

    def _records(self, epoch: int) -> list[dict[str, float]]:
        """Take the steps of an epoch."""
        started, totals = time.perf_counter(), torch.zeros(len(self.runs), dtype=torch.float64)
        with reproducible(self.first.seed, epoch):
            for parts in self._batches(epoch):
                part, number, rows = parts[0]
                done = (epoch + part) / self.first.epochs
                batch = self._batch([rows for *_, rows in parts])
                losses = self._step(epoch, batch, done, number * self.first.epochs)
                totals += losses * len(rows)
        seconds = (time.perf_counter() - started) / len(self.runs)
        pairs = zip(self.runs, totals.tolist(), strict=True)
        return [run.record(epoch, total, done, seconds) for run, total in pairs]

    def _batches(self, epoch: int) -> Iterator[tuple[tuple[float, float, torch.Tensor], ...]]:
        """The minibatches of an epoch, those of all runs at a time; see `SVI.batches`."""
        found, self._random = [], []
        for run in self.runs:
            torch.default_generator.manual_seed(stream(run.seed, epoch))
            batches = run.batches(epoch)
            found.append(chain([next(batches)], batches))
            self._random.append(torch.get_rng_state())
        return zip(*found, strict=True)

    def _batch(self, rows: list[torch.Tensor]) -> Data:
        """The rows (S, N, ...) of each column."""
        numbers = torch.stack(rows)
        return tuple(
            same[0][numbers]
            if all(column is same[0] for column in same)
            else torch.stack([column[own] for column, own in zip(same, rows, strict=True)])
            for same in self._columns
        )

    def _step(self, epoch: int, batch: Data, done: float, steps: float) -> torch.Tensor:
        """Take a step. The losses (S,), divided by the rows."""
        temperature = at(self.first.temperature, done)
        inputs = [*batch, torch.tensor(temperature, dtype=torch.float64)]
        key, before = batch[0].shape, self._random
        if key not in self._steps:
            self._steps[key] = self._recorded(inputs, steps)
        step = self._steps[key]
        noise, self._random = self._noise(step.draw)
        tensors = [*self.joint.parameters, *self.joint.buffers, *inputs, *noise]
        losses, gradients = step.recording.as_vector(*tensors)
        if not (losses.isfinite().all() and torch.linalg.vector_norm(gradients).isfinite()):
            raise StackError
        step.taken += 1
        if not step.taken & (step.taken - 1):  # a power of two
            self._check(gradients, before, epoch, batch, temperature)
        self.joint.step(gradients, self.first.rate(done))
        return losses

    def _noise(self, draw: GraphModule) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """The random numbers of all runs, each from its own stream, and the streams after that."""
        drawn, after = [], []
        for state in self._random:
            torch.set_rng_state(state)
            drawn.append(draw())
            after.append(torch.get_rng_state())
        return [torch.stack(each) for each in zip(*drawn, strict=True)], after

    def _recorded(self, inputs: list[torch.Tensor], steps: float) -> Step:
        """Record the step of the first run, and make it one of all runs."""
        first, rows = self.first, inputs[0].shape[1]
        *batch, temperature = inputs
        with first.steps(0):
            own = [*(column[0] for column in batch), temperature]
            loss, learned = partial(first.loss_of, rows), _learned(first)
            one = record(loss, learned, first.buffers(), own, zeros=True)
        if one is None or largest(one.graph) > LARGE:
            raise StackError
        copies = [value.clone() for value in self.joint.buffers]  # operations may change them
        tensors = [*self.joint.parameters, *copies, *inputs]
        try:
            parts = stacked(one.graph, tensors, [False] * (len(tensors) - 1) + [True])
        except Exception as error:  # whatever vmap lacks
            raise StackError from error
        if parts is None:
            raise StackError
        draw, graph = parts
        noise, _ = self._noise(draw)
        tensors += noise
        with without_warnings(Warning):
            recording = Recording(graph, tensors)
        first.gradients.compile_if_useful(recording, tensors, rows, steps)
        return Step(draw, recording)

    def _check(
        self,
        gradients: torch.Tensor,
        random: list[torch.Tensor],
        epoch: int,
        batch: Data,
        temperature: float,
    ) -> None:
        """Compare the gradients with those of each run alone."""
        parts = gradients.split([value.numel() for value in self.joint.parameters])
        pairs = zip(parts, self.joint.parameters, strict=True)
        stacks = [part.view_as(value) for part, value in pairs]
        for number, run in enumerate(self.runs):
            own = tuple(column[number] for column in batch)
            with run.steps(epoch):
                torch.set_rng_state(random[number])
                run.evaluate(own, temperature, len(own[0]))
            found = [
                torch.zeros_like(value) if value.grad is None else value.grad
                for value in _learned(run)
            ]
            for value in _learned(run):
                value.grad = None
            if not alike([stack[number] for stack in stacks], found):
                raise StackError


def _learned(run: SVI) -> list[torch.Tensor]:
    """The parameters of a run that has an optimizer."""
    optimizer: Any = run.optimizer
    parameters: list[torch.Tensor] = optimizer.param_groups[0]["params"]
    return parameters
