"""``pyro-moe new``: creation of a story file to be edited."""

import argparse

from pyro_moe.runs import story_file
from pyro_moe.stories import parameters

from . import choices


def run(options: argparse.Namespace) -> None:
    """Write the file, and print the command that fits it."""
    path = story_file.write(options.file, options.story)
    line = f"pyro-moe fit {path} --data TABLE.csv"
    if choices.has_target(parameters(story_file.read(path).story)):
        line += " --target COLUMN"
    print(f"{path}: the source code of {options.story}. Edit it, then run")
    print(f"  {line}")
