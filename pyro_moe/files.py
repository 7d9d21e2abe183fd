"""Files that are written whole or not at all, and folders that do not stay empty."""

import json
import os
import secrets
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pyro_moe.inference.errors import DataError

TEMPORARY = ".pyro-moe-"  # how the names of files and folders begin while they are written


def temporary(folder: Path) -> Path:
    """A new name in a folder, for what is not yet whole."""
    return folder / f"{TEMPORARY}{secrets.token_hex(8)}"


def write(path: str | Path, content: bytes) -> Path:
    """Write a file beside the path and move it there. If that fails, the old file is left as it is.

    The permissions are those of a new file. Devices and pipes are written directly.

    Args:
        path: The file.
        content: Its content.

    Returns:
        The path.

    Raises:
        DataError: If the file cannot be written.

    Example:
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write(Path(folder, "my.txt"), b"words").read_bytes()
        b'words'
    """
    path = Path(path)
    try:
        if path.is_relative_to("/dev") or (path.exists() and not path.is_file()):
            path.write_bytes(content)
        else:
            _replace(Path(os.path.realpath(path)), content)
    except OSError as error:
        raise not_written(path, error) from error
    return path


def not_written(path: Path, error: OSError) -> DataError:
    """The error that says which file could not be written, and why."""
    reason = error.strerror or type(error).__name__
    return DataError(f"expected a file that can be written; got {path} ({reason})")


def _replace(path: Path, content: bytes) -> None:
    beside = temporary(path.parent)
    try:
        create(beside, content)
        beside.replace(path)
    finally:
        with suppress(OSError):
            beside.unlink(missing_ok=True)


def create(path: Path, content: bytes) -> None:
    """Write a file that does not exist, down to the disk.

    Raises:
        OSError: If it exists or cannot be written.
    """
    with path.open("xb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def metadata(content: bytes) -> dict[str, str]:
    """The metadata of a safetensors file: its header is preceded by its length.

    Args:
        content: The content of a file that `safetensors.torch.load` accepts.
    """
    end = 8 + int.from_bytes(content[:8], "little")
    return json.loads(content[8:end]).get("__metadata__", {})


@contextmanager
def folder(path: str | Path) -> Iterator[Path]:
    """Create a folder for what will be written in this block, unless it exists.

    At the end of the block, folders that were created and are still empty are removed.

    Args:
        path: The folder.

    Raises:
        DataError: If the folder cannot be written.

    Example:
        >>> with tempfile.TemporaryDirectory() as parent:
        ...     with folder(Path(parent, "new")) as new:
        ...         print(new.exists())
        ...     new.exists()
        True
        False
    """
    path, made = Path(path), []
    try:
        try:
            made = [each for each in (path, *path.parents) if not each.exists()]
            path.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=path):
                pass
        except OSError as error:
            raise DataError(
                f"expected a folder that can be written; got {path} ({error.strerror})"
            ) from error
        yield path
    finally:
        for each in made:  # from the inside out
            with suppress(OSError):
                each.rmdir()  # which only removes an empty folder
