"""A program in a run folder is executed only if the user says so."""

import contextlib
import hashlib
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import pyro_moe
from pyro_moe import DataError, Rows, cli, runs
from pyro_moe.runs import layout, story_file

HOSTILE = "import pathlib\npathlib.Path('executed').touch()\n"
X = torch.randn(40, 2, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def table(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_table()
    return tmp_path


def write_table():
    generator = np.random.default_rng(0)
    frame = pd.DataFrame(generator.normal(size=(60, 2)), columns=["a", "b"])
    frame.assign(y=frame["a"] + frame["b"] ** 2).to_csv("my.csv", index=False)


def fit(story, folder):
    line = f"fit {story} --data my.csv --target y --num-components 2 --epochs 1 --out {folder}"
    assert cli.main([*line.split(), "--quiet", "--loss", "em"]) == 0


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    """A run of a story file that leaves a trace where it is executed, and a shipped story's."""
    folder = tmp_path_factory.mktemp("fitted")
    with contextlib.chdir(folder):
        write_table()
        path = story_file.write("mine.py", "me")
        path.write_text(path.read_text() + HOSTILE)
        fit("mine.py", "own")
        fit("me", "shipped")
        Path("executed").unlink()
    return folder


@pytest.fixture
def programs(fitted, tmp_path, monkeypatch):
    """Copies of these runs in the current folder."""
    shutil.copytree(fitted, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


COMMANDS = {
    "predict": "predict {} --data my.csv --out predictions.csv",
    "predict with novelty": "predict {} --data my.csv --out new/predictions.csv --novelty",
    "check": "check {} --replicates 19",
    "report": "report {}",
    "compare": "compare shipped {}",
}


@pytest.mark.parametrize("line", COMMANDS.values(), ids=COMMANDS)
def test_a_command_executes_nothing_unless_told(line, programs, capsys):
    capsys.readouterr()
    assert cli.main(line.format("own").split()) == 2
    digest = hashlib.sha256(Path("mine.py").read_bytes()).hexdigest()
    assert capsys.readouterr().err == (
        "pyro-moe: expected trust_code=True (on the command line, --trust), since own has a "
        f"program, story.py, that would be executed; got story.py with SHA-256 {digest}\n"
    )
    assert not Path("executed").exists()
    assert not Path("predictions.csv").exists()
    assert not Path("new").exists()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("command", ["predict", "compare"])
def test_a_command_executes_it_if_told(command, programs):
    assert cli.main([*COMMANDS[command].format("own").split(), "--trust"]) == 0
    assert Path("executed").exists()


@pytest.mark.filterwarnings("ignore")
def test_a_shipped_story_executes_nothing_from_its_folder(programs):
    Path("shipped/story.py").write_text(HOSTILE)
    for name in ("torch", "pyro", "models", "me", "sitecustomize"):
        Path("shipped", f"{name}.py").write_text(HOSTILE)
    for options in ([], ["--trust"]):
        for line in (COMMANDS["predict"], COMMANDS["compare"]):
            assert cli.main([*line.format("shipped").split(), *options]) == 0
    assert not Path("executed").exists()


def test_an_edited_word_makes_no_program_of_a_shipped_story(programs):
    Path("shipped/story.py").write_text(HOSTILE)
    path = Path("shipped/settings.json")
    path.write_text(path.read_text().replace('"story": "me"', '"story": "me.py"'))
    for trust_code in (False, True):
        with pytest.raises(DataError, match=r"settings\.json: its content does not have"):
            runs.load("shipped", trust_code=trust_code)
    settings = json.loads(path.read_text())
    files = {name: Path("shipped", name).read_bytes() for name in (*layout.BOUND, "story.py")}
    del settings["files"], settings["sha256"]
    path.write_bytes(layout.sealed(settings, files))  # by one who knows how
    with pytest.raises(DataError, match="expected trust_code=True"):
        runs.load("shipped")
    assert not Path("executed").exists()


def test_the_program_that_is_executed_is_the_one_that_was_saved(programs):
    Path("own/story.py").write_text(HOSTILE)
    with pytest.raises(DataError, match=r"story\.py: its content does not have the SHA-256"):
        runs.load("own", trust_code=True)
    assert not Path("executed").exists()


def test_each_way_to_load_asks(programs):
    ways = (
        lambda **choice: runs.load("own", **choice),
        lambda **choice: runs.fit_of("own", X, **choice),
        lambda **choice: runs.restore("own", **choice),
        lambda **choice: runs.restore("own", Rows(X), **choice),
    )
    for way in ways:
        with pytest.raises(DataError, match=r"^expected trust_code=True"):
            way()
        assert not Path("executed").exists()
        way(trust_code=True)
        Path("executed").unlink()
    assert runs.settings_of("own")["story"] == "mine.py"
    assert not Path("executed").exists()


# Cells and names that spreadsheets take for formulas


NAMES = ["=1+1", "+a", "-a", "@a", "\ta", "a,b", "no"]


def test_predictions_are_escaped(table):
    frame = pd.read_csv("my.csv").rename(columns={"y": "=y"})
    frame["=y"] = [NAMES[i % 2] for i in range(60)]
    frame.to_csv("my.csv", index=False)
    line = "fit me --data my.csv --target =y --experts bernoulli --num-components 2 --epochs 1"
    arguments = [*line.replace("--target =y", "--target==y").split(), "--out", "run", "--quiet"]
    assert cli.main(arguments) == 0
    line = ["predict", "run", "--data", "my.csv", "--out", "predictions.csv"]
    assert cli.main(line) == 0
    found = pd.read_csv("predictions.csv")
    assert list(found)[:3] == ["'=y", "'=y_is_+a", "'=y_is_=1+1"]
    assert set(found["'=y"]) <= {"'=1+1", "'+a"}
    assert all(found[name].dtype == float for name in found if name != "'=y")
    assert cli.main([*line, "--no-escape"]) == 0
    plain = pd.read_csv("predictions.csv")
    assert list(plain)[:3] == ["=y", "=y_is_+a", "=y_is_=1+1"]
    assert set(plain["=y"]) <= {"=1+1", "+a"}
    np.testing.assert_array_equal(plain.iloc[:, 1:], found.iloc[:, 1:])


# What cannot be written


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no such device")
def test_a_full_disk_is_said_with_the_name_of_the_file(programs, capsys):
    Path("shipped").rename("run")
    for line in (COMMANDS["predict"], "report run --out /dev/full"):
        words = line.format("run").replace("predictions.csv", "/dev/full").split()
        capsys.readouterr()
        assert cli.main(words) == 2
        assert re.fullmatch(
            r"pyro-moe: expected a file that can be written; got /dev/full \(No space left.*\)\n",
            capsys.readouterr().err,
        )


def test_a_report_that_cannot_be_written_leaves_the_old_one(programs, monkeypatch, capsys):
    Path("shipped").rename("run")
    Path("run/report.html").write_text("old")

    def full(descriptor):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("os.fsync", full)
        assert cli.main(["report", "run"]) == 2
    message = "expected a file that can be written; got run/report.html (No space left on device)"
    assert capsys.readouterr().err.endswith(f"pyro-moe: {message}\n")
    assert Path("run/report.html").read_text() == "old"
    assert not list(Path("run").glob(".pyro-moe-*"))


def test_pictures_that_cannot_be_written_are_named(table, monkeypatch, capsys):
    write = pyro_moe.files.write

    def full(path, content):
        if path.suffix == ".png":
            raise pyro_moe.files.not_written(path, OSError(28, "No space left on device"))
        return write(path, content)

    monkeypatch.setattr(pyro_moe.files, "write", full)
    line = "fit me --data my.csv --target y --epochs 1 --out run --quiet --loss em"
    assert cli.main(line.split()) == 2
    assert re.search(r"got run/\w+\.png \(No space left on device\)\n$", capsys.readouterr().err)
    assert isinstance(runs.load("run")[0], pyro_moe.models.ME)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), DataError("expected rows"), MemoryError()])
def test_a_fit_that_does_not_begin_leaves_no_folder(error, table, monkeypatch):
    def fails(*args, **options):
        raise error

    monkeypatch.setattr("pyro_moe.cli.fit.fit", fails)
    line = ["fit", "me", "--data", "my.csv", "--target", "y", "--quiet"]
    if isinstance(error, MemoryError):
        with pytest.raises(MemoryError):
            cli.main(line)
    else:
        assert cli.main(line) in (2, 130)
    assert not Path("runs").exists()
