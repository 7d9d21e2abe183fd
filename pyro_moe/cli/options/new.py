"""The options of ``pyro-moe new``."""

from typing import Any

from .names import STORIES


def add(commands: Any) -> None:
    """Add the command to the parsers of commands."""
    parser = commands.add_parser("new", help="write the source code of a story to a file")
    parser.add_argument("file", metavar="FILE", help="the file to write, such as my_story.py")
    parser.add_argument(
        "--from",
        dest="story",
        required=True,
        choices=STORIES,
        metavar="STORY",
        help="the story: %(choices)s",
    )
