"""Recorded steps as CUDA graphs, which a GPU runs without being told of each operation."""

from collections.abc import Callable, Sequence

import torch

Function = Callable[..., Sequence[torch.Tensor]]
WARM_UP = 3  # calls, in which libraries choose their routines and allocate their memory


def captured(function: Function, inputs: Sequence[torch.Tensor]) -> Function:
    """A function of the same operations, which are captured once and started at once.

    The operations of a small model take less time than it takes to start them one by one. A CUDA
    graph reads and writes always the same memory. The arguments are therefore copied there. Those
    that change in the first calls are copied back, such as the statistics of batch normalization.
    Results are valid until the next call.

    Args:
        function: A function of tensors on a GPU, which never waits for it.
        inputs: Tensors to capture it with.

    Raises:
        RuntimeError: If an operation cannot be captured.
    """
    with torch.cuda.device_of(inputs[0]):
        return _captured(function, inputs)


def on_gpu(tensors: Sequence[torch.Tensor]) -> bool:
    """Whether the first of some tensors, and with it the others, is on a GPU."""
    return tensors[0].is_cuda


def _captured(function: Function, inputs: Sequence[torch.Tensor]) -> Function:
    fixed = [value.detach().clone() for value in inputs]
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.no_grad(), torch.cuda.stream(stream):
        for _ in range(WARM_UP):
            function(*fixed)
    torch.cuda.current_stream().wait_stream(stream)
    pairs = enumerate(zip(fixed, inputs, strict=True))
    changed = [place for place, (after, before) in pairs if not torch.equal(after, before)]
    graph = torch.cuda.CUDAGraph()
    with torch.no_grad(), torch.cuda.graph(graph):
        results = function(*fixed)

    def replay(*tensors: torch.Tensor) -> Sequence[torch.Tensor]:
        with torch.no_grad():
            torch._foreach_copy_(fixed, tensors)
            graph.replay()
            for place in changed:
                tensors[place].copy_(fixed[place])
        return results

    return replay
