"""Stochastic variational inference of any Pyro model and guide, epoch by epoch."""

import math
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain
from typing import Any

import pyro
import torch
from pyro.infer import ELBO

from pyro_moe.processes import Processes

from .context import reproducible, running, stream, training_mode, without_warnings
from .handlers import (
    UNANNOTATED,
    Annotations,
    MinibatchScale,
    annotated,
    where_incomplete,
)
from .handlers.evaluated_once import evaluated_once
from .objectives import Temperature, Treatment
from .programs import Program, copied, isolated, learned, modules, restore, state
from .protocols import Differentiable
from .rows import shuffled
from .rows.groups import whole_groups
from .steps import Gradients, Updates
from .traces import enumerated_traces, row_bounds

Data = tuple[torch.Tensor, ...]
Schedule = float | Callable[[float], float]
Checkpoint = tuple[dict[str, torch.Tensor], dict[str, Any] | None]
NewOptimizer = Callable[[list[torch.Tensor]], torch.optim.Optimizer]


def adam(parameters: list[torch.Tensor], weight_decay: float = 0.0) -> torch.optim.Optimizer:
    """Adam, or AdamW with a decay of the parameters that is not part of the gradients.

    Args:
        parameters: The parameters.
        weight_decay: The share of a parameter that a step takes off, times the learning rate.
    """
    if weight_decay:
        return torch.optim.AdamW(parameters, lr=1.0, weight_decay=weight_decay, fused=True)
    return torch.optim.Adam(parameters, lr=1.0, fused=True)


class NonFiniteError(Exception):
    """A loss or a gradient is not finite. The message says where.

    Attributes:
        first_step: Whether this happened in the first step of an epoch.
    """

    def __init__(self, message: str, *, first_step: bool) -> None:
        super().__init__(message)
        self.first_step = first_step


