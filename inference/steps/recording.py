"""Recorded losses and gradients of minibatches."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import torch
from torch.fx import GraphModule

from ..context import unchanged, without_warnings
from .bfloat16 import with_bfloat16
from .captured import captured, on_gpu
from .compiled import compiled
from .onednn import with_onednn
from .products import with_linear
from .simplify import traced

Batch = tuple[torch.Tensor, ...]
Loss = Callable[[Batch, torch.Tensor], torch.Tensor]


class Recording:
    """A recorded loss and its gradients, a function of the tensors that it was recorded with.

    The operations run in TorchScript's interpreter, which takes less time for each than Python
    does. It does not know the gradients of convolutions and of batch normalization.

    Its results are ``exact``, those of the graph bit for bit, or equal up to rounding, or ``rough``
    if products are of numbers in bfloat16.

    Args:
        graph: The operations. Their results are the loss and the gradients.
        inputs: Tensors to try it with.
        bfloat16: Whether large products are of numbers in bfloat16.
    """

    def __init__(
        self, graph: GraphModule, inputs: Sequence[torch.Tensor], *, bfloat16: bool = False
    ) -> None:
        (output,) = graph.graph.find_nodes(op="output")
        self._known = [result is not None for result in output.args[0][1:]]
        output.args = ([result for result in output.args[0] if result is not None],)
        graph.recompile()
        self.graph = with_bfloat16(graph) if bfloat16 else graph
        self.rough, self.whole = self.graph is not graph, all(self._known)
        self.compiled = self.captured = False
        fast = _with_onednn(self.graph, inputs)
        self._onednn = fast is not self.graph
        self.exact = fast is graph
        self._run: Callable[..., Sequence[torch.Tensor]] = fast
        with torch.no_grad(), suppress(RuntimeError, TypeError, AttributeError):
            self._run = scripted(with_linear(fast), inputs)

    def compile(self, inputs: Sequence[torch.Tensor]) -> str:
        """Compile the operations. If that fails, they stay as they are.

        Args:
            inputs: Tensors to compile it for.

        Returns:
            Why it failed, in a line, or an empty text.
        """
        if len({value.dtype for value in self._learned(inputs)}) != 1:
            return "gradients of several types"
        try:
            self._run = compiled(self.graph, inputs, onednn=self._onednn)
        except Exception as error:  # whatever a compiler or its absence leads to
            return f"{type(error).__name__}: {error}".splitlines()[0]
        self._shapes = [value.shape for value in self._learned(inputs)]
        self.compiled, self.exact = True, False
        return ""

    def capture(self, inputs: Sequence[torch.Tensor]) -> str:
        """Let the operations be one CUDA graph. If that fails, they stay as they are.

        Args:
            inputs: Tensors on a GPU to capture it with.

        Returns:
            Why it failed, in a line, or an empty text.
        """
        try:
            with torch.jit.optimized_execution(False):
                self._run = captured(self._run, inputs)
        except RuntimeError as error:
            return f"{type(error).__name__}: {error}".splitlines()[0]
        self.captured = True
        return ""

    def _learned(self, inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """The parameters that have a gradient."""
        return [value for value, known in zip(inputs, self._known, strict=False) if known]

    def __call__(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor | None]]:
        """The loss, and the gradients or None."""
        if self.compiled:
            value, vector = self.as_vector(*tensors)
            parts = vector.split([shape.numel() for shape in self._shapes])
            rest = [part.view(shape) for part, shape in zip(parts, self._shapes, strict=True)]
        else:
            with torch.no_grad(), torch.jit.optimized_execution(False):
                value, *rest = self._run(*tensors)
        results = iter(rest)
        return value, [next(results) if known else None for known in self._known]

    def as_vector(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The loss, and the gradients as one vector."""
        if self.compiled:
            with torch.no_grad():
                value, vector = self._run(*tensors)
            return value, vector
        value, gradients = self(*tensors)
        return value, torch.cat([each.flatten() for each in gradients if each is not None])


def _with_onednn(graph: GraphModule, inputs: Sequence[torch.Tensor]) -> GraphModule:
    """The graph with large products by oneDNN, or as it is on a machine that cannot run that."""
    fast = with_onednn(graph)
    if fast is not graph:
        try:
            with torch.no_grad():
                fast(*inputs)
        except RuntimeError:
            return graph
    return fast


def scripted(graph: GraphModule, inputs: Sequence[torch.Tensor]) -> Callable[..., Any]:
    """A function that runs operations in TorchScript's interpreter.

    `torch.jit.trace` would keep each function until the process ends, a few megabytes of memory.
    """

    def function(*tensors: torch.Tensor) -> Any:
        return graph(*tensors)

    names = [f"tensor_{index}" for index in range(len(inputs))]
    found, _ = torch._C._create_graph_by_tracing(
        function, tuple(inputs), lambda value: "", True, False, None, names
    )
    return torch._C._create_function_from_graph("replay", found)


def record(
    loss: Loss,
    parameters: Sequence[torch.Tensor],
    buffers: Sequence[torch.Tensor],
    inputs: Sequence[torch.Tensor],
    *,
    zeros: bool = False,
    bfloat16: bool = False,
) -> Recording | None:
    """The operations that compute a loss and its gradients.

    The buffers and the stream of random numbers are left as they were.

    Args:
        loss: The loss as a function of a minibatch and of the temperature.
        parameters: The tensors of the gradients.
        buffers: Other tensors that the loss uses and may change.
        inputs: The columns of a minibatch, and the temperature.
        zeros: Whether the gradients of parameters that are not used are zeros, and not None.
        bfloat16: Whether large products are of numbers in bfloat16.

    Returns:
        The recording, or None if the loss cannot be recorded.
    """

    def function(*tensors: torch.Tensor) -> list[torch.Tensor | None]:
        *batch, temperature = tensors[-len(inputs) :]
        value = loss(tuple(batch), temperature)
        learned = tensors[: len(parameters)]
        gradients = torch.autograd.grad(value, learned, allow_unused=True, materialize_grads=zeros)
        return [value.detach(), *gradients]

    alone = torch.random.fork_rng(devices=devices_of(inputs))
    try:
        with unchanged(buffers), alone, without_warnings(Warning):
            copies = [value.clone() for value in inputs]  # new tensors, see `evaluated_once`
            tensors = [*parameters, *buffers, *copies]
            return Recording(traced(function, *tensors), tensors, bfloat16=bfloat16)
    except Exception:  # whatever a model does that a graph cannot
        return None


def devices_of(tensors: Sequence[torch.Tensor]) -> list[torch.device]:
    """The GPU of tensors, whose random numbers have a stream of their own."""
    return [tensors[0].device] if on_gpu(tensors) else []
