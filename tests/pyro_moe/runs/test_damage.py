"""A run is loaded as it was saved, or refused in one line that names the file."""

import csv
import io
import json
import os
import random

import pytest
import torch
from safetensors.torch import load as tensors_from
from safetensors.torch import save as serialized

from pyro_moe import DataError, Rows, runs
from pyro_moe.runs import layout
from pyro_moe.runs.remembered import remembered

NAMES = (*layout.BOUND, layout.SETTINGS)
X = torch.randn(5, 2, generator=torch.Generator().manual_seed(1))
Y = X[:, :1]


def refused(folder, name):
    """The line that refuses a run. It is one line, names the file, and is a `DataError`."""
    lines = []
    for read in (lambda: runs.fit_of(folder, (X, Y)), lambda: runs.restore(folder, Rows(X, Y))):
        with pytest.raises(DataError) as caught:
            read()
        lines.append(str(caught.value))
        assert "\n" not in lines[-1]
        assert len(lines[-1]) < 1000
        assert lines[-1].startswith(
            f"expected a run folder with valid files; got {folder} ({name}: "
        )
    assert lines[0] == lines[1]
    return lines[0]


# Damage without intent


@pytest.mark.parametrize("name", NAMES)
def test_any_flipped_bit_is_noticed(name, run):
    path = run / name
    content = path.read_bytes()
    for place in random.Random(0).sample(range(8 * len(content)), 60):  # noqa: S311
        flipped = bytearray(content)
        flipped[place // 8] ^= 1 << place % 8
        path.write_bytes(flipped)
        with pytest.raises(DataError) as caught:
            runs.load(run)
        assert name in str(caught.value)
    path.write_bytes(content)
    runs.load(run)


@pytest.mark.parametrize("name", NAMES)
def test_a_truncated_file_is_noticed_at_any_length(name, run):
    content = (run / name).read_bytes()
    lengths = [*range(0, len(content), max(1, len(content) // 60)), len(content) - 1]
    for length in lengths:
        (run / name).write_bytes(content[:length])
        with pytest.raises(DataError) as caught:
            runs.load(run)
        assert f"({name}: " in str(caught.value)
    refused(run, name)


def test_a_history_that_lacks_any_of_its_end_is_noticed(run):
    content = (run / "history.csv").read_bytes()
    for length in range(len(content)):
        (run / "history.csv").write_bytes(content[:length])
        with pytest.raises(DataError, match=r"history\.csv"):
            runs.load(run)


@pytest.mark.parametrize("name", layout.BOUND)
def test_a_missing_file_is_named(name, run):
    (run / name).unlink()
    assert refused(run, name).endswith("(" + f"{name}: No such file or directory)")


@pytest.mark.parametrize("name", NAMES)
def test_files_of_two_runs_do_not_mix(name, run, fits, save, tmp_path):
    other = save(fits[1], tmp_path / "other")
    if (run / name).read_bytes() == (other / name).read_bytes():
        pytest.skip("both runs have this file")
    (other / name).replace(run / name)
    with pytest.raises(DataError, match="SHA-256"):
        runs.load(run)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", ["folder", "pipe", "endless"])
def test_what_is_no_file_is_not_read(kind, name, run):
    path = run / name
    path.unlink()
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to("/dev/zero")
    assert refused(run, name).endswith("expected a file)")


def test_no_run_at_all(tmp_path):
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(DataError) as caught:
            runs.load(folder)
        assert (
            str(caught.value) == f"expected a run folder; got {folder} (No such file or directory)"
        )


def test_a_run_of_an_older_version_is_to_be_saved_again(run):
    path = run / "settings.json"
    settings = json.loads(path.read_text())
    del settings["files"], settings["sha256"]
    path.write_text(json.dumps(settings, indent=2) + "\n")
    assert "saved by an older version: save the run again" in refused(run, "settings.json")


# Settings that someone wrote, with hashes that are right


def put(value, *place):
    def change(settings):
        inner = settings
        for name in place[:-1]:
            inner = inner[name]
        inner[place[-1]] = value

    return change


def drop(*place):
    def change(settings):
        inner = settings
        for name in place[:-1]:
            inner = inner[name]
        del inner[place[-1]]

    return change


def source(**changes):
    whole = {
        "name": "my.csv",
        "target": ["y"],
        "columns": None,
        "index": [],
        "data_dir": None,
        "binary": False,
        "made_targets": False,
        "drop_missing": False,
        "missing_targets": False,
        "classes": {},
        "sep": None,
        "decimal": ".",
        "encoding": None,
        "sha256": None,
    }
    return put({**whole, **changes}, "source")


def nested(depth):
    value = []
    for _ in range(depth):
        value = [value]
    return value


SETTINGS = {
    "no story": drop("story"),
    "no arguments": drop("story_arguments"),
    "no fit": drop("fit"),
    "no seed": drop("fit", "seed"),
    "no loss": drop("fit", "loss"),
    "no columns": drop("columns"),
    "no versions": drop("versions"),
    "an unknown entry": put(1, "more"),
    "an unknown choice": put(1, "fit", "more"),
    "no such story": put("tree", "story"),
    "a number for a story": put(3, "story"),
    "null for a story": put(None, "story"),
    "a story file that is not there": put("my.py", "story"),
    "a list of arguments": put([2, 1, 2], "story_arguments"),
    "no x_dim": drop("story_arguments", "x_dim"),
    "an unknown argument": put(3, "story_arguments", "depth"),
    "another width": put(3, "story_arguments", "x_dim"),
    "another number of components": put(3, "story_arguments", "num_components"),
    "a width of none": put(0, "story_arguments", "x_dim"),
    "a negative width": put(-2, "story_arguments", "x_dim"),
    "a fractional width": put(2.5, "story_arguments", "x_dim"),
    "a width in words": put("two", "story_arguments", "x_dim"),
    "a width of null": put(None, "story_arguments", "x_dim"),
    "a width of a list": put([2], "story_arguments", "x_dim"),
    "a width beyond memory": put(10**12, "story_arguments", "x_dim"),
    "a width beyond numbers": put(10**30, "story_arguments", "x_dim"),
    "a width without end": put(float("inf"), "story_arguments", "x_dim"),
    "a width that is no number": put(float("nan"), "story_arguments", "x_dim"),
    "components beyond memory": put(10**9, "story_arguments", "num_components"),
    "no such family": put("cauchy", "story_arguments", "experts"),
    "a tree without end": lambda settings: settings.update(
        story="hierarchicalme",
        story_arguments=settings["story_arguments"] | {"num_components": [2] * 40},
    ),
    "deep arguments": put(nested(100), "story_arguments", "x_dim"),
    "very deep arguments": put(nested(700), "story_arguments", "x_dim"),
    "data of no name": put(None, "data"),
    "a lone surrogate": put("\ud800", "data"),
    "a zero byte": put("a\0b", "data"),
    "too few columns": put(["a"], "columns"),
    "too many columns": put(["a", "b", "c"], "columns"),
    "columns of numbers": put([1, 2], "columns"),
    "columns in one text": put("ab", "columns"),
    "columns by name": put({"a": 0, "b": 1}, "columns"),
    "too many targets": put(["y", "z"], "targets"),
    "no targets in a list": put([], "targets"),
    "images of another size": put([1, 2, 3], "image_shape"),
    "images of no size": put([1, 0, 2], "image_shape"),
    "images in the plane": put([1, 2], "image_shape"),
    "a fit of nothing": put(None, "fit"),
    "a negative seed": put(-1, "fit", "seed"),
    "a fractional seed": put(0.5, "fit", "seed"),
    "a seed in words": put("0", "fit", "seed"),
    "a true seed": put(True, "fit", "seed"),
    "a huge seed": put(10**60, "fit", "seed"),
    "a loss of null": put(None, "fit", "loss"),
    "a loss of a list": put(["em"], "fit", "loss"),
    "missing targets in words": put("yes", "fit", "missing_targets"),
    "a prior of nothing": put(None, "fit", "prior"),
    "a prior by name": put("weak", "fit", "prior"),
    "a prior without rows": drop("fit", "prior", "rows"),
    "a negative prior": put(-1.0, "fit", "prior", "rows"),
    "a prior that is no number": put(float("nan"), "fit", "prior", "rows"),
    "epochs of null": put(None, "fit", "epochs"),
    "a negative learning rate": put(-0.1, "fit", "learning_rate"),
    "versions in a list": put(["1"], "versions"),
    "a source in words": put("my.csv", "source"),
    "a source of nothing": put({}, "source"),
    "a source without a table": source(name="/etc/passwd"),
    "a source of a number": source(name=3),
    "a source with more": source(more=1),
    "targets in one text": source(target="y"),
    "a hash of no hash": source(sha256="abc"),
    "a wrong separator": source(sep="ab"),
    "a wrong mark": source(decimal=";"),
    "no such encoding": source(encoding="klingon"),
    "classes of no target": source(classes={"z": ["a", "b"]}),
    "classes of numbers": source(classes={"y": [1, 2]}),
    "an outer list": lambda settings: [settings],
}


@pytest.mark.parametrize("change", SETTINGS.values(), ids=SETTINGS)
def test_settings_that_are_not_such_as_are_saved(change, run, changed):
    if change is SETTINGS["an outer list"]:
        content = (run / "settings.json").read_bytes()
        head = b"[" + content.rpartition(b"}")[0] + b"]"
        (run / "settings.json").write_bytes(head)
        refused(run, "settings.json")
        return
    changed(run, change)
    with pytest.raises(DataError) as caught:
        runs.fit_of(run, (X, Y))
    message = str(caught.value)
    assert message.startswith(f"expected a run folder with valid files; got {run} (")
    assert "\n" not in message
    assert len(message) < 1000


def test_a_hash_of_the_settings_alone_is_not_enough(run, changed):
    """A file that is not bound, or one more, is refused."""

    def seal(files):
        path = run / "settings.json"
        settings = json.loads(path.read_text())
        del settings["sha256"], settings["files"]
        path.write_bytes(layout.sealed(settings, files))

    files = {name: (run / name).read_bytes() for name in layout.BOUND}
    for bad in (
        {name: files[name] for name in layout.BOUND[1:]},
        files | {"notes.txt": b""},
        files | {"story.py": b""},
        files | {"../../notes.txt": b""},
    ):
        seal(bad)
        refused(run, "settings.json")
    seal(files)
    runs.load(run)


# Scores and history


SCORES = {
    "a list": b"[]",
    "a number": b"3",
    "nothing": b"",
    "half": b'{"stopped": null,',
    "no end": b"{}",
    "a bound in words": b'{"stopped": null, "held_out_elbo": "high"}',
    "a bound that is no number": b'{"stopped": null, "held_out_elbo": NaN}',
    "a true bound": b'{"stopped": null, "held_out_elbo": true}',
    "an end in numbers": b'{"stopped": 3, "held_out_elbo": null}',
    "deep": b'{"stopped": null, "held_out_elbo": null, "more": ' + b"[" * 9000 + b"]" * 9000 + b"}",
    "deep as Python can read": b'{"stopped": null, "held_out_elbo": null, "more": '
    + b"[" * 900
    + b"]" * 900
    + b"}",
    "digits": b'{"stopped": null, "held_out_elbo": ' + b"9" * 5000 + b"}",
    "a huge number": b'{"stopped": null, "held_out_elbo": ' + b"9" * 400 + b"}",
    "other bytes": b"\xff\xfe\xfa",
}


@pytest.mark.parametrize("content", SCORES.values(), ids=SCORES)
def test_scores_that_are_not_such_as_are_saved(content, run, changed):
    (run / "scores.json").write_bytes(content)
    changed(run)
    refused(run, "scores.json")


def test_scores_may_be_anything_else_that_json_supports(run, changed):
    scores = {"stopped": None, "held_out_elbo": -1.5, "rmse": float("nan"), "each": [1, {"a": 2.0}]}
    (run / "scores.json").write_text(json.dumps(scores))
    changed(run)
    assert runs.fit_of(run, (X, Y)).held_out_elbo == -1.5


HISTORIES = {
    "a phase of numbers": lambda rows: rows[1].update(phase=3),
    "no epoch": lambda rows: rows[1].update(epoch=""),
    "an epoch in words": lambda rows: rows[1].update(epoch="first"),
    "a fractional epoch": lambda rows: rows[1].update(epoch=1.5),
    "an epoch of none": lambda rows: rows[1].update(epoch=0),
    "no bound": lambda rows: rows[1].update(elbo=""),
    "a bound that is no number": lambda rows: rows[1].update(elbo="nan"),
    "a bound without end": lambda rows: rows[1].update(elbo="inf"),
    "a bound in words": lambda rows: rows[1].update(elbo="=1+1"),
    "negative seconds": lambda rows: rows[1].update(seconds=-1.0),
    "a huge epoch": lambda rows: rows[1].update(epoch=10**30),
}


def as_csv(rows):
    file = io.StringIO()
    writer = csv.DictWriter(file, rows[0], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue().encode()


@pytest.mark.parametrize("change", HISTORIES.values(), ids=HISTORIES)
def test_a_history_that_is_not_such_as_is_saved(change, run, changed):
    path = run / "history.csv"
    rows = list(csv.DictReader(io.StringIO(path.read_text())))
    change(rows)
    path.write_bytes(as_csv(rows))
    changed(run)
    refused(run, "history.csv")


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text.replace(b"elbo", b"bound"),
        lambda text: text.replace(b"seconds", b"epoch"),
        lambda text: text.replace(b"\n", b",1\n"),
        lambda text: text.partition(b"\n")[2],
        lambda text: text + b"\0",
        lambda text: text + b"\xff",
        lambda text: text + b'"' + b"a" * 200_000,
        lambda text: b"\x80" * 9,
    ],
)
def test_a_history_in_another_form(change, run, changed):
    path = run / "history.csv"
    path.write_bytes(change(path.read_bytes()))
    changed(run)
    refused(run, "history.csv")


# Parameters, and the summary of the training rows


def of_tensors(folder, name, changed, change, metadata=None):
    path = folder / name
    tensors = tensors_from(path.read_bytes())
    tensors = change(tensors) or tensors
    path.write_bytes(serialized(tensors, metadata=metadata))
    return changed(folder)


def setting(name, value):
    def change(tensors):
        tensors[name].view(-1)[0] = value

    return change


def without(name):
    return lambda tensors: {each: tensors[each] for each in tensors if each != name}


def half_shared(tensors):
    """The same units with two values."""
    # The order of tensors in a file is random, and not all units are shared.
    tensors[min(name for name in tensors if name.endswith("units.scale"))][0] = 2.0


PARAMETERS = {
    "shared with two values": half_shared,
    "NaN": lambda tensors: next(iter(tensors.values())).view(-1).__setitem__(0, float("nan")),
    "infinite": lambda tensors: next(iter(tensors.values())).view(-1).__setitem__(0, -torch.inf),
    "one is missing": lambda tensors: dict([*tensors.items()][1:]),
    "one more": lambda tensors: tensors | {"more": torch.zeros(2)},
    "a param of a shipped story": lambda tensors: tensors | {"pyro.param.more": torch.zeros(2)},
    "none": lambda tensors: {"more": torch.zeros(2)},
    "in half precision": lambda tensors: {name: each.half() for name, each in tensors.items()},
    "whole numbers": lambda tensors: {name: each.long() for name, each in tensors.items()},
    "in two types": lambda tensors: {
        name: each.double() if i else each.float() for i, (name, each) in enumerate(tensors.items())
    },
    "flat": lambda tensors: {name: each.reshape(-1) for name, each in tensors.items()},
    "longer": lambda tensors: {name: torch.cat([e, e]) for name, e in tensors.items() if e.dim()},
}


@pytest.mark.parametrize("change", PARAMETERS.values(), ids=PARAMETERS)
def test_parameters_that_are_not_those_of_the_story(change, run, changed):
    of_tensors(run, "parameters.safetensors", changed, change)
    refused(run, "parameters.safetensors")


@pytest.mark.parametrize("value", [0.0, -1.0])
def test_units_are_positive(value, run, changed):
    def change(tensors):
        for name in tensors:
            if name.endswith("units.scale"):
                tensors[name].view(-1)[0] = value

    of_tensors(run, "parameters.safetensors", changed, change)
    assert "expected positive units; got others in " in refused(run, "parameters.safetensors")


@pytest.mark.parametrize("content", [b"", b"\0" * 8, b"\xff" * 40, b"[]", b"{" * 99])
@pytest.mark.parametrize("name", ["parameters.safetensors", "training.safetensors"])
def test_what_holds_no_tensors(name, content, run, changed):
    (run / name).write_bytes(content)
    changed(run)
    refused(run, name)


ROWS = {"rows": "40 " + "0" * 64}
TRAINING = {
    "no mean": (without("mean"), ROWS),
    "no low end": (without("low.0"), ROWS),
    "no high end of y": (without("high.1"), ROWS),
    "one more": (lambda tensors: tensors | {"more": torch.zeros(2)}, ROWS),
    "a gap": (lambda tensors: tensors | {"low.7": torch.zeros(2), "high.7": torch.zeros(2)}, ROWS),
    "a mean of another width": (lambda tensors: tensors | {"mean": torch.zeros(3)}, ROWS),
    "a mean that is no number": (setting("mean", float("nan")), ROWS),
    "ends that are no numbers": (setting("low.1", float("nan")), ROWS),
    "ends in no order": (setting("low.0", 1e6), ROWS),
    "densities in a table": (lambda tensors: tensors | {"log_densities": torch.zeros(2, 2)}, ROWS),
    "densities that are no numbers": (
        lambda tensors: tensors | {"log_densities": torch.tensor([float("nan")])},
        ROWS,
    ),
    "no facts": (lambda tensors: None, None),
    "no rows": (lambda tensors: None, {"rows": "0 " + "0" * 64}),
    "negative rows": (lambda tensors: None, {"rows": "-4 " + "0" * 64}),
    "many rows": (lambda tensors: None, {"rows": "9" * 40 + " " + "0" * 64}),
    "no fingerprint": (lambda tensors: None, {"rows": "40 abc"}),
}


@pytest.mark.parametrize(("change", "facts"), TRAINING.values(), ids=TRAINING)
def test_a_summary_of_rows_that_is_not_such_as_is_saved(change, facts, run, changed):
    of_tensors(run, "training.safetensors", changed, change, facts)
    refused(run, "training.safetensors")


def test_what_is_saved_is_what_is_read(run):
    training = remembered((run / "training.safetensors").read_bytes())
    assert training.num_rows == 40
    assert runs.fit_of(run, (X, Y)).num_rows == 40