@dataclass
class SVI:
    """A run of an optimizer on an ELBO, which can be stopped and continued with equal results.

    The random numbers of an epoch depend only on the seed and the number of the epoch. Learning
    rate and temperature depend only on the share of the run that is completed.

    In a process group of `torch.distributed` each process takes its share of the rows of every
    minibatch, and the gradients are summed. All processes are given the same rows and seed.

    Attributes:
        model: A Pyro program. Its parameters are updated in place.
        guide: Its guide. Its parameters are updated in place.
        data: Tensors of N rows each. Both programs are called with minibatches of them.
        elbo: The objective, see `objectives.objective`.
        treatment: The function that prepares model and guide for the objective, see there.
        epochs: Passes over the data in the whole run.
        batch_size: Rows in a minibatch.
        learning_rate: Adam's peak step size, see `one_cycle`; or a function of the completed
            share of the run.
        temperature: τ of a relaxed ``c``, a number or a function of the completed share.
        seed: Seed of all random numbers.
        as_written: Whether a ``c`` that the story relaxes itself keeps its temperatures.
        held_out: Rows that are not trained on, or None. The bound on them is computed a hundred
            times in a run, at the end of an epoch. At the end the best state is restored.
        annotations: What is known of the rows besides their data.
        held_annotations: Likewise of the rows that are held out.
        patience: The run ends after so many bounds without a better one; None for no such end.
        history: One record for each epoch: epoch, elbo (nats per row), temperature,
            learning_rate, seconds, and held_out_elbo where it was computed.
        store: The state of Pyro's parameter store that belongs to this run.
        optimizer: The optimizer with its moments, or None before the first step.
        best: The state with the highest bound on the held-out rows so far, or None.
        compile: Whether recorded steps are compiled; ``"auto"`` if it saves time, see `Gradients`.
        bfloat16: Whether large products of matrices are of numbers in bfloat16, see `Gradients`.
        new_optimizer: A function of the parameters that makes the optimizer, see `adam`.
        gradients: How the gradients of a minibatch are computed.
    """

    model: Program
    guide: Program
    data: Data
    elbo: ELBO
    treatment: Treatment
    epochs: int
    batch_size: int
    learning_rate: Schedule
    temperature: Schedule
    seed: int
    as_written: bool = False
    held_out: Data | None = None
    annotations: Annotations = UNANNOTATED
    held_annotations: Annotations = UNANNOTATED
    patience: int | None = None
    history: list[dict[str, float]] = field(default_factory=list)
    store: dict[str, Any] = field(default_factory=lambda: {"params": {}, "constraints": {}})
    optimizer: torch.optim.Optimizer | None = None
    best: dict[str, torch.Tensor] | None = None
    compile: bool | str = False
    bfloat16: bool = False
    new_optimizer: NewOptimizer = adam
    gradients: Gradients = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Begin without recorded steps."""
        self.gradients = Gradients(self.compile, self.bfloat16)

    def __iter__(self) -> Iterator[dict[str, float]]:
        """Run the remaining epochs, yielding the record of each.

        An interrupted epoch is undone. Continuing the run then gives the same results as a run
        without interruption.

        Raises:
            NonFiniteError: If a loss or gradient is not finite. The parameters are then reset to
                the start or to the last end of an epoch from which a step was finite.
        """
        processes = Processes.running()
        processes.expect_alike("rows", self.columns)
        processes.expect_alike("parameters", [p.flatten() for p in self.parameters().values()])
        proven = latest = self._checkpoint()
        while not self.ended:
            try:
                record = self._epoch(len(self.history))
            except NonFiniteError as error:
                # Only a finite step from a state shows that the state is valid.
                self._go_back(proven if error.first_step else latest)
                raise
            except KeyboardInterrupt:
                self._go_back(latest)
                self._forget(set(self.parameters()) - set(latest[0]))
                raise
            self.history.append(record)
            self.validate(record)
            free = None if proven is latest else proven
            proven, latest = latest, self._checkpoint(free)
            yield record
        if self.best is not None:
            restore(self.best, self.store, self.model, self.guide)

    @property
    def held_out_elbo(self) -> float | None:
        """The highest bound on the held-out rows so far, nats per row, or None."""
        return max(self._bounds(), default=None)

    @property
    def ended(self) -> bool:
        """Whether there is no epoch left."""
        return len(self.history) >= self.epochs or self.stalled

    @property
    def stalled(self) -> bool:
        """Whether the last bounds on held-out rows, as many as ``patience``, are no better."""
        if self.patience is None or "held_out_elbo" not in (self.history or [{}])[-1]:
            return False  # a run ends with the bound that shows it
        bounds = self._bounds()
        return len(bounds) - 1 - bounds.index(max(bounds)) >= self.patience

    def _bounds(self) -> list[float]:
        return [record["held_out_elbo"] for record in self.history if "held_out_elbo" in record]

    def validate(self, record: dict[str, float]) -> None:
        """Compute the bound on held-out rows if it is time, and keep the best state."""
        number = len(self.history)
        if self.held_out is None or (number % max(1, self.epochs // 100) and number < self.epochs):
            return
        before = self.held_out_elbo
        bound = marginal_elbo(
            self.model, self.guide, self.store, self.held_out, self.seed, self.held_annotations
        )
        bound = Processes.running().agree(bound)
        record["held_out_elbo"] = bound if math.isfinite(bound) else -math.inf
        if before is None or record["held_out_elbo"] > before:
            self.best = state(self.store, self.model, self.guide)

    def _checkpoint(self, former: Checkpoint | None = None) -> Checkpoint:
        """Copies of all that training changes, in the memory of a former checkpoint if possible."""
        tensors, moments = former or (None, None)
        kept = state(self.store, self.model, self.guide, into=tensors)
        return kept, None if self.optimizer is None else _moments(self.optimizer, moments)

    def _go_back(self, checkpoint: Checkpoint) -> None:
        tensors, moments = checkpoint
        restore(tensors, self.store, self.model, self.guide)
        if moments is None:
            self.optimizer = None
        elif self.optimizer is not None:
            self.optimizer.load_state_dict(moments)
        for value in self.parameters().values():
            value.grad = None

    def _forget(self, names: set[str]) -> None:
        """Remove `pyro.param`s from the store. The next epoch creates them again."""
        for part in self.store.values():
            for name in names & set(part):
                del part[name]

    def copy(self, *, epochs: int) -> "SVI":
        """An independent copy of this run with another number of epochs, to be continued."""
        model, guide, store, optimizer = isolated(
            self.model, self.guide, self.store, self.optimizer
        )
        return replace(
            self,
            model=model,
            guide=guide,
            store=store,
            optimizer=optimizer,
            history=list(self.history),
            epochs=epochs,
            bfloat16=self.gradients.bfloat16,
        )

    def parameters(self) -> dict[str, torch.Tensor]:
        """The learned tensors by name."""
        return learned(self.store, self.model, self.guide)

    def _epoch(self, epoch: int) -> dict[str, float]:
        started, total, num_rows = time.perf_counter(), 0.0, len(self.data[0])
        processes, at_once = Processes.running(), self.at_once
        with (
            self.steps(epoch),
            closing(Updates(steps_in_epoch(num_rows, self.batch_size))) as updates,
        ):
            batches = self.batches(epoch)
            first = next(batches)
            if processes.size > 1:
                torch.manual_seed(stream(self.seed, epoch, processes.rank))
            buffers = self.buffers()
            for index, (part, alike, rows) in enumerate(chain([first], batches)):
                done = (epoch + part) / self.epochs
                batch = tuple(column[processes.share(rows)] for column in self.columns)
                steps = at_once * self.epochs * alike
                try:
                    total += self.step(batch, len(rows), buffers, updates, done, steps)
                except FloatingPointError as error:
                    message = f"{error} at epoch {epoch + 1}, step {index + 1}"
                    raise NonFiniteError(message, first_step=index == 0) from error
            processes.average([b for b in buffers if b.is_floating_point()])
        return self.record(epoch, total, done, time.perf_counter() - started)

    @contextmanager
    def steps(self, epoch: int) -> Iterator[None]:
        """All that is in force while the steps of an epoch are taken."""
        with (
            reproducible(self.seed, epoch),
            running(self.store),
            where_incomplete(*self.data),
            training_mode(self.model, self.guide),
            evaluated_once(self.model, self.guide) if self.at_once else nullcontext(),
            without_warnings(UserWarning, "Encountered NaN"),  # NonFiniteError tells
        ):
            yield

    def record(self, epoch: int, total: float, done: float, seconds: float) -> dict[str, float]:
        """The record of an epoch with this sum of the rows' losses, for the history."""
        return {
            "epoch": epoch + 1,
            "elbo": -total / self.annotations.total(len(self.data[0])),
            "temperature": at(self.temperature, done),
            "learning_rate": self.rate(done),
            "seconds": seconds,
        }

    def batches(self, epoch: int) -> Iterator[tuple[float, float, torch.Tensor]]:
        """The minibatches of an epoch, of rows or of whole groups.

        Yields:
            The completed share of the epoch, about how many minibatches have as many rows, and the
            rows.
        """
        number, done = len(self.data[0]), 0
        if self.annotations.groups is not None:
            batches = list(whole_groups(self.annotations.groups, self.batch_size))
            lengths = Counter(map(len, batches))
            for index, rows in enumerate(batches):
                # of groups of several sizes, each epoch has minibatches of other lengths
                alike = lengths[len(rows)] if len(lengths) <= 2 else 1 / self.epochs
                yield index / len(batches), alike, rows
            return
        for window in shuffled(number, self.seed, epoch, 13):
            parts = window.to(self.data[0].device).tensor_split(
                steps_in_epoch(len(window), self.batch_size)
            )
            start, share = done / number, len(window) / number
            lengths = Counter(map(len, parts))
            for index, rows in enumerate(parts):
                alike = math.ceil(lengths[len(rows)] / share)
                yield start + share * (index / len(parts)), alike, rows
            done += len(window)

    def step(
        self,
        batch: Data,
        num_rows: int,
        buffers: list[torch.Tensor],
        updates: Updates,
        done: float,
        steps: float,
    ) -> float:
        """Take a step. The batch has the rows of this process, out of ``num_rows``.

        ``steps`` is zero if the objective is not `Differentiable`.
        """
        temperature = at(self.temperature, done)
        evaluate = partial(self.evaluate, batch, temperature, num_rows)
        if self.optimizer is None or not steps:
            loss = evaluate()
        else:
            (group,) = self.optimizer.param_groups
            arguments = (group["params"], buffers, batch, temperature, steps)
            loss_of, one_vector = partial(self.loss_of, num_rows), updates.flat is not None
            loss = self.gradients(evaluate, loss_of, *arguments, one_vector=one_vector)
        optimizer: Any = self.optimizer  # the first evaluation has created it
        vector = self.gradients.vector
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        found = (p.grad for p in parameters) if vector is None else [vector]
        gradients = [each for each in found if each is not None]
        if not gradients:
            raise ValueError("expected parameters that the loss depends on; got none")
        if not steps:
            torch._foreach_div_(gradients, float(num_rows))
            loss /= num_rows
        loss = _of_all_processes(loss, gradients)
        optimizer.param_groups[0]["lr"] = self.rate(done)
        if not (math.isfinite(loss) and updates.step(optimizer, vector)):
            optimizer.zero_grad()
            raise FloatingPointError(self._culprit(batch, temperature))
        return loss * num_rows

    def evaluate(self, batch: Data, temperature: float, num_rows: int) -> float:
        """The loss, divided by the rows if it is `Differentiable`; gradients are ``grad``.

        There is an optimizer afterwards, and it has all parameters.
        """
        with MinibatchScale(len(batch[0]) / len(self.data[0])):
            loss = _loss_and_gradients(self.elbo, *self._treated(temperature), batch, num_rows)
        self._optimizer()
        return loss

    def loss_of(self, num_rows: int, batch: Data, temperature: torch.Tensor) -> torch.Tensor:
        """The same loss as a tensor, to be recorded."""
        with MinibatchScale(len(batch[0]) / len(self.data[0])):
            return self.elbo.differentiable_loss(*self._treated(temperature), *batch) / num_rows

    def _treated(self, temperature: Temperature) -> tuple[Program, Program]:
        """Model and guide prepared for the objective at this temperature."""
        treated = self.treatment(self.model, self.guide, temperature, self.as_written)
        model, guide = (annotated(program, self.annotations.names) for program in treated)
        return model, guide

    @property
    def at_once(self) -> bool:
        """Whether the loss of a minibatch is one tensor with gradients."""
        return isinstance(self.elbo, Differentiable)

    def buffers(self) -> list[torch.Tensor]:
        """The buffers of the modules."""
        return [value for part in modules(self.model, self.guide) for value in part.buffers()]

    @property
    def columns(self) -> Data:
        """The arguments of the programs: the data and the annotations."""
        return (*self.data, *self.annotations.columns)

    def rate(self, done: float) -> float:
        """The step size at the completed share ``done`` of the run."""
        if callable(self.learning_rate):
            return self.learning_rate(done)
        return self.learning_rate * one_cycle(done)

    def _optimizer(self) -> torch.optim.Optimizer:
        """The optimizer of all parameters that the programs have registered so far."""
        self.store.update(pyro.get_param_store().get_state())
        parameters = list(self.parameters().values())
        if not parameters:
            raise ValueError("expected a model or guide with parameters to learn; got none")
        if self.optimizer is None:
            self.optimizer = self.new_optimizer(parameters)
        (group,) = self.optimizer.param_groups
        known = {id(p) for p in group["params"]}
        others = [p for p in parameters if id(p) not in known]
        if others:
            group["params"] += others
            self.optimizer.state.update(self.new_optimizer(others).state)
        return self.optimizer

    def _culprit(self, batch: Data, temperature: float) -> str:
        """Describe the first site with a non-finite value or density, or else the gradient."""
        try:
            with torch.no_grad():
                traces = self.elbo._get_trace(*self._treated(temperature), batch, {})
        except (RuntimeError, ValueError) as error:
            return f"non-finite parameter of a distribution ({str(error).splitlines()[0]})"
        for trace in reversed(traces):  # guide before model
            for name, site in trace.nodes.items():
                if site["type"] == "sample" and torch.is_tensor(site["value"]):
                    density = site["fn"].log_prob(site["value"])
                    if not (site["value"].isfinite().all() and density.isfinite().all()):
                        return f"non-finite value at site {name!r}"
        return "non-finite gradient"


