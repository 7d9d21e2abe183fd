"""Records of benchmark results: one JSONL file for each benchmark, one line for each run."""

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

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"
PATHS = {"--data-dir": "DIR", "--cache": "DIR", "--picture": "PICTURE"}
Run = dict[str, Any]


def write(benchmark: str, key: dict[str, Any], measured: dict[str, Any]) -> None:
    """Record a run: its key, its measurements, the command and the versions.

    Paths of this machine are left out.

    Args:
        benchmark: Name of the file, without its ending.
        key: Two or more fields that identify the run. All runs of a benchmark have the same
            fields. A run with the same key is replaced.
        measured: Further fields, in types that JSON supports.
    """
    run = {"benchmark": benchmark, **key, **measured, **_made_by()}
    RESULTS.mkdir(exist_ok=True)
    with _path(benchmark).open("a+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # several runs may write at the same time
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
        **key: Required values of fields.
    """
    if not _path(benchmark).exists():
        return []
    runs = map(json.loads, _path(benchmark).read_text().splitlines())
    return [run for run in runs if all(run[name] == value for name, value in key.items())]


def _path(benchmark: str) -> Path:
    return RESULTS / f"{benchmark}.jsonl"


def _made_by() -> dict[str, Any]:
    words = [PATHS.get(option, word) for option, word in pairwise(sys.argv)]
    script = Path(sys.argv[0]).resolve()
    name = script.relative_to(HERE) if script.is_relative_to(HERE) else script.name
    return {
        "command": shlex.join(["python", f"benchmarks/{name}", *words]),
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "threads": torch.get_num_threads(),
    }
