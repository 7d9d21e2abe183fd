"""Story files: creation from a shipped story, reading, and error messages.

A story file is a Python file that defines a class ``Story``, an ``nn.Module`` with the methods
``model`` and ``guide``. The arguments of its constructor are passed by name.
"""

import inspect
import os
import sys
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from torch import nn

from pyro_moe import files
from pyro_moe.inference.errors import DataError

from .shipped import source_of

_MODULE = "pyro_moe story file"  # module name of story files, which identifies their frames


@dataclass(frozen=True)
class StoryFile:
    """A story file that was read.

    Attributes:
        name: Name of the file, such as ``"my_story.py"``.
        content: The bytes of the file.
        story: Its class ``Story``.
    """

    name: str
    content: bytes
    story: type[nn.Module]


def write(path: str | Path, story: str) -> Path:
    """Write the source code of a shipped story to a file to be edited.

    Args:
        path: The file, which must not exist. Its folder is created if necessary.
        story: One of the shipped `STORIES`.

    Returns:
        The path.

    Raises:
        DataError: If the file exists, cannot be written, or has a name that does not end in .py.
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
    with files.folder(path.parent):
        if os.path.lexists(path):
            raise DataError(f"expected a file that does not exist; got {path}")
        return files.write(path, text.encode())


def read(path: str | Path) -> StoryFile:
    """Execute a story file and return its class ``Story``.

    Warning: the file is executed with your permissions.

    Args:
        path: The file. No bytecode is written.

    Raises:
        DataError: If the file cannot be read, is not valid Python, or does not define the class.
            Exceptions of the file's own code are passed on.
    """
    path = Path(path)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"expected a story file; got {path} ({error.strerror})") from error
    return executed(path, content)


def executed(path: Path, content: bytes) -> StoryFile:
    """Execute the content of a story file that was read before, see `read`."""
    try:
        code = compile(content, str(path), "exec", dont_inherit=True)
    except (SyntaxError, ValueError) as error:
        where = f" in line {error.lineno}" if isinstance(error, SyntaxError) else ""
        raise DataError(f"expected Python in {path}; got {error.args[0]}{where}") from error
    module = ModuleType(_MODULE)
    module.__file__ = str(path)
    sys.modules[_MODULE] = module  # dataclasses look up their module here
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
    """Describe an error in a story file in one line, with the line number in the file.

    Args:
        error: The exception.

    Returns:
        The description, or None if the exception was not raised while a story file ran.
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
    """An exception, its cause, the cause of that, and so on."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
