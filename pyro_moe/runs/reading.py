"""Reading of the files of a run folder, none of which may be missing or changed."""

import stat
from pathlib import Path
from typing import Any

from pyro_moe.inference.errors import DataError

from .layout import SETTINGS, damaged, digest, is_sealed
from .schema import settings_from
from .swap import place, recover

ATTEMPTS = 3  # at a run with these settings


def settings_of(folder: str | Path) -> dict[str, Any]:
    """The settings of a run: the content of its ``settings.json``.

    Args:
        folder: A folder written by `save`.

    Raises:
        DataError: If the file is missing or damaged.
    """
    folder = Path(folder)
    recover(folder)
    return _settings(folder, _content(folder, SETTINGS))


def contents_of(folder: Path) -> tuple[dict[str, Any], dict[str, bytes]]:
    """The settings of a run and the contents of its other files, as they were saved together.

    Raises:
        DataError: If a file is missing or damaged.
    """
    recover(folder)
    failed: list[bytes] = []
    while True:
        content = _content(folder, SETTINGS)
        settings = _settings(folder, content)
        try:
            files = settings["files"].items()
            return settings, {name: _bound(folder, name, known) for name, known in files}
        except DataError:
            # Another run may have taken its place while it was read, and this one the other's.
            failed.append(content)
            if failed.count(content) >= ATTEMPTS and _content(folder, SETTINGS) == content:
                raise


def _content(folder: Path, name: str) -> bytes:
    try:
        try:
            return _read(folder, place(folder, name))
        except FileNotFoundError:  # it may have been moved just now
            return _read(folder, folder / name)
    except OSError as error:
        if name == SETTINGS:
            raise DataError(f"expected a run folder; got {folder} ({error.strerror})") from error
        raise damaged(folder, name, error.strerror) from error


def _read(folder: Path, path: Path) -> bytes:
    if not stat.S_ISREG(path.stat().st_mode):  # such as a pipe, which may never end
        raise damaged(folder, path.name, "expected a file")
    return path.read_bytes()


def _settings(folder: Path, content: bytes) -> dict[str, Any]:
    if not is_sealed(content):
        raise damaged(
            folder,
            SETTINGS,
            "its content does not have the SHA-256 at its end, so that it was changed, or saved by "
            "an older version: save the run again",
        )
    try:
        return settings_from(content)
    except ValueError as error:
        raise damaged(folder, SETTINGS, str(error)) from error


def _bound(folder: Path, name: str, known: str) -> bytes:
    content = _content(folder, name)
    if digest(content) != known:
        raise damaged(folder, name, f"its content does not have the SHA-256 in {SETTINGS}")
    return content
