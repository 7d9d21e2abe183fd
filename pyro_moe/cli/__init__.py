"""The command line: ``pyro-moe fit``, ``check``, ``compare`` and others.

Each command is a module with two functions: ``add`` defines the parser, and ``run`` executes the
command.
"""

import argparse
import io
import signal
import sys
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from importlib.metadata import version
from typing import Any

import torch

from pyro_moe.inference.context import learning
from pyro_moe.inference.errors import SiteError
from pyro_moe.runs import story_file
from pyro_moe.text import in_one_line

from . import check, compare, demo, fit, new, predict, report, reproduce

__all__ = ["COMMANDS", "main", "parser"]

COMMANDS = (new, fit, predict, check, compare, report, reproduce, demo)

EXAMPLES = """examples:
  pyro-moe fit dmvae --data spiral
  pyro-moe fit dmvae --data digits --initialize tsne --out runs/digits
  pyro-moe fit vade --data mnist --data-dir folder/of/mnist --epochs 30
  pyro-moe fit gmm --data table.csv --num-components 4
  pyro-moe fit dvmoe --data table.csv --target price
  pyro-moe predict runs/dvmoe-table --data new.csv --out predictions.csv
  pyro-moe check runs/dvmoe-table
  pyro-moe new my_story.py --from dvmoe
  pyro-moe fit my_story.py --data table.csv --target price
  pyro-moe compare runs/dvmoe-table runs/my_story-table --trust
  pyro-moe report runs/my_story-table --trust
  pyro-moe reproduce table1 --quick
  pyro-moe demo
"""


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
        with _terminated_as_interrupted(), _torch_as_started(), warnings.catch_warnings():
            warnings.showwarning = _say
            options.command(options)
    except KeyboardInterrupt as interruption:
        return _fail(str(interruption) or "interrupted", 130)
    except Exception as error:
        message = story_file.explain(error)
        if message is None and not isinstance(error, _EXPECTED):
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


@contextmanager
def _torch_as_started() -> Iterator[None]:
    """Torch's settings as in a new process, and afterwards those of the caller."""
    threads, dtype = torch.get_num_threads(), torch.get_default_dtype()
    on_cpu = torch.get_default_device().type == "cpu"
    torch.set_default_dtype(torch.float32)
    try:
        with (
            learning(),
            torch.random.fork_rng(()),
            nullcontext() if on_cpu else torch.device("cpu"),
        ):
            yield
    finally:
        torch.set_num_threads(threads)  # some commands use one
        torch.set_default_dtype(dtype)


_EXPECTED = (SiteError, ValueError, ImportError, OSError)


def _say(message: Warning | str, *_: Any, **__: Any) -> None:
    print(f"pyro-moe: {in_one_line(str(message), longest=None)}", file=sys.stderr)


def _fail(message: str, code: int) -> int:
    _say(message)
    return code


class _Parser(argparse.ArgumentParser):
    """A parser that raises `ValueError`, for `main` to print."""

    def error(self, message: str) -> Any:
        raise ValueError(f"{message}; see {self.prog} --help")


def parser() -> argparse.ArgumentParser:
    """The parser of all commands. Its result has the ``run`` of the command as ``command``."""
    layout = argparse.RawDescriptionHelpFormatter
    whole = _Parser(
        prog="pyro-moe",
        description="Fit mixtures and mixtures of experts with deep generative gates.",
        epilog=EXAMPLES,
        formatter_class=layout,
    )
    whole.add_argument("--version", action="version", version=version("pyro-moe"))
    commands = whole.add_subparsers(required=True, metavar="COMMAND")
    for command in COMMANDS:
        command.add(commands)
    return whole
