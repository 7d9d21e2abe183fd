"""Loss and gradients of minibatches, recorded once for each shape and then replayed."""

import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import torch
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import make_fx

from ..context import unchanged, without_warnings
from .compiled import CACHED, compiled, seconds_saved, seconds_to_compile
from .flat import MOST
from .products import with_linear, with_onednn
from .simplify import simplify

Batch = tuple[torch.Tensor, ...]
Loss = Callable[[Batch, torch.Tensor], torch.Tensor]
WORTHWHILE = 200
WIDE = 1e-4  # of the norm of the gradients


class Gradients:
    r"""The loss of a minibatch and its gradients, :math:`L(\theta)` and :math:`\nabla L(\theta)`.

    Most of the time of a small model's step is spent on Pyro's handlers and on autograd. Their
    result is the same sequence of tensor operations at every step. It is recorded once for each
    shape of a minibatch, if enough steps follow, and replayed from then on.

    Not every model can be replayed. One may branch on the values of its tensors, call other
    libraries, or count its own calls. Recording then fails, or the replay differs. At the 1st, 2nd,
    4th, 8th, … replay, the step is therefore evaluated in both ways. If they ever differ, the
    model is evaluated at every step. The gradients are then always those of the model itself.

    Large products of matrices are computed by oneDNN, see `with_onednn`, or a recording is
    compiled, see `compiled`. The gradients are then equal to those of the model up to rounding.

    A copy of this object has no recordings.

    Args:
        compile: Whether recordings are compiled; ``"auto"`` if it is expected to save time.
        say: A function that is told, in a line, what is compiled or why not.
    """

    def __init__(
        self, compile: bool | str = False, say: Callable[[str], None] | None = None
    ) -> None:
        self.compile, self.say = compile, say
        self.vector: torch.Tensor | None = None
        self._recorded: dict[Any, Recording | None] = {}
        self._replays: Counter[Any] = Counter()
        self._differed = False

    def __reduce__(self) -> tuple[type["Gradients"], tuple[bool | str]]:
        return Gradients, (self.compile,)

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
        steps: float,
        *,
        one_vector: bool = False,
    ) -> float:
        """The loss. The gradients are set as the parameters' ``grad``, or as `vector`.

        Args:
            evaluate: A function that does this by Pyro and autograd.
            loss: The loss as a function of a minibatch and of the temperature, which uses the
                parameters and buffers.
            parameters: The tensors of the gradients.
            buffers: Other tensors that the loss uses and may change.
            batch: The rows of each column.
            temperature: τ of a relaxed ``c``.
            steps: Steps of the run with minibatches of this shape.
            one_vector: Whether the gradients may be one vector.
        """
        self.vector = None
        key = len(parameters), *((column.shape, column.dtype) for column in batch)
        if self._differed or (key not in self._recorded and steps < WORTHWHILE):
            return evaluate()
        inputs = [*batch, torch.tensor(temperature, dtype=torch.float64, device=batch[0].device)]
        tensors = [*parameters, *buffers, *inputs]
        if key not in self._recorded:
            recording = record(loss, parameters, buffers, inputs)
            self._recorded[key] = recording
            if recording is not None:
                self.compile_if_useful(recording, tensors, len(batch[0]), steps)
        replay = self._recorded[key]
        if replay is None:
            return evaluate()
        self._replays[key] += 1
        number = self._replays[key]
        if number & (number - 1):  # not a power of two
            if one_vector and replay.compiled and replay.whole:
                value, self.vector = replay.as_vector(*tensors)
                return value.item()
            value, gradients = replay(*tensors)
            _set(parameters, gradients)
            return value.item()
        with torch.random.fork_rng(devices=_devices(inputs)):
            copies = [value.clone() for value in buffers]
            value, gradients = replay(*parameters, *copies, *inputs)
        direct = evaluate()
        self._differed = not alike(gradients, [parameter.grad for parameter in parameters])
        if self._differed or replay.exact:
            return direct
        _set(parameters, gradients)  # so that a run that is resumed has the same results
        with torch.no_grad():
            for buffer, other in zip(buffers, copies, strict=True):
                buffer.copy_(other)
        return value.item()

    def compile_if_useful(
        self, recording: "Recording", tensors: list[torch.Tensor], rows: int, steps: float
    ) -> None:
        """Compile a recording, if that was asked for or saves time, and say so.

        Args:
            recording: The recording.
            tensors: Its arguments.
            rows: Rows of a minibatch.
            steps: The number of its calls.
        """
        if not self.compile:
            return
        say = self.say or (lambda line: None)
        saved = seconds_saved(recording.graph) * steps
        if self.compile == "auto":
            # Importing the compiler takes longer, or products of large matrices take all the time.
            if saved < CACHED or sum(value.numel() for value in tensors) > MOST:
                return
            expected = seconds_to_compile(recording.graph, tensors)
            if saved < expected:
                say(
                    f"steps of {rows} rows are not compiled, because that would take about "
                    f"{expected:.0f} s and save {saved:.0f} s"
                )
                return
        started = time.perf_counter()
        with torch.random.fork_rng(devices=_devices(tensors)):
            problem = recording.compile(tensors)
        seconds = time.perf_counter() - started
        done = f"compiled in {seconds:.0f} s, to save about {saved:.0f} s"
        say(f"steps of {rows} rows are {f'not compiled: {problem}' if problem else done}")


