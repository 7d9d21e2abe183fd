"""What the settings, scores and history of a run may be: types, ranges, lengths and names."""

import csv
import io
import json
import math
import re
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from typing import Any

from pyro_moe.datasets.reading import Format, is_table
from pyro_moe.stories import shipped

from .layout import BOUND, STORY, of_file

Check = Callable[[Any], None]
LARGEST = 2**63 - 1
LONGEST = 100_000  # characters of a text


def _expect(valid: bool, what: str, value: Any) -> None:
    if not valid:
        shown = repr(value)
        raise ValueError(f"expected {what}; got {shown if len(shown) <= 60 else shown[:60] + '…'}")


def _text(value: Any) -> None:
    _expect(isinstance(value, str) and len(value) <= LONGEST and "\0" not in value, "text", value)
    value.encode()  # lone surrogates cannot be printed


def _flag(value: Any) -> None:
    _expect(isinstance(value, bool), "true or false", value)


def _digest(value: Any) -> None:
    valid = isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value)
    _expect(bool(valid), "the SHA-256 of a content", value)


def _whole(least: int = 0, most: int = LARGEST) -> Check:
    def check(value: Any) -> None:
        whole = isinstance(value, int) and not isinstance(value, bool)
        _expect(whole and least <= value <= most, f"a whole number from {least}", value)

    return check


def _number(least: float = -math.inf, *, finite: bool = True) -> Check:
    def check(value: Any) -> None:
        if isinstance(value, int):
            _whole(-LARGEST)(value)
        valid = isinstance(value, int | float) and value >= least
        what = f"a number from {least:g}" if least > -math.inf else "a number"
        _expect(valid and (math.isfinite(value) or not finite), what, value)

    return check


def _or_none(check: Check) -> Check:
    return lambda value: None if value is None else check(value)


def _list(check: Check, *, least: int = 0, most: int = LARGEST) -> Check:
    def check_all(value: Any) -> None:
        valid = isinstance(value, list) and least <= len(value) <= most
        _expect(valid, f"a list of at least {least}", value)
        for place, each in enumerate(value):
            _within(f"[{place}]", check, each)

    return check_all


def _mapping(check: Check) -> Check:
    def check_all(value: Any) -> None:
        _expect(isinstance(value, dict), "names with values", value)
        for name, each in value.items():
            _text(name)
            _within(name, check, each)

    return check_all


def _record(required: Mapping[str, Check], optional: Mapping[str, Check] | None = None) -> Check:
    """A mapping with these names and no others."""
    known = {**required, **(optional or {})}

    def check(value: Any) -> None:
        _mapping(lambda _: None)(value)
        for name in required:
            _expect(name in value, f"an entry {name!r}", "none")
        for name, each in value.items():
            _expect(name in known, f"entries in {tuple(known)}", name)
            _within(name, known[name], each)

    return check


def _within(name: str, check: Check, value: Any) -> None:
    try:
        check(value)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error


def _plain(value: Any) -> None:
    """Anything that JSON supports, with numbers that programs can hold."""
    if isinstance(value, list):
        _list(_plain)(value)
    elif isinstance(value, dict):
        _mapping(_plain)(value)
    elif isinstance(value, str):
        _text(value)
    elif value is not None and not isinstance(value, bool | float):
        _number()(value)


def _story(value: Any) -> None:
    _text(value)
    if not of_file(value):
        shipped(value)


def _data_set(value: Any) -> None:
    _text(value)
    known = value in ("spiral", "digits", "mnist") or is_table(value)
    _expect(known, "'spiral', 'digits', 'mnist' or the path of a table", value)


def _choice(*choices: str) -> Check:
    return lambda value: _expect(value in choices, f"one of {choices}", value)


def _level(value: Any) -> None:
    """A level of a factor."""
    _expect(isinstance(value, str | bool | int | float), "a text or a number", value)
    _plain(value)


def _factor(value: Any) -> None:
    """An expression, and how it is evaluated."""
    _list(_text, least=2, most=2)(value)
    _choice("literal", "lookup", "python")(value[1])


def _scoped(value: Any) -> None:
    """The number of a factor, and whether its first level has no column."""
    _expect(isinstance(value, list) and len(value) == 2, "a number and true or false", value)
    _whole()(value[0])
    _flag(value[1])


def _compile(value: Any) -> None:
    _expect(value in (True, False, "auto"), "true, false or 'auto'", value)


