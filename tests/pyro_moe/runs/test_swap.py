"""Whatever stops a writer, the old run or the new one is there, whole."""

import os
import pathlib
import pickle
import re
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from pyro_moe import DataError, files, runs
from pyro_moe.runs import layout, swap

STEPS = (
    (pathlib.Path, "mkdir"),
    (pathlib.Path, "rename"),
    (pathlib.Path, "replace"),
    (pathlib.Path, "unlink"),
    (files, "create"),
    (os, "fsync"),
    (swap.shutil, "rmtree"),
)


def bytes_of(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name in layout.FILES}


@pytest.fixture
def two(fits, save, tmp_path):
    """A folder with a run, what it holds, and what it will hold after another is saved."""
    save(fits[1], tmp_path / "other")
    folder = save(fits[0], tmp_path / "run")
    (folder / "notes.txt").write_text("mine")
    (folder / "report.html").write_text("of the old run")
    return folder, bytes_of(folder), bytes_of(tmp_path / "other")


def read(folder):
    """What a reader gets, which must be one run, with nothing of another beside it."""
    runs.load(folder)
    return bytes_of(folder)


def is_one_of(folder, old, new):
    found = read(folder)
    assert found in (old, new)
    assert (folder / "notes.txt").read_text() == "mine"
    assert (folder / "report.html").exists() == (found == old)
    return found == new


# An error at every step


class Stop:
    """Raise an error in place of the n-th step of writing, of any kind."""

    def __init__(self, monkeypatch, at, error):
        self.at, self.error, self.count = at, error, 0
        for place, name in STEPS:
            monkeypatch.setattr(place, name, self.counted(getattr(place, name)))

    def counted(self, step):
        def run(*args, **kwargs):
            self.count += 1
            if self.count == self.at:
                raise self.error
            return step(*args, **kwargs)

        return run


FULL = OSError(28, "No space left on device")


@pytest.mark.parametrize("error", [FULL, KeyboardInterrupt()], ids=["full disk", "interrupted"])
@pytest.mark.parametrize("at", range(1, 33))
def test_an_error_at_any_step_leaves_one_run(at, error, two, fits, save, monkeypatch):
    folder, old, new = two
    with monkeypatch.context() as patched:
        stop = Stop(patched, at, error)
        try:
            save(fits[1], folder)
        except (DataError, KeyboardInterrupt) as caught:
            stopped = caught
        else:
            stopped = None
    if stopped is not None and error is FULL:
        assert re.fullmatch(
            rf"expected a \w+ that .*; got {folder}.* \(No space left on device\)", str(stopped)
        )
    elif stop.count < at:
        pytest.skip("there are fewer steps")
    is_one_of(folder, old, new)
    assert not list(folder.glob(".pyro-moe-*"))
    save(fits[1], folder)
    assert is_one_of(folder, old, new)


def test_there_are_so_many_steps(two, fits, save, monkeypatch):
    with monkeypatch.context() as patched:
        stop = Stop(patched, 0, FULL)
        save(fits[1], two[0])
    assert 20 < stop.count < 33


@pytest.mark.skipif(sys.platform == "win32", reason="limits of POSIX")
@pytest.mark.parametrize("size", [0, 100, 700, 1000])
def test_a_limit_of_the_file_size(size, two, fits, save):
    import resource

    folder, old, _ = two
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
        with pytest.raises(DataError, match=r"^expected a file that .*; got .*\(File too large\)$"):
            save(fits[1], folder)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert read(folder) == old


# A kill at every step


