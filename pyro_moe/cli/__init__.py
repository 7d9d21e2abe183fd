"""The command line: ``pyro-moe fit``, ``check``, ``compare`` and others.

Each command is a module with a function ``run``, which executes it. Its options are in a module of
the same name in `options`. They are parsed before the command is imported, and torch with it.
"""

import argparse
import io
import os
import signal
import sys
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from pyro_moe.text import in_one_line

from .options import parser

__all__ = ["main", "parser"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command. Expected errors are printed in one line.

    Args:
        argv: The arguments after ``pyro-moe``; those of this process if None.

    Returns:
        The exit code: 0 for success, 2 for an error in the command, its data or a story file, and
        130 for an interruption by Ctrl-C or SIGTERM.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # of an encoding that may lack some letters
            stream.reconfigure(errors="backslashreplace")
    try:
        options = parser().parse_args(argv)
    except ValueError as error:
        return _fail(" ".join(str(error).split()), 2)
    try:
        with _terminated_as_interrupted():
            return _run(options)
    except KeyboardInterrupt as interruption:
        return _fail(str(interruption) or "interrupted", 130)


def _run(options: argparse.Namespace) -> int:
    """Run a command, for which torch is imported."""
    from pyro_moe.inference.context import as_started
    from pyro_moe.inference.errors import SiteError
    from pyro_moe.runs import story_file

    try:
        with as_started(), warnings.catch_warnings():
            warnings.showwarning = _say
            options.command(options)
            sys.stdout.flush()
    except BrokenPipeError:  # whoever reads the output, such as head, has enough of it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        message = story_file.explain(error)
        if message is None and not isinstance(
            error, SiteError | ValueError | ImportError | OSError
        ):
            raise
        return _fail(" ".join((message or str(error)).split()), 2)
    return 0


@contextmanager
def _terminated_as_interrupted() -> Iterator[None]:
    """Handle SIGTERM like Ctrl-C in this block."""
    if threading.current_thread() is not threading.main_thread():
        yield  # other threads have no handlers
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _say(message: Warning | str, *_: Any, **__: Any) -> None:
    print(f"pyro-moe: {in_one_line(str(message), longest=None)}", file=sys.stderr)


def _fail(message: str, code: int) -> int:
    _say(message)
    return code
