"""The processes of `torch.distributed` that train one model together, each with its own rows."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

import torch
import torch.distributed as group

_SHARING = ContextVar("rows are shared", default=False)


@dataclass(frozen=True)
class Processes:
    r"""The processes that share the rows of each minibatch.

    .. math:: \nabla L(\theta) = \sum_r \sum_{n \in B_r} \nabla \ell_n(\theta)

    Process r computes the gradients of its rows B_r of the minibatch B. The sums over all
    processes are those of one process with all rows. Outside a process group there is one.

    Attributes:
        rank: The number of this process.
        size: The number of processes.

    Example:
        >>> Processes.running()
        Processes(rank=0, size=1)
    """

    rank: int = 0
    size: int = 1

    @classmethod
    def running(cls) -> "Processes":
        """The default process group of `torch.distributed`, or this process alone."""
        if group.is_available() and group.is_initialized():
            return cls(group.get_rank(), group.get_world_size())
        return cls()

    @classmethod
    def sharing(cls) -> "Processes":
        """The processes that share the rows of a sum within `rows_shared`, or this one alone."""
        return cls.running() if _SHARING.get() else cls()

    @staticmethod
    @contextmanager
    def rows_shared(shared: bool) -> Iterator[None]:
        """Whether tensors in this block have the rows of this process, and sums are of all."""
        before = _SHARING.set(shared)
        try:
            yield
        finally:
            _SHARING.reset(before)

    @classmethod
    @contextmanager
    def launched(cls, device: str | None = None) -> Iterator["Processes"]:
        """The process group that `torchrun` asks for in the environment, if it does.

        Args:
            device: The device of the training. Processes on GPUs use NCCL, others gloo.
        """
        if int(os.environ.get("WORLD_SIZE", "1")) == 1 or group.is_initialized():
            yield cls.running()
            return
        on_gpu = device is not None and torch.device(device).type == "cuda"
        if on_gpu:
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        group.init_process_group("nccl" if on_gpu else "gloo")
        try:
            yield cls.running()
        finally:
            group.destroy_process_group()

    def share(self, rows: torch.Tensor) -> torch.Tensor:
        """The numbers of the rows of this process, out of a minibatch."""
        return rows[self.rank :: self.size] if self.size > 1 else rows

    def part(self, number: int) -> slice:
        """The rows of this process, out of ``number`` rows in their order.

        Example:
            >>> Processes(1, 2).part(5)
            slice(2, 5, None)
        """
        first, last = (number * rank // self.size for rank in (self.rank, self.rank + 1))
        return slice(first, last)

    def add(self, tensors: Sequence[torch.Tensor]) -> None:
        """Replace each floating-point tensor by its sum over the processes, in place."""
        self._reduce(tensors, 1.0)

    def average(self, tensors: Sequence[torch.Tensor]) -> None:
        """Replace each floating-point tensor by its mean over the processes, in place."""
        self._reduce(tensors, 1.0 / self.size)

    def agree(self, value: float) -> float:
        """The value that the first process has."""
        if self.size == 1:
            return value
        told = torch.tensor([value], dtype=torch.float64)
        group.broadcast(told, 0)
        return told.item()

    def expect_alike(self, what: str, tensors: Sequence[torch.Tensor]) -> None:
        """Check that the tensors of all processes have equal sums.

        Raises:
            ValueError: If they have not. All processes raise it.
        """
        if self.size == 1:
            return
        parts = (part for tensor in tensors for part in tensor.split(2**16))
        own = sum(part.double().nan_to_num().sum().item() + len(part) for part in parts)
        different = torch.tensor([float(own != self.agree(own))])
        group.all_reduce(different)
        if different.item():
            raise ValueError(
                f"expected the same {what} in all {self.size} processes; "
                f"got others in {different.item():.0f} of them"
            )

    def _reduce(self, tensors: Sequence[torch.Tensor], factor: float) -> None:
        if self.size == 1 or not tensors:
            return
        # One message for each type: a message takes a time of its own.
        for dtype in dict.fromkeys(tensor.dtype for tensor in tensors):
            alike = [tensor for tensor in tensors if tensor.dtype == dtype]
            flat = torch.cat([tensor.flatten() for tensor in alike])
            group.all_reduce(flat)
            parts = flat.mul_(factor).split([tensor.numel() for tensor in alike])
            for tensor, part in zip(alike, parts, strict=True):
                tensor.copy_(part.view_as(tensor))