# The packages without their contents, which take seconds to import.
PACKAGES = ("pyro_moe", "pyro_moe.runs", "pyro_moe.inference")
ALONE = f"""
import os, pathlib, pickle, sys, types
for name, path in { {name: [*sys.modules[name].__path__] for name in PACKAGES} }.items():
    sys.modules[name] = types.ModuleType(name)
    sys.modules[name].__path__ = path
from pyro_moe.runs import swap
"""
CHILD = """
folder, kill_at = pathlib.Path(sys.argv[1]), [int(n) for n in sys.argv[2:]]
contents = pickle.loads((folder.parent / "new.pickle").read_bytes())
for at in kill_at:
    child = os.fork()
    if child == 0:
        count = 0
        def counted(step):
            def run(*args, **kwargs):
                global count
                count += 1
                if count == at:
                    os.kill(os.getpid(), 9)
                return step(*args, **kwargs)
            return run
        for place, name in ((pathlib.Path, "mkdir"), (pathlib.Path, "rename"),
                (pathlib.Path, "replace"), (pathlib.Path, "unlink"), (os, "fsync"),
                (os, "rmdir"), (os, "unlink")):
            setattr(place, name, counted(getattr(place, name)))
        where = folder.parent / f"run-{at}"
        with swap.writer(where):
            swap.exchange(where, contents)
        os._exit(0)
    print(at, os.waitpid(child, 0)[1], flush=True)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_kill_at_any_step_leaves_one_run(two, tmp_path):
    folder, old, new = two
    order = ("parameters.safetensors", "training.safetensors", "history.csv", "scores.json")
    contents = {name: new[name] for name in (*order, "settings.json")}
    (tmp_path / "new.pickle").write_bytes(pickle.dumps(contents))
    steps = [*range(1, 41)]
    for at in steps:
        shutil.copytree(folder, tmp_path / f"run-{at}")
    done = subprocess.run(  # noqa: S603
        [sys.executable, "-c", ALONE + CHILD, str(folder), *map(str, steps)],
        capture_output=True,
        text=True,
        check=True,
    )
    ends = dict(map(int, line.split()) for line in done.stdout.splitlines())
    results = []
    for at in steps:
        assert ends[at] in (0, signal.SIGKILL)
        is_new = is_one_of(tmp_path / f"run-{at}", old, new)
        results.append(is_new)
        assert is_new or ends[at] == signal.SIGKILL
        assert not list((tmp_path / f"run-{at}").glob(".pyro-moe-*"))
    assert results == sorted(results)  # first the old run, and from one moment on the new one
    killed = [at for at in steps if ends[at] == signal.SIGKILL]
    assert any(results[at - 1] for at in killed)
    assert not all(results[at - 1] for at in killed)


def test_what_was_committed_is_read_where_nothing_can_be_written(two, monkeypatch):
    folder, _, new = two
    contents = dict(new)
    with monkeypatch.context() as patched:
        patched.setattr(swap, "_finish", lambda folder: None)
        with runs.writer(folder):
            swap.exchange(folder, contents)
    with monkeypatch.context() as patched:
        patched.setattr(swap, "_finish", lambda folder: 1 / 0)
        patched.setattr(swap, "_locked", refused)
        settings = runs.settings_of(folder)
        runs.load(folder)
    assert settings["fit"]["seed"] == 1
    assert read(folder) == new


def refused(folder):
    raise OSError(30, "Read-only file system")


# What else is in the folder


def test_what_belongs_to_the_old_run_goes_and_all_else_stays(two, fits, save):
    folder, _, new = two
    mine = {"picture.png": b"\x89PNG", "data.csv": b"a,b\n", ".hidden": b""}
    for name, content in mine.items():
        (folder / name).write_bytes(content)
    (folder / "more").mkdir()
    (folder / "more" / "history.csv").write_text("mine")
    for name in layout.DERIVED:
        (folder / name).write_bytes(b"of the old run")
    (folder / ".pyro-moe-0123").mkdir()  # of a writer that was killed
    (folder / ".pyro-moe-4567").write_text("")
    save(fits[1], folder)
    names = {path.name for path in folder.iterdir()}
    assert names == {*new, *mine, "more", "notes.txt"}
    assert (folder / "more" / "history.csv").read_text() == "mine"
    for name, content in mine.items():
        assert (folder / name).read_bytes() == content


def test_the_same_training_saved_again_keeps_its_report(two, fits, save):
    folder, _, _ = two
    save(fits[0], folder, scores={"accuracy": 0.75})
    assert (folder / "report.html").read_text() == "of the old run"


@pytest.mark.parametrize("name", layout.FILES[:-1])
def test_a_file_of_someone_else_is_not_overwritten(name, fits, save, tmp_path):
    (tmp_path / name).write_text('{"editor.fontSize": 12}')
    with pytest.raises(DataError) as caught:
        save(fits[0], tmp_path)
    assert str(caught.value) == f"expected a folder without another {name}; got {tmp_path}"
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_damaged_run_may_be_replaced(run, fits, save):
    path = run / "settings.json"
    path.write_bytes(path.read_bytes()[:-100])
    (run / "history.csv").unlink()
    save(fits[1], run)
    assert runs.settings_of(run)["fit"]["seed"] == 1


def test_a_link_in_the_place_of_a_new_run_moves_nothing(run, tmp_path):
    project = tmp_path / "project"
    project.mkdir()
    for name in (*layout.FILES, "obsolete"):
        (project / name).write_text("precious")
    (run / swap.COMMITTED).symlink_to(project, target_is_directory=True)
    runs.load(run)
    assert len([*project.iterdir()]) == len(layout.FILES) + 1


def test_a_list_of_obsolete_files_names_no_others(run):
    (run / "notes.txt").write_text("mine")
    (run.parent / "notes.txt").write_text("mine")
    (run / swap.COMMITTED).mkdir()
    (run / swap.COMMITTED / "obsolete").write_text("../notes.txt\nnotes.txt\nreport.html")
    (run / "report.html").write_text("")
    runs.load(run)
    assert (run / "notes.txt").exists()
    assert (run.parent / "notes.txt").exists()
    assert not (run / "report.html").exists()


@pytest.mark.skipif(sys.platform == "win32", reason="modes of POSIX")
@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_modes_follow_the_umask(mask, fits, save, tmp_path):
    before = os.umask(mask)
    try:
        folder = save(fits[0], tmp_path / "run")
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o666 & ~mask}
    assert folder.stat().st_mode & 0o777 == 0o777 & ~mask


# Two writers


def test_another_thread_is_told(two, fits, save):
    folder, old, new = two
    errors = []

    def late():
        try:
            save(fits[0], folder)
        except DataError as error:
            errors.append(str(error))

    with runs.writer(folder):
        thread = threading.Thread(target=late)
        thread.start()
        thread.join()
        save(fits[1], folder)
    assert errors == [
        f"expected a run folder that nothing else writes; got {folder}, which another process or "
        "thread is writing"
    ]
    assert read(folder) == new
    late()
    assert len(errors) == 1
    assert read(folder) == old


def test_many_writers_and_a_reader(two, fits, save):
    """Each writer wins or is told, and the reader never sees a mixture."""
    folder, old, new = two
    told, seen, problems = [], set(), []
    stop = threading.Event()

    def write(number):
        for _ in range(30):
            try:
                save(fits[number % 2], folder)
            except DataError as error:
                told.append(str(error))

    def look():
        while not stop.is_set():
            try:
                seen.add(runs.load(folder)[1]["fit"]["seed"])
            except Exception as error:
                problems.append(repr(error))

    reader = threading.Thread(target=look)
    writers = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    reader.start()
    for thread in writers:
        thread.start()
    for thread in writers:
        thread.join()
    stop.set()
    reader.join()
    assert problems == []
    assert seen <= {0, 1}
    assert all("nothing else writes" in each for each in told)
    assert read(folder) in (old, new)


def test_another_process_is_told(run):
    code = f"{ALONE}\nwith swap.writer({str(run)!r}): pass"
    with runs.writer(run):
        done = subprocess.run(  # noqa: S603
            [sys.executable, "-c", code], capture_output=True, text=True
        )
    assert "DataError: expected a run folder that nothing else writes" in done.stderr


def test_a_new_folder_does_not_stay_if_nothing_is_saved(tmp_path):
    with pytest.raises(KeyboardInterrupt), runs.writer(tmp_path / "a" / "b"):
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []
    there = Path(tmp_path, "there")
    there.mkdir()
    with runs.writer(there / "run"):
        pass
    assert there.exists()
