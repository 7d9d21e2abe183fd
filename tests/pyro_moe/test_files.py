"""A file is written whole or not at all."""

import os
import sys

import pytest

from pyro_moe import DataError, files

FULL = OSError(28, "No space left on device")


def test_a_file_is_replaced_by_its_new_content(tmp_path):
    path = tmp_path / "my.txt"
    for content in (b"one", b"", b"two"):
        assert files.write(path, content) == path
        assert path.read_bytes() == content
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("step", ["os.fsync", "pathlib.Path.replace", "pathlib.Path.open"])
def test_a_file_that_cannot_be_written_is_left_as_it_was(step, tmp_path, monkeypatch):
    path = tmp_path / "my.txt"
    path.write_bytes(b"old")

    def fail(*args, **options):
        raise FULL

    with monkeypatch.context() as patched:
        patched.setattr(step, fail)
        with pytest.raises(DataError) as caught:
            files.write(path, b"new")
    assert str(caught.value) == (
        f"expected a file that can be written; got {path} (No space left on device)"
    )
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX")
def test_links_stay_and_pipes_are_written_to(tmp_path):
    (tmp_path / "folder").mkdir()
    link = tmp_path / "link.txt"
    link.symlink_to(tmp_path / "folder" / "my.txt")
    files.write(link, b"words")
    assert link.is_symlink()
    assert (tmp_path / "folder" / "my.txt").read_bytes() == b"words"
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        files.write(pipe, b"words")
        assert os.read(reader, 9) == b"words"
    finally:
        os.close(reader)
    assert pipe.is_fifo()
    for bad in (tmp_path / "folder", tmp_path / "no" / "my.txt", link / "my.txt"):
        with pytest.raises(DataError, match="expected a file that can be written; got"):
            files.write(bad, b"")


def test_folders_that_stay_empty_are_removed(tmp_path):
    with files.folder(tmp_path / "a" / "b"):
        (tmp_path / "a" / "file").write_text("")
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["file"]
    refused = pytest.raises(DataError, match="expected a folder that can be written")
    with refused, files.folder(tmp_path / "a" / "file"):
        pass
    with files.folder(tmp_path / "a"):
        pass
    assert (tmp_path / "a").exists()
