"""The options of each command, a file for each. Nothing here imports torch, which takes seconds."""

import argparse
from functools import partial
from importlib import import_module
from importlib.metadata import version
from typing import Any

from . import check, compare, demo, fit, new, predict, report, reproduce, select

__all__ = ["parser"]

COMMANDS = (new, fit, select, predict, check, compare, report, reproduce, demo)

EXAMPLES = """examples:
  pyro-moe fit dmvae --data spiral
  pyro-moe fit dmvae --data digits --initialize tsne --out runs/digits
  pyro-moe fit vade --data mnist --data-dir folder/of/mnist --epochs 30
  pyro-moe fit gmm --data table.csv --num-components 4
  pyro-moe fit dvmoe --data table.csv --target price
  pyro-moe select me gmmmoe --data table.csv --target price --num-components 1 2 3
  pyro-moe predict runs/dvmoe-table --data new.csv --out predictions.csv
  pyro-moe check runs/dvmoe-table
  pyro-moe new my_story.py --from dvmoe
  pyro-moe fit my_story.py --data table.csv --target price
  pyro-moe compare runs/dvmoe-table runs/my_story-table --trust
  pyro-moe report runs/my_story-table --trust
  pyro-moe reproduce table1 --quick
  pyro-moe demo
"""


class _Parser(argparse.ArgumentParser):
    """A parser that raises `ValueError`, for `pyro_moe.cli.main` to print."""

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
    for name, each in commands.choices.items():
        each.set_defaults(command=partial(_run, name))
    return whole


def _run(name: str, options: argparse.Namespace) -> Any:
    """Import a command, and run it."""
    return import_module(f"pyro_moe.cli.{name}").run(options)
