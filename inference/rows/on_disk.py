"""Rows in files that are mapped into memory, and read block by block."""

import math
import mmap
import os
import tempfile
import weakref
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any, cast

import torch

from ..errors import DataError

IN_MEMORY = 2**22  # bytes of rows that are not left on disk
READ = 2**22  # bytes that are read before their pages are given back
PAGES = 2**19  # bytes that the system may map for one row


class OnDisk(torch.Tensor):
    """N rows in a file, a tensor of shape (N, …).

    What is read by an index, a slice or `split` is a tensor in memory. Other operations of torch
    read all rows. The pages that were read are given back to the system now and then, so that
    memory in use does not grow with the rows. A file of our own is removed with its last tensor.
    Rows here and there are read from it one by one, because the system maps many pages for each.
    """

    _pages: mmap.mmap | None
    _file: int | None
    _first: int
    _read: int

    @staticmethod
    def of(
        rows: torch.Tensor,
        pages: mmap.mmap | None = None,
        file: int | None = None,
        first: int = 0,
    ) -> "OnDisk":
        """Rows whose memory is a file.

        Args:
            rows: The rows, shape (N, …).
            pages: The mapped file, whose pages are given back; None to keep them.
            file: Its descriptor, if the file has such rows one after another and nothing else.
            first: The number of the first row in the file.
        """
        found = rows.as_subclass(OnDisk)
        found._pages, found._file, found._first, found._read = pages, file, first, 0
        return found

    @classmethod
    def __torch_function__(
        cls, function: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Results are tensors in memory."""
        with torch._C.DisableTorchFunctionSubclass():
            result = function(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor):
            for rows in args:
                if isinstance(rows, OnDisk):
                    rows._has_read(rows.numel() * rows.element_size())
        return result

    def __getitem__(self, index: Any) -> torch.Tensor:
        """Some rows, in memory. Rows here and there are read a few at a time."""
        if isinstance(index, slice) and index.step not in (None, 1):
            index = torch.arange(*index.indices(len(self)))
        if isinstance(index, torch.Tensor) and index.dtype == torch.bool:
            index = index.nonzero().flatten()
        if isinstance(index, torch.Tensor):
            one_by_one = self._file is not None and index.dim() == 1
            most = 4096 if one_by_one else max(1, READ // PAGES)
            if len(index) > most:
                return torch.cat([self[some] for some in index.split(most)])
            if one_by_one:
                return self._one_by_one(index)
        with torch._C.DisableTorchFunctionSubclass():
            rows = super().__getitem__(index)
            found = rows.clone() if rows._is_view() else rows
            apart = len(index) * PAGES if isinstance(index, torch.Tensor) else 0
            self._has_read(max(apart, found.numel() * found.element_size()))
            return found

    def _one_by_one(self, index: torch.Tensor) -> torch.Tensor:
        """Rows of these numbers, read from the file."""
        file, size = cast(int, self._file), self.element_size() * self.shape[1:].numel()
        numbers = torch.where(index < 0, index + len(self), index)
        beyond = (numbers < 0) | (numbers >= len(self))
        if beyond.any():
            raise IndexError(f"expected rows below {len(self)}; got {int(index[beyond][0])}")
        places = ((numbers + self._first) * size).tolist()
        read = bytearray().join([os.pread(file, size, place) for place in places])
        if not read:
            return self[:0]
        return torch.frombuffer(read, dtype=self.dtype).view(len(index), *self.shape[1:])

    def __setitem__(self, index: Any, rows: Any) -> None:
        """Write some rows."""
        with torch._C.DisableTorchFunctionSubclass():
            super().__setitem__(index, rows)
            self._has_read(super().__getitem__(index).numel() * self.element_size())

    def split(self, rows: Any, dim: int = 0) -> Any:
        """Blocks of so many rows, each in memory."""
        if dim != 0:
            with torch._C.DisableTorchFunctionSubclass():
                return iter(super().split(rows, dim))
        return (self[first : first + rows] for first in range(0, len(self), rows))

    def part(self, rows: slice) -> "OnDisk":
        """Consecutive rows, on disk."""
        first = self._first + rows.indices(len(self))[0]
        with torch._C.DisableTorchFunctionSubclass():
            return OnDisk.of(super().__getitem__(rows), self._pages, self._file, first)

    def change(self, of: Callable[[torch.Tensor], torch.Tensor]) -> None:
        """Replace each block of rows by a function of it."""
        rows = _block(self)
        for first in range(0, len(self), rows):
            self[first : first + rows] = of(self[first : first + rows])

    def to(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """The rows in another type, on disk; or else as `torch.Tensor.to`."""
        (dtype,) = args if len(args) == 1 and not kwargs else (None,)
        if not isinstance(dtype, torch.dtype):
            with torch._C.DisableTorchFunctionSubclass():
                return super().to(*args, **kwargs)
        if dtype == self.dtype:
            return self
        (found,) = stored((part.to(dtype),) for part in self.split(_block(self)))
        return found

    def double(self) -> torch.Tensor:
        """The rows in double precision, on disk."""
        return self.to(torch.float64)

    def _has_read(self, size: int) -> None:
        self._read += size
        if self._pages is not None and self._read >= READ:
            give_back(self._pages)
            self._read = 0


def give_back(pages: mmap.mmap) -> None:
    """Let the system have the pages of a mapped file, which it reads again when it has to."""
    if hasattr(mmap, "MADV_DONTNEED"):
        pages.madvise(mmap.MADV_DONTNEED)


def stored(blocks: Iterable[Sequence[torch.Tensor]]) -> tuple[torch.Tensor, ...]:
    """Write blocks of rows to temporary files, one for each column.

    Args:
        blocks: The columns of some rows, and of the rows after them.

    Returns:
        The columns of all rows: on disk, or in memory if they are small.

    Raises:
        DataError: If there are no rows, if blocks differ in the number, types or widths of
            columns, or if a file cannot be written.
    """
    like: list[torch.Tensor] = []
    files: list[Any] = []
    number = 0
    with ExitStack() as stack:
        for block in blocks:
            if not files:
                files = [stack.enter_context(_temporary()) for _ in block]
                like = [column[:0].clone() for column in block]
            _expect_alike(block, like, number)
            for file, column in zip(files, block, strict=True):
                _write(file, column)
            number += len(block[0])
        if not number:
            raise DataError("expected rows of data; got none")
        return tuple(
            _mapped(file, (number, *column.shape[1:]), column.dtype)
            for file, column in zip(files, like, strict=True)
        )


def empty(shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
    """A tensor in a temporary file, with undefined values, in memory if it is small.

    Raises:
        DataError: If the disk has no room for it.
    """
    size = math.prod(shape) * dtype.itemsize
    if size <= IN_MEMORY:
        return torch.empty(*shape, dtype=dtype)
    with _temporary() as file:
        try:
            os.posix_fallocate(file.fileno(), 0, size)
        except OSError as error:
            raise _no_room(error) from error
        return _mapped(file, shape, dtype)


def _mapped(file: Any, shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
    file.seek(0, os.SEEK_END)
    if file.tell() <= IN_MEMORY:
        file.seek(0)
        return torch.frombuffer(bytearray(file.read()), dtype=dtype).view(*shape)
    file.flush()
    pages = mmap.mmap(file.fileno(), 0)
    descriptor = os.dup(file.fileno())
    weakref.finalize(pages, os.close, descriptor)
    return OnDisk.of(torch.frombuffer(pages, dtype=dtype).view(*shape), pages, descriptor)


def _temporary() -> IO[bytes]:
    """A file without a name, in a folder that is not in memory if there is one."""
    folder = Path("/var/tmp")  # noqa: S108 - the file has no name there
    use = "TMPDIR" not in os.environ and os.access(folder, os.W_OK)
    return tempfile.SpooledTemporaryFile(IN_MEMORY, dir=str(folder) if use else None)


def _write(file: IO[bytes], column: torch.Tensor) -> None:
    try:
        file.write(column.detach().cpu().contiguous().numpy().data.cast("B"))
    except OSError as error:
        raise _no_room(error) from error


def _no_room(error: OSError) -> DataError:
    return DataError(
        f"expected room for the rows in {tempfile.gettempdir()}; got {error.strerror}: set TMPDIR "
        "to a folder of another disk"
    )


def _expect_alike(block: Sequence[torch.Tensor], like: Sequence[torch.Tensor], first: int) -> None:
    found, expected = ([_kind(column) for column in columns] for columns in (block, like))
    if found != expected:
        raise DataError(
            f"expected blocks of {', '.join(expected)}; got {', '.join(found)} from row {first} on"
        )


def _kind(column: torch.Tensor) -> str:
    return f"{str(column.dtype).removeprefix('torch.')} {tuple(column.shape[1:])}"


def _block(column: torch.Tensor) -> int:
    return max(1, 2**18 // max(1, column.shape[1:].numel()))