class Recording:
    """A recorded loss and its gradients, a function of the tensors that it was recorded with.

    The operations run in TorchScript's interpreter, which takes less time for each than Python
    does. It does not know the gradients of convolutions and of batch normalization.

    Its results are ``exact``, those of the graph bit for bit, or equal up to rounding.

    Args:
        graph: The operations. Their results are the loss and the gradients.
        inputs: Tensors to try it with.
    """

    def __init__(self, graph: GraphModule, inputs: Sequence[torch.Tensor]) -> None:
        (output,) = graph.graph.find_nodes(op="output")
        self._known = [result is not None for result in output.args[0][1:]]
        output.args = ([result for result in output.args[0] if result is not None],)
        graph.recompile()
        self.graph, self.compiled, self.whole = graph, False, all(self._known)
        fast = _with_onednn(graph, inputs)
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
            self._run = compiled(self.graph, inputs, onednn=not self.exact)
        except Exception as error:  # whatever a compiler or its absence leads to
            return f"{type(error).__name__}: {error}".splitlines()[0]
        self._shapes = [value.shape for value in self._learned(inputs)]
        self.compiled, self.exact = True, False
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
) -> Recording | None:
    """The operations that compute a loss and its gradients.

    The buffers and the stream of random numbers are left as they were.

    Args:
        loss: The loss as a function of a minibatch and of the temperature.
        parameters: The tensors of the gradients.
        buffers: Other tensors that the loss uses and may change.
        inputs: The columns of a minibatch, and the temperature.
        zeros: Whether the gradients of parameters that are not used are zeros, and not None.

    Returns:
        The recording, or None if the loss cannot be recorded.
    """

    def function(*tensors: torch.Tensor) -> list[torch.Tensor | None]:
        *batch, temperature = tensors[-len(inputs) :]
        value = loss(tuple(batch), temperature)
        learned = tensors[: len(parameters)]
        gradients = torch.autograd.grad(value, learned, allow_unused=True, materialize_grads=zeros)
        return [value.detach(), *gradients]

    alone = torch.random.fork_rng(devices=_devices(inputs))
    try:
        with unchanged(buffers), alone, without_warnings(Warning):
            copies = [value.clone() for value in inputs]  # new tensors, see `evaluated_once`
            tensors = [*parameters, *buffers, *copies]
            return Recording(simplify(make_fx(function)(*tensors)), tensors)
    except Exception:  # whatever a model does that a graph cannot
        return None


def _set(parameters: Sequence[torch.Tensor], gradients: Sequence[torch.Tensor | None]) -> None:
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient


def _devices(tensors: Sequence[torch.Tensor]) -> list[torch.device]:
    return [tensors[0].device] if tensors[0].is_cuda else []


def alike(gradients: Sequence[torch.Tensor | None], others: Sequence[torch.Tensor | None]) -> bool:
    """Whether gradients are equal up to rounding.

    A small gradient may be the difference of large terms. The rounding error of the largest
    gradients is therefore no difference. In wide networks a rounding error can turn single units
    on or off, so that a few gradients differ by more. There only the norm of all differences is
    compared with that of all gradients.
    """
    if [one is None for one in gradients] != [other is None for other in others]:
        return False
    ours, theirs = ([each for each in of if each is not None] for of in (gradients, others))
    pairs, norm = list(zip(ours, theirs, strict=True)), torch.nn.utils.get_total_norm(theirs)
    if not norm.isfinite():
        return False
    if sum(one.numel() for one in ours) <= MOST:
        return all(_equal(one, other, norm) for one, other in pairs)
    error = torch.nn.utils.get_total_norm([one - other for one, other in pairs])
    return bool(error <= WIDE * norm)


def _equal(one: torch.Tensor, other: torch.Tensor, norm_of_all: torch.Tensor) -> bool:
    rounding = torch.finfo(other.dtype).eps * float(norm_of_all)
    tolerance = {"rtol": 1e-4, "atol": 1e-5 * float(other.double().norm()) + rounding}
    return torch.allclose(one.double(), other.double(), equal_nan=True, **tolerance)
