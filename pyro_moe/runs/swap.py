"""The exchange of one run for another in a folder, at one moment.

The new run is written into a folder of its own within the run folder. One rename of this folder
makes the new run the run: files are read from there first. They are then moved to where the old
ones are. Whatever stops a writer, the old run or the new one is there, whole.
"""

import os
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path

from pyro_moe import files
from pyro_moe.inference.errors import DataError

from .layout import DERIVED, FILES, HISTORY, PARAMETERS, STORY, files_of_run

if sys.platform != "win32":
    import fcntl

COMMITTED = f"{files.TEMPORARY}committed"
_OBSOLETE = "obsolete"  # lists files of the old run that the new one does not replace
_HELD: ContextVar[frozenset[Path]] = ContextVar("folders that this context writes")


@contextmanager
def writer(folder: str | Path, *, code: bytes | None = None) -> Iterator[Path]:
    """Be the only writer of a run folder in this block.

    The folder is created if necessary. It is removed at the end if it is new and still empty.

    Args:
        folder: The run folder.
        code: The content of the story file, if a copy of it will be saved.

    Raises:
        DataError: If the folder is not writable, if another process or thread writes it, or if it
            has files with the names of a run's that do not belong to a run.
    """
    with files.folder(folder) as path, _locked(path):
        _finish(path)
        _clear(path)
        _check_free(path, code)
        yield path


@contextmanager
def _locked(folder: Path) -> Iterator[bool]:
    """Hold a lock of the folder, which ends with the process. It tells whether there are locks."""
    key, held = folder.resolve(), _HELD.get(frozenset())
    if key in held or sys.platform == "win32":
        yield key in held
        return
    descriptor = os.open(key, os.O_RDONLY)
    locked = True
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise DataError(
                f"expected a run folder that nothing else writes; got {folder}, which another "
                "process or thread is writing"
            ) from error
        except OSError:  # of a file system without locks: the rename still decides
            locked = False
        token = _HELD.set(held | {key})
        try:
            yield locked
        finally:
            _HELD.reset(token)
    finally:
        os.close(descriptor)


def _check_free(folder: Path, code: bytes | None) -> None:
    """Check that no file in the folder that is not a run's would be overwritten."""
    theirs = files_of_run(folder)
    for name in FILES:
        path = folder / name
        if name in theirs or not os.path.lexists(path) or (name == STORY and code is None):
            continue
        if name == STORY and code is not None and _is(path, code):
            continue
        raise DataError(f"expected a folder without another {name}; got {folder}")


def exchange(folder: Path, contents: Mapping[str, bytes]) -> None:
    """Put a run in the place of the one in the folder, if any. The caller is its `writer`.

    Pictures and the report of the old run are removed, unless both are the same training.

    Args:
        folder: The run folder.
        contents: The content of each file.

    Raises:
        DataError: If a file cannot be written.
    """
    obsolete = files_of_run(folder) - contents.keys()
    if all(_is(folder / name, contents[name]) for name in (PARAMETERS, HISTORY)):
        obsolete -= {*DERIVED}
    staged, name = files.temporary(folder), ""
    try:
        staged.mkdir()
        for name, content in (*contents.items(), (_OBSOLETE, "\n".join(obsolete).encode())):
            files.create(staged / name, content)
        name = ""
        staged.rename(folder / COMMITTED)
    except OSError as error:
        raise files.not_written(folder / name, error) from error
    finally:
        with suppress(OSError):
            shutil.rmtree(staged, ignore_errors=True)
    _finish(folder)


def _is(path: Path, content: bytes) -> bool:
    try:
        return path.is_file() and path.read_bytes() == content
    except OSError:  # one that cannot be read
        return False


def place(folder: Path, name: str) -> Path:
    """Where a file of the run is: in the folder, or still where it was written."""
    waiting = folder / COMMITTED / name
    return waiting if _is_committed(folder) and waiting.is_file() else folder / name


def _is_committed(folder: Path) -> bool:
    committed = folder / COMMITTED
    return committed.is_dir() and not committed.is_symlink()


def recover(folder: Path) -> None:
    """Finish what a writer had begun that was killed, if there is such and it can be done.

    Where it cannot, as on a disk that is read only, `place` still finds the files.
    """
    if next(folder.glob(f"{files.TEMPORARY}*"), None) is None:
        return
    with suppress(DataError, OSError), _locked(folder) as locked:
        if locked:
            _finish(folder)
            _clear(folder, reading=True)


def _finish(folder: Path) -> None:
    """Move the files of a new run to where those of the old one are. It may be done again."""
    if not _is_committed(folder):
        return
    committed = folder / COMMITTED
    path = committed / _OBSOLETE
    try:
        listed = path.read_text(encoding="utf-8").split("\n") if path.is_file() else []
        for name in {*FILES, *DERIVED} & {*listed}:
            path = folder / name
            path.unlink(missing_ok=True)
        for name in FILES:
            path = folder / name
            with suppress(FileNotFoundError):
                (committed / name).replace(path)
        path = committed
        shutil.rmtree(committed)
    except OSError as error:
        raise files.not_written(path, error) from error


def _clear(folder: Path, *, reading: bool = False) -> None:
    """Remove what killed writers did not finish; a reader leaves single files, as of a report."""
    for path in folder.glob(f"{files.TEMPORARY}*"):
        if path.is_dir() and path.name != COMMITTED:
            shutil.rmtree(path, ignore_errors=True)
        elif path.is_file() and not reading:
            path.unlink(missing_ok=True)
