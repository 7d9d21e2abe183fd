"""The files of a run folder, and the settings, which bind them by their SHA-256."""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

from pyro_moe.inference.errors import DataError

PARAMETERS = "parameters.safetensors"
SETTINGS = "settings.json"
HISTORY = "history.csv"
SCORES = "scores.json"
TRAINING = "training.safetensors"
PARAM = "pyro.param."  # how the names of values of `pyro.param` begin
STORY = "story.py"  # only of a story file
BOUND = (PARAMETERS, HISTORY, SCORES, TRAINING)  # with their SHA-256 in the settings
FILES = (*BOUND, SETTINGS, STORY)
# What is drawn from a run, and goes with it.
DERIVED = (
    "report.html",
    "history.png",
    "latent_map.png",
    "reconstructions.png",
    "generated.png",
    "hierarchy.png",
    "gate_map.png",
    "predictions.png",
)
_DIGEST = b',\n  "sha256": "'  # of all bytes before the digest, at the end of the settings
_END = b'"\n}\n'


def of_file(name: str) -> bool:
    """Whether the name of a story is that of a story file."""
    return name.endswith(".py")


def digest(content: bytes) -> str:
    """The SHA-256 of a content in hexadecimal digits."""
    return hashlib.sha256(content).hexdigest()


def as_json(content: Mapping[str, Any]) -> bytes:
    """Text in JSON, with numbers of numpy and torch as those of Python, and records as mappings.

    Raises:
        ValueError: If a value is none of what JSON supports.
    """
    return (json.dumps(content, indent=2, default=_as_plain) + "\n").encode()


def _as_plain(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    try:
        return value.item()
    except (AttributeError, RuntimeError, ValueError):
        raise ValueError(
            f"expected texts, numbers and lists, to be saved; got {type(value).__name__}"
        ) from None


def sealed(settings: Mapping[str, Any], files: Mapping[str, bytes]) -> bytes:
    """The content of ``settings.json``, with the SHA-256 of each file and of itself."""
    bound = {**settings, "files": {name: digest(content) for name, content in files.items()}}
    head = as_json(bound).removesuffix(b"\n}\n") + _DIGEST
    return head + digest(head).encode() + _END


def is_sealed(content: bytes) -> bool:
    """Whether no byte of the settings has changed since they were saved."""
    head, mark, _ = content.rpartition(_DIGEST)
    return content == head + mark + digest(head + mark).encode() + _END


def files_of_run(folder: Path) -> set[str]:
    """The names in a folder that belong to its run, whole or damaged; empty without a run."""
    try:
        settings = (folder / SETTINGS).read_bytes()
    except OSError:
        return set()
    if b'"story_arguments"' not in settings:  # settings of another program
        return set()
    has_code = re.search(rb'"story": "[^"\n]*\.py"', settings)
    return {*BOUND, SETTINGS, *([STORY] if has_code else []), *DERIVED}


def damaged(folder: Path, name: str, reason: object) -> DataError:
    """The error of a run folder with a file that is missing or not as it was saved."""
    if isinstance(reason, Exception):
        reason = f"{type(reason).__name__}: {reason}"
    words = " ".join(str(reason).split())
    if len(words) > 400:
        words = words[:400] + "…"
    return DataError(f"expected a run folder with valid files; got {folder} ({name}: {words})")
