"""Stories in files of one's own: written from a shipped one, read, and their errors explained.

A story file is Python. It defines a class ``Story``, an ``nn.Module`` with the methods ``model``
and ``guide``, whose constructor's arguments are filled by name.
"""

import inspect
import sys
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from torch import nn

from pyro_moe.inference.errors import DataError

from .shipped import source_of

_MODULE = "pyro_moe story file"  # the name of every story file's module, by which frames are known


@dataclass(frozen=True)
class StoryFile:
    """A story file that was read.

    Attributes:
        name: The file's name, such as ``"my_story.py"``.
        content: The file, byte by byte.
        story: Its class ``Story``.
    """

    name: str
    content: bytes
    story: type[nn.Module]


def write(path: str | Path, story: str) -> Path:
    """Write the whole of a story into a file to be edited: model, guide, equations, assumptions.

    Args:
        path: The file, which must not be there yet; its folder is made if need be.
        story: One of the shipped `STORIES`, whose own source is written.

    Returns:
        The path.

    Raises:
        DataError: If the file is there, or cannot be written, or its name does not end in .py.
        ValueError: If there is no such story.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     story = read(write(Path(folder, "my_story.py"), "gmm")).story
        >>> story(x_dim=2, num_components=3).mixture.loc.shape
        torch.Size([3, 2])
    """
    path = Path(path)
    text = source_of(story)
    if path.suffix != ".py":
        raise DataError(f"expected the name of a file that ends in .py; got {path}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError as error:
        raise DataError(f"expected a file that is not there yet; got {error.filename}") from error
    except OSError as error:
        raise DataError(
            f"expected a file that can be written; got {path} ({error.strerror})"
        ) from error
    return path


def read(path: str | Path) -> StoryFile:
    """Execute a story file, which can do whatever a program can, and take its class ``Story``.

    Args:
        path: The file. Nothing is written beside it.

    Raises:
        DataError: If the file cannot be read, is no Python, or defines no such class. What it
            raises itself is passed on.
    """
    path = Path(path)
    try:
        content = path.read_bytes()
        code = compile(content, str(path), "exec", dont_inherit=True)
    except OSError as error:
        raise DataError(f"expected a story file; got {path} ({error.strerror})") from error
    except (SyntaxError, ValueError) as error:
        where = f" in line {error.lineno}" if isinstance(error, SyntaxError) else ""
        raise DataError(f"expected Python in {path}; got {error.args[0]}{where}") from error
    module = ModuleType(_MODULE)
    module.__file__ = str(path)
    sys.modules[_MODULE] = module  # where dataclasses look for the names of their own file
    try:
        exec(code, module.__dict__)  # noqa: S102
    finally:
        sys.modules.pop(_MODULE, None)
    return StoryFile(path.name, content, _story_of(module, path))


def _story_of(module: ModuleType, path: Path) -> type[nn.Module]:
    story = getattr(module, "Story", None)
    if not (inspect.isclass(story) and issubclass(story, nn.Module)):
        got = "none" if story is None else repr(story)
        raise DataError(f"expected a class Story, an nn.Module, in {path}; got {got}")
    for name in ("model", "guide"):
        if not callable(getattr(story, name, None)):
            raise DataError(f"expected a method {name!r} of Story in {path}; got none")
    return story


def explain(error: BaseException) -> str | None:
    """What a story file did wrong, in one line with the number of its line.

    Args:
        error: What was raised.

    Returns:
        The line, or None if no story file was running when it was raised.
    """
    for cause in reversed(list(_chain(error))):
        frames = [
            (frame, number)
            for frame, number in traceback.walk_tb(cause.__traceback__)
            if frame.f_globals.get("__name__") == _MODULE
        ]
        if frames:
            frame, number = frames[-1]
            path = frame.f_code.co_filename
            message = (str(error).splitlines() or [""])[0]
            if message.startswith("expected "):
                return f"{message}, in line {number} of {path}"
            reason = (str(cause).splitlines() or [""])[0]
            return f"expected {path} to run; got {type(cause).__name__} in line {number}: {reason}"
    return None


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """An error, the one that it came from, and so on."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
