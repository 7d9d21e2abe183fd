"""``pyro-moe new``: creation of a story file to be edited."""

import argparse
from typing import Any

from pyro_moe import runs
from pyro_moe.runs import story_file

from . import choices


def add(commands: Any) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser("new", help="write the source code of a story to a file")
    parser.add_argument("file", metavar="FILE", help="the file to write, such as my_story.py")
    parser.add_argument(
        "--from",
        dest="story",
        required=True,
        choices=tuple(runs.STORIES),
        metavar="STORY",
        help="the story: %(choices)s",
    )
    parser.set_defaults(command=run)


def run(options: argparse.Namespace) -> None:
    """Write the file, and print the command that fits it."""
    path = story_file.write(options.file, options.story)
    line = f"pyro-moe fit {path} --data TABLE.csv"
    if choices.has_target(choices.parameters(story_file.read(path).story)):
        line += " --target COLUMN"
    print(f"{path}: the source code of {options.story}. Edit it, then run")
    print(f"  {line}")