def marginal_elbo(
    model: Program,
    guide: Program,
    store: dict[str, Any],
    columns: Data,
    seed: int,
    annotations: Annotations = UNANNOTATED,
    num_particles: int = 8,
) -> float:
    """The marginal ELBO in nats per row, which compares runs with any objective.

    The KL divergence of latent variables outside the plate, such as experts with a prior, is left
    out. It belongs to the training rows.
    """
    total, groups = 0.0, annotations.groups
    copies, times = (num_particles, 1) if groups is None else (1, num_particles)
    model, guide = (annotated(program, annotations.names) for program in (model, guide))
    every = (*columns, *annotations.columns)
    with torch.no_grad(), reproducible(seed, 0, 2), running(store), where_incomplete(*columns):
        for batch in _blocks(every, groups):
            rows = [column.repeat(copies, *[1] * (column.dim() - 1)) for column in batch]
            for _ in range(times):
                total += row_bounds(*enumerated_traces(model, guide, *rows)).sum().item()
    return total / num_particles / annotations.total(len(columns[0]))


def _blocks(columns: Data, groups: torch.Tensor | None, size: int = 512) -> Iterator[Data]:
    """Blocks of rows, or of whole groups."""
    if groups is None:
        yield from zip(*(column.split(size) for column in columns), strict=True)
        return
    for rows in whole_groups(groups, size):
        yield tuple(column[rows] for column in columns)


