"""How every benchmark writes down what it measured: one JSONL file a benchmark, one line a run."""

import fcntl
import json
import platform
import shlex
import sys
from itertools import pairwise
from operator import itemgetter
from pathlib import Path
from typing import Any

import torch

RESULTS = Path(__file__).parent / "results"
Run = dict[str, Any]


def write(benchmark: str, key: dict[str, Any], measured: dict[str, Any]) -> None:
    """Write a run down: its key, its measurements, and the command and versions that made them.

    Folders of this machine are left out.

    Args:
        benchmark: Name of the file, without ending.
        key: What tells the run from others of the benchmark, by the same two or more fields for
            all of them. A run of the same key replaces the former one.
        measured: Further fields, of values that JSON can hold.
    """
    run = {"benchmark": benchmark, **key, **measured, **_made_by()}
    RESULTS.mkdir(exist_ok=True)
    with _path(benchmark).open("a+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # other runs of the benchmark may go on beside this one
        file.seek(0)
        of = itemgetter(*key)
        runs = {of(former): former for former in map(json.loads, file)}
        runs[of(run)] = run
        lines = [json.dumps(each) + "\n" for each in runs.values()]
        file.truncate(0)
        file.writelines(lines)


def recorded(benchmark: str, **key: Any) -> list[Run]:
    """Runs of a benchmark, in the order of its file.

    Args:
        benchmark: Its name.
        **key: Values of fields that the runs must have.
    """
    if not _path(benchmark).exists():
        return []
    runs = map(json.loads, _path(benchmark).read_text().splitlines())
    return [run for run in runs if all(run[name] == value for name, value in key.items())]


def _path(benchmark: str) -> Path:
    return RESULTS / f"{benchmark}.jsonl"


def _made_by() -> dict[str, Any]:
    words = [
        "DIR" if option in ("--data-dir", "--cache") else word
        for option, word in pairwise(sys.argv)
    ]
    return {
        "command": shlex.join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *words]),
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "threads": torch.get_num_threads(),
    }
