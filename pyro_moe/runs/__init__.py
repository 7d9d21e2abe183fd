"""Run folders and story files.

A run folder has the parameters, settings, history and scores of a fit in standard file formats:
``parameters.safetensors``, ``settings.json``, ``history.csv``, ``scores.json`` and
``training.safetensors``, a summary of the training rows. It has no rows. It also has ``story.py``
if the story was read from a story file. The settings have the SHA-256 of each file and of
themselves. A run with a file that is missing, truncated or changed is not loaded.
"""

from pyro_moe.stories import STORIES

from .loading import load
from .reading import settings_of
from .restoring import fit_of, restore
from .saving import save
from .story_file import StoryFile
from .swap import writer

__all__ = [
    "STORIES",
    "StoryFile",
    "fit_of",
    "load",
    "restore",
    "save",
    "settings_of",
    "writer",
]
