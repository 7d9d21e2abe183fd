"""One evaluation of gates and experts for both programs: the guide asks first, then the model."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from pyro.poutine.messenger import Messenger
from torch import nn

from .programs import Program, modules
from .protocols import EvaluatedOnce


@contextmanager
def evaluated_once(*programs: Program) -> Iterator[None]:
    """Have modules that allow it answer a second call with the same tensor by the same object.

    Guides that are posteriors by Bayes' rule ask for the model's own gate and experts. One
    evaluation for both saves time, and the noise of dropout is then the same on both sides. A
    module allows it by an attribute ``evaluated_once = True``, if it is a function of one tensor
    and of its parameters and buffers; one with a `pyro.sample` statement is evaluated each time
    all the same.

    Args:
        programs: Models and guides. Between two steps of learning, give them other tensors.
    """
    parts: list[Any] = [
        part
        for outermost in modules(*programs)
        for part in outermost.modules()
        if isinstance(part, EvaluatedOnce) and part.evaluated_once
    ]
    own = [vars(part).get("forward") for part in parts]  # where it is not the class's
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
    """The module's forward, with a memory of the last call."""
    forward = part.forward
    last: tuple[Any, ...] | None = None
    held: tuple[torch.Tensor, ...] = ()
    answer: Any = None

    def remembered(x: torch.Tensor) -> Any:
        nonlocal last, held, answer
        tensors = (x, *part.parameters(), *part.buffers())
        call = (torch.is_grad_enabled(), x._version, *map(id, tensors))
        if call != last:
            with _Statements() as statements:
                answer = forward(x)
            # what is held keeps its id to itself
            last, held = None if statements.any else call, tensors
        return answer

    return remembered


class _Statements(Messenger):
    """Sees whether a program samples."""

    any = False

    def _pyro_sample(self, msg: Any) -> None:
        self.any = True
