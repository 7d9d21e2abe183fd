"""Stochastic variational inference, one epoch at a time, on any Pyro model and guide."""

import math
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from copy import deepcopy
from dataclasses import dataclass, field, replace
from typing import Any

import pyro
import torch
from pyro.infer import ELBO

from .caching import evaluated_once
from .context import reproducible, running, training_mode
from .handlers import MinibatchScale
from .objectives import Treatment
from .programs import Program, isolated, learned, restore, state
from .protocols import Differentiable

Data = tuple[torch.Tensor, ...]
Schedule = float | Callable[[float], float]


class NonFiniteError(Exception):
    """A loss or a gradient was not finite; the message says where.

    Attributes:
        first_step: Whether it was the first step of an epoch.
    """

    def __init__(self, message: str, *, first_step: bool) -> None:
        super().__init__(message)
        self.first_step = first_step


@dataclass
class SVI:
    """The state of a run of Adam on an ELBO: enough to stop it and to go on as if it had not.

    The randomness of an epoch depends on the seed and the epoch alone, and the learning rate
    on the share of the epochs that is done; nothing else has to be remembered.

    Attributes:
        model: A Pyro program, whose parameters are changed in place.
        guide: Its guide, likewise.
        data: Tensors of N rows each, passed to both programs, a minibatch of them at a time.
        elbo: The objective, see `objectives.objective`.
        treatment: What it wants done with ``c``, see there.
        epochs: Passes over the data in the whole run.
        batch_size: Rows in a minibatch.
        learning_rate: Adam's step size at its peak, see `one_cycle`; or a function of the share
            done.
        temperature: τ of a relaxed ``c``: a number or a function of the share done.
        as_written: Whether a ``c`` that the story relaxes itself keeps its temperatures.
        seed: Seed of every random draw.
        history: One record an epoch: epoch, elbo (nats per row), temperature, learning_rate,
            seconds.
        store: The state of Pyro's parameter store that belongs to this run.
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
    history: list[dict[str, float]] = field(default_factory=list)
    store: dict[str, Any] = field(default_factory=lambda: {"params": {}, "constraints": {}})
    optimizer: torch.optim.Adam | None = None

    def __iter__(self) -> Iterator[dict[str, float]]:
        """Run the epochs that are left, yielding each one's record.

        An interruption goes back to the end of the last epoch, whence the run can go on as if
        there had been none.

        Raises:
            NonFiniteError: If a loss or gradient is not finite. The parameters are then those of
                the last end of an epoch, or the start, from which a step was finite.
        """
        proven = latest = self._checkpoint()
        while len(self.history) < self.epochs:
            try:
                record = self._epoch(len(self.history))
            except NonFiniteError as error:
                # A state is proven good only by the first step from it.
                self._go_back(proven if error.first_step else latest)
                raise
            except KeyboardInterrupt:
                self._go_back(latest)
                self._forget(set(self.parameters()) - set(latest[0]))
                raise
            self.history.append(record)
            proven, latest = latest, self._checkpoint()
            yield record

    def _checkpoint(self) -> tuple[dict[str, torch.Tensor], dict[str, Any] | None]:
        moments = None if self.optimizer is None else deepcopy(self.optimizer.state_dict())
        return state(self.store, self.model, self.guide), moments

    def _go_back(self, checkpoint: tuple[dict[str, torch.Tensor], dict[str, Any] | None]) -> None:
        tensors, moments = checkpoint
        restore(tensors, self.store, self.model, self.guide)
        if moments is None:
            self.optimizer = None
        elif self.optimizer is not None:
            self.optimizer.load_state_dict(moments)
        for value in self.parameters().values():
            value.grad = None

    def _forget(self, names: set[str]) -> None:
        """Drop `pyro.param`s from the store, to be made anew by the next epoch."""
        for part in self.store.values():
            for name in names & set(part):
                del part[name]

    def copy(self, *, epochs: int) -> "SVI":
        """A run that goes on from here to another number of epochs, and leaves this one alone."""
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
        )

    def parameters(self) -> dict[str, torch.Tensor]:
        """The tensors that are learned, by name."""
        return learned(self.store, self.model, self.guide)

    def _epoch(self, epoch: int) -> dict[str, float]:
        started, total, num_rows = time.perf_counter(), 0.0, len(self.data[0])
        with (
            reproducible(self.seed, epoch),
            running(self.store),
            training_mode(self.model, self.guide),
            self._shared(),
            warnings.catch_warnings(),
        ):
            warnings.filterwarnings("ignore", "Encountered NaN", UserWarning)  # we say so better
            order = torch.randperm(num_rows)
            batches = list(order.to(self.data[0].device).split(self.batch_size))
            if num_rows > self.batch_size > len(batches[-1]) == 1:  # no batch to normalize
                batches[-2:] = [torch.cat(batches[-2:])]
            for index, rows in enumerate(batches):
                done = (epoch + index / len(batches)) / self.epochs
                batch = tuple(column[rows] for column in self.data)
                try:
                    total += self._step(batch, done)
                except FloatingPointError as error:
                    message = f"{error} at epoch {epoch + 1}, step {index + 1}"
                    raise NonFiniteError(message, first_step=index == 0) from error
        return {
            "epoch": epoch + 1,
            "elbo": -total / num_rows,
            "temperature": at(self.temperature, done),
            "learning_rate": self._learning_rate(done),
            "seconds": time.perf_counter() - started,
        }

    def _shared(self) -> AbstractContextManager[None]:
        """Gates and experts evaluated once a step, unless the ELBO takes gradients in pieces."""
        at_once = isinstance(self.elbo, Differentiable)
        return evaluated_once(self.model, self.guide) if at_once else nullcontext()

    def _step(self, batch: Data, done: float) -> float:
        temperature = at(self.temperature, done)
        num_rows = len(batch[0])
        model, guide = self._treated(temperature)
        with MinibatchScale(num_rows / len(self.data[0])):
            loss = _loss_and_gradients(self.elbo, model, guide, batch)
        optimizer = self._optimizer()
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        gradients = [p.grad for p in parameters if p.grad is not None]
        if not gradients:
            raise ValueError("expected parameters that the loss depends on; got none")
        torch._foreach_div_(gradients, float(num_rows))
        norm = torch.nn.utils.get_total_norm(gradients)
        if not (math.isfinite(loss) and torch.isfinite(norm)):
            optimizer.zero_grad()
            raise FloatingPointError(self._culprit(batch, temperature))
        optimizer.param_groups[0]["lr"] = self._learning_rate(done)
        optimizer.step()
        optimizer.zero_grad()
        return loss

    def _treated(self, temperature: float) -> tuple[Program, Program]:
        """Model and guide as the objective wants them, with the story at this temperature."""
        return self.treatment(self.model, self.guide, temperature, self.as_written)

    def _learning_rate(self, done: float) -> float:
        if callable(self.learning_rate):
            return self.learning_rate(done)
        return self.learning_rate * one_cycle(done)

    def _optimizer(self) -> torch.optim.Adam:
        """Adam over every parameter that the programs have shown so far."""
        self.store.update(pyro.get_param_store().get_state())
        parameters = list(self.parameters().values())
        if not parameters:
            raise ValueError("expected a model or guide with parameters to learn; got none")
        if self.optimizer is None:
            self.optimizer = torch.optim.Adam(parameters, lr=1.0, fused=True)
        (group,) = self.optimizer.param_groups
        known = {id(p) for p in group["params"]}
        group["params"] += [p for p in parameters if id(p) not in known]
        return self.optimizer

    def _culprit(self, batch: Data, temperature: float) -> str:
        """The first site with a value or density that is not finite, or else the gradient."""
        try:
            with torch.no_grad():
                traces = self.elbo._get_trace(*self._treated(temperature), batch, {})
        except (RuntimeError, ValueError) as error:
            return f"non-finite parameter of a distribution ({str(error).splitlines()[0]})"
        for trace in reversed(traces):  # the guide's first
            for name, site in trace.nodes.items():
                if site["type"] == "sample" and torch.is_tensor(site["value"]):
                    density = site["fn"].log_prob(site["value"])
                    if not (site["value"].isfinite().all() and density.isfinite().all()):
                        return f"non-finite value at site {name!r}"
        return "non-finite gradient"


def _loss_and_gradients(elbo: ELBO, model: Program, guide: Program, batch: Data) -> float:
    """The loss of a minibatch; gradients are added to the parameters' ``grad``."""
    if not isinstance(elbo, Differentiable):
        return elbo.loss_and_grads(model, guide, *batch)
    # Pyro's loss_and_grads skips the gradient of modules that no pyro.module has registered.
    loss = elbo.differentiable_loss(model, guide, *batch)
    if loss.requires_grad:
        loss.backward()
    return loss.item()


def one_cycle(done: float, *, peak: float = 0.3, start: float = 0.04) -> float:
    """A learning rate that rises to one and falls to zero, along half cosines (Smith 2018).

    Args:
        done: Share of the run that is over.
        peak: Share of the run at which the rate is one.
        start: The rate at the start.

    Example:
        >>> one_cycle(0.0), one_cycle(0.3), one_cycle(1.0)
        (0.04, 1.0, 0.0)
    """
    if done < peak:
        return start + (1.0 - start) * 0.5 * (1.0 - math.cos(math.pi * done / peak))
    return 0.5 * (1.0 + math.cos(math.pi * (done - peak) / (1.0 - peak)))


def at(schedule: Schedule, done: float) -> float:
    """The value of a schedule when a share ``done`` of the run is over."""
    return schedule(done) if callable(schedule) else schedule
