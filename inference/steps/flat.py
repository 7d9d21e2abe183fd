"""Steps of an optimizer, and of Adam on the parameters of a small model as one vector."""

import math
from collections.abc import Sequence
from typing import TypeGuard

import torch
from torch.optim import Adam

MOST = 2**19  # values; for more, copying gradients takes longer than calling Adam for each tensor
MOMENTS = ("exp_avg", "exp_avg_sq")
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

    def step(self, optimizer: torch.optim.Optimizer, vector: torch.Tensor | None = None) -> bool:
        """Take a step, unless a gradient is not finite. Whether it was taken.

        Args:
            optimizer: The optimizer.
            vector: The gradients as one vector; or None for the parameters' ``grad``, which is
                then removed.
        """
        if vector is not None and self.flat is not None:
            return self._step(self.flat, vector)
        parameters = [value for group in optimizer.param_groups for value in group["params"]]
        gradients = [value.grad for value in parameters if value.grad is not None]
        whole = len(gradients) == len(parameters)
        if self.flat is not None and not (whole and self.flat.has(parameters)):
            self.close()
        if whole and not self.tried and is_small(optimizer):
            self.tried, self.flat = True, FlatAdam(optimizer)  # type: ignore[arg-type]
        if self.flat is not None:
            taken = self._step(self.flat, _joined(gradients))
        else:
            taken = math.isfinite(torch.nn.utils.get_total_norm(gradients))
            if taken:
                optimizer.step()
        optimizer.zero_grad()
        return taken

    @staticmethod
    def _step(flat: "FlatAdam", vector: torch.Tensor) -> bool:
        taken = math.isfinite(torch.linalg.vector_norm(vector))
        if taken:
            flat.step(vector)
        return taken

    def close(self) -> None:
        """Give the parameters and their optimizer back what one vector has held."""
        if self.flat is not None:
            self.flat.close()
        self.flat = None


class FlatAdam:
    """A fused Adam on one vector, of which the parameters are parts until `close`.

    The optimizer's moments are parts of vectors, too. The results are those of the optimizer
    itself. A fused step costs as much for one tensor of a few values as for one of some thousands,
    and a small model has dozens of tensors.

    Args:
        optimizer: An optimizer for which `is_small` is true.
    """

    def __init__(self, optimizer: Adam) -> None:
        (group,) = optimizer.param_groups
        self.optimizer, self.parameters = optimizer, list(group["params"])
        states = [optimizer.state[value] for value in self.parameters]
        self.vector = _joined(self.parameters)
        self.step_number = states[0]["step"].clone()
        self.moments = {name: _joined([state[name] for state in states]) for name in MOMENTS}
        for value, part in zip(self.parameters, self._parts(self.vector), strict=True):
            value.data = part
        for name, moment in self.moments.items():
            for state, part in zip(states, self._parts(moment), strict=True):
                state |= {name: part, "step": self.step_number}

    def has(self, parameters: Sequence[torch.Tensor]) -> bool:
        """Whether these are the parameters."""
        return list(map(id, parameters)) == list(map(id, self.parameters))

    def step(self, gradient: torch.Tensor) -> None:
        """Update the parameters, given the gradients of all of them as one vector."""
        (group,) = self.optimizer.param_groups
        self.step_number += 1
        # The operation behind `torch.optim.Adam`, which takes five times as long to reach it.
        torch._fused_adam_(
            [self.vector],
            [gradient],
            [self.moments["exp_avg"]],
            [self.moments["exp_avg_sq"]],
            [],
            [self.step_number],
            lr=group["lr"],
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            amsgrad=False,
            maximize=group["maximize"],
        )

    def close(self) -> None:
        """Let the parameters be tensors of their own, and the optimizer have moments of its own."""
        for value in self.parameters:
            value.data = value.data.clone()
            state = self.optimizer.state[value]
            state.update({name: state[name].clone() for name in ("step", *MOMENTS)})

    def _parts(self, vector: torch.Tensor) -> list[torch.Tensor]:
        parts = vector.split([value.numel() for value in self.parameters])
        return [part.view_as(value) for part, value in zip(parts, self.parameters, strict=True)]


def is_plain(optimizer: torch.optim.Optimizer | None) -> TypeGuard[Adam]:
    """Whether an optimizer is a fused Adam without variants, of one group of parameters."""
    if type(optimizer) is not Adam or len(optimizer.param_groups) != 1:
        return False
    (group,) = optimizer.param_groups
    return group["fused"] and not group["amsgrad"] and not group.get("decoupled_weight_decay")


def begin(optimizer: Adam) -> None:
    """Give an optimizer that has taken no step the state of its first."""
    for value in (value for group in optimizer.param_groups for value in group["params"]):
        zeros = {name: torch.zeros_like(value) for name in MOMENTS}
        optimizer.state[value] = {"step": torch.zeros(()), **zeros}


def is_small(optimizer: torch.optim.Optimizer | None) -> bool:
    """Whether an optimizer is a fused Adam of few values, which has updated all of them alike."""
    if not is_plain(optimizer):
        return False
    (group,) = optimizer.param_groups
    values, states = group["params"], [optimizer.state.get(p, {}) for p in group["params"]]
    if not all("step" in state for state in states):
        return False
    kinds = {(value.dtype, value.device) for value in values}
    steps = {float(state["step"]) for state in states}
    return len(kinds) == len(steps) == 1 and sum(value.numel() for value in values) <= MOST


def _joined(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    return torch.cat([value.detach().flatten() for value in tensors])
