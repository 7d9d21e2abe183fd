"""Loss and gradients of minibatches, recorded once for each shape and then replayed."""

import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import torch

from .captured import on_gpu
from .compiled import CACHED, seconds_saved, seconds_to_compile
from .flat import MOST
from .recording import Batch, Loss, Recording, devices_of, record

WORTHWHILE = 150  # steps, after which tracing them has paid
WIDE, ROUGH = 1e-4, 0.05  # of the norm of the gradients


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
    With large products of numbers in bfloat16, see `with_bfloat16`, they may differ by a twentieth
    of their norm. On a GPU, recordings that have to be compiled are captured, see `captured`. If
    gradients ever differ by more than that, steps are recorded anew without either.

    A copy of this object has no recordings.

    Args:
        compile: Whether recordings are compiled; ``"auto"`` if it is expected to save time.
        bfloat16: Whether large products of matrices are of numbers in bfloat16.
        say: A function that is told, in a line, what is compiled or why not.
    """

    def __init__(
        self,
        compile: bool | str = False,
        bfloat16: bool = False,
        say: Callable[[str], None] | None = None,
    ) -> None:
        self.compile, self.bfloat16, self.say = compile, bfloat16, say
        self.vector: torch.Tensor | None = None
        self._recorded: dict[Any, Recording | None] = {}
        self._replays: Counter[Any] = Counter()
        self._differed, self._captures = False, compile is True

    def __reduce__(self) -> tuple[type["Gradients"], tuple[bool | str, bool]]:
        return Gradients, (self.compile, self.bfloat16)

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
            recording = record(loss, parameters, buffers, inputs, bfloat16=self.bfloat16)
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
        with torch.random.fork_rng(devices=devices_of(inputs)):
            copies = [value.clone() for value in buffers]
            value, gradients = replay(*parameters, *copies, *inputs)
        direct = evaluate()
        same = alike(gradients, [value.grad for value in parameters], rough=replay.rough)
        if not same and (replay.rough or replay.captured):
            self.bfloat16 = self._captures = False
            self._recorded.clear()
            self._replays.clear()
            self._say("gradients differ: steps go on without bfloat16 and CUDA graphs")
            return direct
        self._differed = not same
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
        saved = seconds_saved(recording.graph) * steps
        if self.compile == "auto":
            # Importing the compiler takes longer, or products of large matrices take all the time.
            if saved < CACHED or sum(value.numel() for value in tensors) > MOST:
                return
            expected = seconds_to_compile(recording.graph, tensors)
            if saved < expected:
                self._say(
                    f"steps of {rows} rows are not compiled, because that would take about "
                    f"{expected:.0f} s and save {saved:.0f} s"
                )
                return
        started = time.perf_counter()
        with torch.random.fork_rng(devices=devices_of(tensors)):
            problem = recording.compile(tensors)
        seconds = time.perf_counter() - started
        done = f"compiled in {seconds:.0f} s, to save about {saved:.0f} s"
        self._say(f"steps of {rows} rows are {f'not compiled: {problem}' if problem else done}")
        if self._captures and on_gpu(tensors):
            with torch.random.fork_rng(devices=devices_of(tensors)):
                problem = recording.capture(tensors)
            done = f"not a CUDA graph: {problem}" if problem else "a CUDA graph"
            self._say(f"steps of {rows} rows are {done}")

    def _say(self, line: str) -> None:
        if self.say is not None:
            self.say(line)


def _set(parameters: Sequence[torch.Tensor], gradients: Sequence[torch.Tensor | None]) -> None:
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient


def alike(
    gradients: Sequence[torch.Tensor | None],
    others: Sequence[torch.Tensor | None],
    *,
    rough: bool = False,
) -> bool:
    """Whether gradients are equal up to rounding.

    A small gradient may be the difference of large terms. The rounding error of the largest
    gradients is therefore no difference. In wide networks a rounding error can turn single units
    on or off, so that a few gradients differ by more. There only the norm of all differences is
    compared with that of all gradients. So it is with products of numbers in bfloat16, which are
    ``rough``.
    """
    if [one is None for one in gradients] != [other is None for other in others]:
        return False
    ours, theirs = ([each for each in of if each is not None] for of in (gradients, others))
    pairs, norm = list(zip(ours, theirs, strict=True)), torch.nn.utils.get_total_norm(theirs)
    if not norm.isfinite():
        return False
    if not rough and sum(one.numel() for one in ours) <= MOST:
        return all(_equal(one, other, norm) for one, other in pairs)
    error = torch.nn.utils.get_total_norm([one - other for one, other in pairs])
    return bool(error <= (ROUGH if rough else WIDE) * norm)


def _equal(one: torch.Tensor, other: torch.Tensor, norm_of_all: torch.Tensor) -> bool:
    rounding = torch.finfo(other.dtype).eps * float(norm_of_all)
    tolerance = {"rtol": 1e-4, "atol": 1e-5 * float(other.double().norm()) + rounding}
    return torch.allclose(one.double(), other.double(), equal_nan=True, **tolerance)
