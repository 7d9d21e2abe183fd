"""Loss and gradients of minibatches, recorded once for each shape and then replayed."""

from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import torch
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import make_fx

from ..context import without_warnings
from .simplify import simplify

Batch = tuple[torch.Tensor, ...]
Loss = Callable[[Batch, torch.Tensor], torch.Tensor]
WORTHWHILE = 200


class Gradients:
    r"""The loss of a minibatch and its gradients, :math:`L(\theta)` and :math:`\nabla L(\theta)`.

    Most of the time of a small model's step is spent on Pyro's handlers and on autograd. Their
    result is the same sequence of tensor operations at every step. It is recorded once for each
    shape of a minibatch, if enough steps follow, and replayed from then on.

    Not every model can be replayed. One may branch on the values of its tensors, call other
    libraries, or count its own calls. Recording then fails, or the replay differs. At the 1st, 2nd,
    4th, 8th, … replay, the step is therefore evaluated in both ways. If they ever differ, the
    model is evaluated at every step. The gradients are then always those of the model itself.

    A copy of this object has no recordings.
    """

    def __init__(self) -> None:
        self._recorded: dict[Any, Recording | None] = {}
        self._replays: Counter[Any] = Counter()
        self._differed = False

    def __reduce__(self) -> tuple[type["Gradients"], tuple[()]]:
        return Gradients, ()

    @property
    def replayed(self) -> int:
        """Number of steps that were replayed, including those evaluated in both ways."""
        return self._replays.total()

    def __call__(
        self,
        evaluate: Callable[[], float],
        loss: Loss,
        parameters: Sequence[torch.Tensor],
        buffers: Sequence[torch.Tensor],
        batch: Batch,
        temperature: float,
        remaining: int,
    ) -> float:
        """The loss. The gradients are set as the parameters' ``grad``.

        Args:
            evaluate: A function that does this by Pyro and autograd.
            loss: The loss as a function of a minibatch and of the temperature, which uses the
                parameters and buffers.
            parameters: The tensors of the gradients.
            buffers: Other tensors that the loss uses and may change.
            batch: The rows of each column.
            temperature: τ of a relaxed ``c``.
            remaining: Steps that are still to come.
        """
        key = len(parameters), *((column.shape, column.dtype) for column in batch)
        if self._differed or (key not in self._recorded and remaining < WORTHWHILE):
            return evaluate()
        inputs = [*batch, torch.tensor(temperature, dtype=torch.float64, device=batch[0].device)]
        if key not in self._recorded:
            self._recorded[key] = record(loss, parameters, buffers, inputs)
        replay = self._recorded[key]
        if replay is None:
            return evaluate()
        self._replays[key] += 1
        number = self._replays[key]
        if number & (number - 1):  # not a power of two
            value, gradients = replay(*parameters, *buffers, *inputs)
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.grad = gradient
            return value.item()
        with torch.random.fork_rng(devices=_devices(inputs)):
            copies = [value.clone() for value in buffers]
            _, gradients = replay(*parameters, *copies, *inputs)
        direct = evaluate()
        pairs = zip(gradients, [parameter.grad for parameter in parameters], strict=True)
        self._differed = not all(_equal(one, other) for one, other in pairs)
        return direct


class Recording:
    """A recorded loss and its gradients, a function of the tensors that it was recorded with.

    The operations run in TorchScript's interpreter, which takes less time for each than Python
    does. It does not know the gradients of convolutions and of batch normalization.

    Args:
        graph: The operations. Their results are the loss and the gradients.
        inputs: Tensors to try it with.
    """

    def __init__(self, graph: GraphModule, inputs: Sequence[torch.Tensor]) -> None:
        (output,) = graph.graph.find_nodes(op="output")
        self._known = [result is not None for result in output.args[0][1:]]
        output.args = ([result for result in output.args[0] if result is not None],)
        graph.recompile()
        self._run: Callable[..., Sequence[torch.Tensor]] = graph
        with torch.no_grad(), suppress(RuntimeError):
            self._run = torch.jit.trace(graph, tuple(inputs), check_trace=False)

    def __call__(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor | None]]:
        """The loss, and the gradients or None."""
        with torch.no_grad():
            value, *rest = self._run(*tensors)
        results = iter(rest)
        return value, [next(results) if known else None for known in self._known]


def record(
    loss: Loss,
    parameters: Sequence[torch.Tensor],
    buffers: Sequence[torch.Tensor],
    inputs: Sequence[torch.Tensor],
) -> Recording | None:
    """The operations that compute a loss and its gradients.

    The buffers and the stream of random numbers are left as they were.

    Args:
        loss: The loss as a function of a minibatch and of the temperature.
        parameters: The tensors of the gradients.
        buffers: Other tensors that the loss uses and may change.
        inputs: The columns of a minibatch, and the temperature.

    Returns:
        The recording, or None if the loss cannot be recorded.
    """
    before = [value.clone() for value in buffers]

    def function(*tensors: torch.Tensor) -> list[torch.Tensor | None]:
        *batch, temperature = tensors[-len(inputs) :]
        value = loss(tuple(batch), temperature)
        gradients = torch.autograd.grad(value, tensors[: len(parameters)], allow_unused=True)
        return [value.detach(), *gradients]

    try:
        with torch.random.fork_rng(devices=_devices(inputs)), without_warnings(Warning):
            copies = [value.clone() for value in inputs]  # new tensors, see `evaluated_once`
            tensors = [*parameters, *buffers, *copies]
            return Recording(simplify(make_fx(function)(*tensors)), tensors)
    except Exception:  # whatever a model does that a graph cannot
        return None
    finally:
        with torch.no_grad():
            for value, former in zip(buffers, before, strict=True):
                value.copy_(former)


def _devices(tensors: Sequence[torch.Tensor]) -> list[torch.device]:
    return [tensors[0].device] if tensors[0].is_cuda else []


def _equal(one: torch.Tensor | None, other: torch.Tensor | None) -> bool:
    """Whether two results are equal up to rounding."""
    if one is None or other is None:
        return one is other
    one, other = one.double(), other.double()
    return torch.allclose(one, other, rtol=1e-4, atol=1e-5 * float(other.norm()), equal_nan=True)
