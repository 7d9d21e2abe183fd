"""Evaluation of gates and experts once for guide and model."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from pyro.poutine.messenger import Messenger
from torch import nn

from ..programs import Program, modules


@contextmanager
def evaluated_once(*programs: Program) -> Iterator[None]:
    """Return the last output of a module when it is called again with the same tensor.

    A guide that is a posterior by Bayes' rule calls the model's gate and experts. One evaluation
    for guide and model saves time and gives both the same dropout noise. The context applies to
    modules with the attribute ``evaluated_once = True``. Such a module must be a function of one
    tensor and of its parameters and buffers. A module with a `pyro.sample` statement is evaluated
    at every call.

    Args:
        programs: Models and guides. Pass a new input tensor at every training step.
    """
    parts: list[Any] = [
        part
        for outermost in modules(*programs)
        for part in outermost.modules()
        if getattr(part, "evaluated_once", False)  # see `protocols.EvaluatedOnce`; faster
    ]
    own = [vars(part).get("forward") for part in parts]  # None if only the class defines it
    for part in parts:
        part.forward = _remembering(part)
    try:
        yield
    finally:
        for part, forward in zip(parts, own, strict=True):
            if forward is None:
                del part.forward
            else:
                part.forward = forward


def _remembering(part: nn.Module) -> Callable[[torch.Tensor], Any]:
    """The module's ``forward`` with a cache of the last call."""
    forward = part.forward
    last: tuple[Any, ...] | None = None
    held: tuple[torch.Tensor, ...] = ()
    answer: Any = None

    def remembered(x: torch.Tensor) -> Any:
        nonlocal last, held, answer
        if x.is_inference():  # its changes in place are not counted
            return forward(x)
        tensors = (x, *part.parameters(), *part.buffers())
        call = (torch.is_grad_enabled(), x._version, *map(id, tensors))
        if call != last:
            with _Statements() as statements:
                answer = forward(x)
            # References keep the ids from being reused by new tensors.
            last, held = None if statements.any else call, tensors
        return answer

    return remembered


class _Statements(Messenger):
    """Records whether a program has a `pyro.sample` statement."""

    any = False

    def _pyro_sample(self, msg: Any) -> None:
        self.any = True