def _of_all_processes(loss: float, gradients: list[torch.Tensor]) -> float:
    """The loss summed over the processes, after the gradients have been summed in place."""
    processes = Processes.running()
    if processes.size == 1:
        return loss
    total = torch.tensor([loss], dtype=torch.float64, device=gradients[0].device)
    processes.add([*gradients, total])
    return total.item()


def _moments(optimizer: torch.optim.Optimizer, into: dict[str, Any] | None) -> dict[str, Any]:
    """A copy of an optimizer's state, in the memory of another if there is one."""
    found, former = optimizer.state_dict(), {} if into is None else into["state"]
    found["state"] = {
        number: values | copied(_tensors(values), _tensors(former.get(number, {})))
        for number, values in found["state"].items()
    }
    return found


def _tensors(values: dict[str, Any]) -> dict[str, torch.Tensor]:
    return {name: value for name, value in values.items() if isinstance(value, torch.Tensor)}


def steps_in_epoch(num_rows: int, batch_size: int) -> int:
    """Number of minibatches of nearly equal size, at most ``batch_size`` rows each.

    Example:
        >>> steps_in_epoch(257, 256)
        2
    """
    return max(1, -(-num_rows // batch_size))


def _loss_and_gradients(
    elbo: ELBO, model: Program, guide: Program, batch: Data, num_rows: int
) -> float:
    """The loss of a minibatch, divided by its rows if it is differentiable.

    Gradients are accumulated in the parameters' ``grad``.
    """
    if not isinstance(elbo, Differentiable):
        return elbo.loss_and_grads(model, guide, *batch)
    # Pyro's loss_and_grads skips the gradients of modules without a pyro.module statement.
    loss = elbo.differentiable_loss(model, guide, *batch) / num_rows
    if loss.requires_grad:
        loss.backward()
    return loss.item()


def one_cycle(done: float, *, peak: float = 0.3, start: float = 0.04) -> float:
    """The factor of the one-cycle learning-rate schedule (Smith 2018).

    It rises from ``start`` to 1 and falls to 0, each along half a cosine.

    Args:
        done: Completed share of the run, from 0 to 1.
        peak: Share at which the factor is 1.
        start: Factor at the start.

    Example:
        >>> one_cycle(0.0), one_cycle(0.3), one_cycle(1.0)
        (0.04, 1.0, 0.0)
    """
    if done < peak:
        return start + (1.0 - start) * 0.5 * (1.0 - math.cos(math.pi * done / peak))
    return 0.5 * (1.0 + math.cos(math.pi * (done - peak) / (1.0 - peak)))


def at(schedule: Schedule, done: float) -> float:
    """The value of a schedule at the completed share ``done`` of the run."""
    return schedule(done) if callable(schedule) else schedule
