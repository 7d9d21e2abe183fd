"""Run folders, and the story files that they may hold."""

from .folder import STORIES, fit_of, load, prepare, restore, save, settings_of
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
