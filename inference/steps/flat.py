"""Steps of an optimizer, and of Adam on the parameters of a small model as one vector."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.optim import Adam

MOST = 2**19  # values; for more, copying gradients takes longer than calling Adam for each tensor
FEW = 8  # steps, after which the copies have paid


class Updates:
    """The steps of an optimizer in an epoch, as one vector if the model is small.

    Use it in `contextlib.closing`.

    Args:
        number: Number of steps of the epoch.
    """

    def __init__(self, number: int) -> None:
        self.flat: FlatAdam | None = None
        self.tried = number < FEW

    def step(self, optimizer: torch.optim.Optimizer, learning_rate: float) -> bool:
        """Take a step by the parameters' ``grad``, unless one is not finite. Whether it was taken.

        The gradients are removed.
        """
        parameters = [value for group in optimizer.param_groups for value in group["params"]]
        whole = all(value.grad is not None for value in parameters)
        if self.flat is not None and (not whole or len(parameters) != len(self.flat.parameters)):
            self.close()
        if self.flat is None and whole and not self.tried and is_small(optimizer):
            self.tried, self.flat = True, FlatAdam(optimizer)  # type: ignore[arg-type]
        if self.flat is None:
            norm = torch.nn.utils.get_total_norm(
                [value.grad for value in parameters if value.grad is not None]
            )
        else:
            norm = torch.linalg.vector_norm(self.flat.gather())
        finite = math.isfinite(norm)
        if finite:
            one: Any = self.flat or optimizer
            for group in optimizer.param_groups:
                group["lr"] = learning_rate
            one.step()
        optimizer.zero_grad()
        return finite

    def close(self) -> None:
        """Give the parameters and their optimizer back what one vector has held."""
        if self.flat is not None:
            self.flat.close()
        self.flat = None


class FlatAdam:
    """A fused Adam on one vector, of which the parameters are parts until `close`.

    The results are those of the optimizer itself. A fused step costs as much for one tensor of a
    few values as for one of some thousands, and a small model has dozens of tensors.

    Args:
        optimizer: An optimizer for which `is_small` is true.
    """

    def __init__(self, optimizer: Adam) -> None:
        (group,) = optimizer.param_groups
        self.optimizer, self.parameters = optimizer, list(group["params"])
        states = [optimizer.state[value] for value in self.parameters]
        self.vector = nn.Parameter(_joined(self.parameters))
        self.flat = Adam([self.vector])
        self.flat.param_groups[0].update(group, params=[self.vector])
        moments = {name: _joined([state[name] for state in states]) for name in _moments(states[0])}
        self.flat.state[self.vector] = {"step": states[0]["step"].clone(), **moments}
        for value, part in zip(self.parameters, self._parts(self.vector), strict=True):
            value.data = part

    def gather(self) -> torch.Tensor:
        """Take the gradients of all parameters, as one vector, which is returned."""
        self.vector.grad = _joined([value.grad for value in self.parameters])
        return self.vector.grad

    def step(self) -> None:
        """Update the parameters by the gradients that were taken last."""
        self.flat.param_groups[0]["lr"] = self.optimizer.param_groups[0]["lr"]
        self.flat.step()

    def close(self) -> None:
        """Let the parameters be tensors of their own, and the optimizer have their moments."""
        state = self.flat.state[self.vector]
        for value in self.parameters:
            value.data = value.data.clone()
            self.optimizer.state[value]["step"].copy_(state["step"])
        for name in _moments(state):
            for value, part in zip(self.parameters, self._parts(state[name]), strict=True):
                self.optimizer.state[value][name].copy_(part)

    def _parts(self, vector: torch.Tensor) -> list[torch.Tensor]:
        parts = vector.detach().split([value.numel() for value in self.parameters])
        return [part.view_as(value) for part, value in zip(parts, self.parameters, strict=True)]


def is_small(optimizer: torch.optim.Optimizer | None) -> bool:
    """Whether an optimizer is a fused Adam of few values, which has updated all of them alike."""
    if type(optimizer) is not Adam or len(optimizer.param_groups) != 1:
        return False
    (group,) = optimizer.param_groups
    values, states = group["params"], [optimizer.state.get(p, {}) for p in group["params"]]
    if not group["fused"] or not all("step" in state for state in states):
        return False
    kinds = {(value.dtype, value.device) for value in values}
    steps = {float(state["step"]) for state in states}
    return len(kinds) == len(steps) == 1 and sum(value.numel() for value in values) <= MOST


def _joined(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    return torch.cat([value.detach().flatten() for value in tensors])


def _moments(state: dict[str, torch.Tensor]) -> list[str]:
    return [name for name in state if name != "step"]
