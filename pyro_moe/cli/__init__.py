"""The command line: ``pyro-moe fit``, ``check``, ``compare`` and others.

Each command is a module with two functions: ``add`` defines the parser, and ``run`` executes the
command.
"""

import argparse
import io
import sys
import warnings
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

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
  pyro-moe compare runs/dvmoe-table runs/my_story-table
  pyro-moe report runs/my_story-table
  pyro-moe reproduce table1 --quick
  pyro-moe demo
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command. Expected errors are printed in one line.

    Args:
        argv: The arguments after ``pyro-moe``; those of this process if None.

    Returns:
        The exit code: 0 for success, 2 for an error in the command, its data or a story file, and
        130 for an interruption outside training.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # of an encoding that may lack some letters
            stream.reconfigure(errors="backslashreplace")
    try:
        options = parser().parse_args(argv)
        with warnings.catch_warnings():
            warnings.showwarning = _say
            options.command(options)
    except KeyboardInterrupt:
        return _fail("interrupted", 130)
    except Exception as error:
        message = story_file.explain(error)
        if message is None and not isinstance(error, _EXPECTED):
            raise
        return _fail(" ".join((message or str(error)).split()), 2)
    return 0


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
