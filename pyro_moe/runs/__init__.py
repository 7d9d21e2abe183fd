"""Run folders and story files."""

from .folder import fit_of, load, prepare, restore, save, settings_of
from .shipped import STORIES
from .story_file import StoryFile

__all__ = [
    "STORIES",
    "StoryFile",
    "fit_of",
    "load",
    "prepare",
    "restore",
    "save",
    "settings_of",
]