ANNOTATIONS = ("weights", "groups", "labels")
WEIGHT_TYPES = ("replication", "sampling")
NAMES = _list(_text, least=1)
RATE = _number(0.0)
PRIOR = _record(dict.fromkeys(("rows", "null_rows", "ridge"), RATE), {"networks": RATE})
FIT = _record(
    {
        "epochs": _whole(),
        "initial_epochs": _whole(),
        "batch_size": _whole(1),
        "loss": _text,
        "initialize": _text,
        "restarts": _whole(1),
        "validation": _number(0.0),
        "patience": _or_none(_whole(1)),
        "tolerance": _number(finite=False),
        "prior": PRIOR,
        "missing_targets": _flag,
        "seed": _whole(most=2**128),
    },
    {
        "learning_rate": RATE,  # which may be a function, as the temperature may be
        "temperature": _or_none(RATE),
        "compile": _compile,
        "optimizer": _text,  # which older runs lack, as the next two
        "weight_decay": RATE,
        "bfloat16": _flag,
        "weight_type": _choice(*WEIGHT_TYPES),
    },
)
SOURCE = _record(
    {
        "name": _data_set,
        "target": _list(_text),
        "columns": _or_none(NAMES),
        "index": _list(_text),
        "data_dir": _or_none(_text),
        "binary": _flag,
        "made_targets": _flag,
        "drop_missing": _flag,
        "missing_targets": _flag,
        "classes": _mapping(_list(_text, least=1)),
        "sep": _or_none(_text),
        "decimal": _text,
        "encoding": _or_none(_text),
        "sha256": _or_none(_digest),
    },
    {"test_share": _number(0.0), **dict.fromkeys(ANNOTATIONS, _or_none(_text))},
)
CODING = _record(
    {
        "factors": _list(_factor),
        "terms": _list(
            _record(
                {
                    "factors": _list(_whole()),
                    "columns": _list(_text),
                    "scoped": _list(_list(_scoped)),
                    "scales": _list(_number()),
                }
            )
        ),
        "kinds": _mapping(_choice("unknown", "constant", "numerical", "categorical")),
        "levels": _mapping(_list(_level, least=1)),
        "constants": _mapping(_plain),
    }
)
DESIGN = _record(
    {
        "formula": _text,
        "targets": _list(CODING, least=1),
        "experts": _list(CODING, least=1),
        "gate": CODING,
        "columns": NAMES,
        "offsets": _list(_or_none(CODING), least=1),
        "trials": _or_none(CODING),
        "weights": _or_none(_text),
        "groups": _or_none(_text),
        "labels": _or_none(_text),
        "label_order": _list(_whole()),
        "classes": _or_none(_list(_level, least=1)),
        "missing": _choice("raise", "drop"),
        "unseen": _choice("raise", "reference"),
        "shared": _list(_text),
    }
)
FORMULA = _record(
    {"design": DESIGN, "family": _text},
    {"remaining": _number(0.0, finite=False), "cov_type": _choice("observed", "sandwich")},
)
SETTINGS = _record(
    {
        "story": _story,
        "story_arguments": _mapping(_plain),
        "data": _text,
        "source": _or_none(SOURCE),
        "columns": _or_none(NAMES),
        "targets": _or_none(NAMES),
        "image_shape": _or_none(_list(_whole(1), least=3, most=3)),
        "fit": FIT,
        "versions": _mapping(_text),
        "files": _record(dict.fromkeys(BOUND, _digest), {STORY: _digest}),
        "sha256": _digest,
    },
    {"formula": FORMULA},
)
ENDS = _record({"stopped": _or_none(_text), "held_out_elbo": _or_none(_number(finite=False))})
RECORD = _record(
    {"phase": _text, "epoch": _whole(1), "elbo": _number(), "seconds": RATE},
    {
        "objective": _number(),
        "temperature": RATE,
        "learning_rate": RATE,
        "held_out_elbo": _number(finite=False),
    },
)


def settings_from(content: bytes) -> dict[str, Any]:
    """The settings of a run.

    Raises:
        ValueError: If they are not what `save` writes.
    """
    settings = _parsed(content, SETTINGS)
    of_story = of_file(settings["story"])
    _expect((STORY in settings["files"]) == of_story, f"{STORY} of a story file alone", STORY)
    source = settings["source"]
    if source is not None:
        _within("source", _as_format, source)
        others = source["classes"].keys() - {*source["target"]}
        _expect(not others, "classes of targets", sorted(others))
    return settings


def _as_format(source: dict[str, Any]) -> None:
    Format(source["sep"], source["decimal"], source["encoding"])
    share = source.get("test_share", 0.0)
    _expect(share < 1.0, "test_share below 1", share)


def scores_from(content: bytes) -> dict[str, Any]:
    """The scores of a run.

    Raises:
        ValueError: If they are not what `save` writes.
    """
    scores = _parsed(content, _mapping(_plain))
    ENDS({name: scores[name] for name in ("stopped", "held_out_elbo") if name in scores})
    return scores


def _parsed(content: bytes, check: Check) -> dict[str, Any]:
    try:
        value = json.loads(content)
        check(value)
    except RecursionError as error:
        raise ValueError("expected values that are not nested as deeply as these") from error
    return value


def history_from(content: bytes, *, needed: Collection[str] = ()) -> list[dict[str, Any]]:
    """The history of a run.

    Args:
        content: The content of the file.
        needed: Names that each record must have.

    Raises:
        ValueError: If it is not what `save` writes.
    """
    try:
        text = io.StringIO(content.decode(), newline="")
        lines = [line for line in csv.reader(text) if line]
    except csv.Error as error:
        raise ValueError(f"expected comma-separated values; got {error}") from error
    names = lines[0] if lines else []
    _expect(len({*names}) == len(names), "names that differ", names)
    history = []
    for line in lines[1:]:
        _expect(len(line) == len(names), f"{len(names)} values in a line", line)
        record = {name: _value(text) for name, text in zip(names, line, strict=True) if text}
        RECORD(record)
        for name in needed:
            _expect(name in record, f"a value of {name!r} in each line", "none")
        history.append(record)
    return history


def _value(text: str) -> int | float | str:
    for kind in (int, float):
        with suppress(ValueError):
            return kind(text)
    return text
