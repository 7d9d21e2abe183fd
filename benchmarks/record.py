"""How every benchmark writes down what it measured: one JSON file a run."""

import itertools
import json
import platform
import shlex
import sys
from pathlib import Path
from typing import Any

import torch

RESULTS = Path(__file__).parent / "results"


def slug(method: str) -> str:
    """A method as file names have it.

    Args:
        method: Its name, such as ``"DeepMoE, clustered start"``.
    """
    return method.lower().replace(", ", "_").replace(" ", "_").replace("-", "")


def write(name: str, measured: dict[str, Any]) -> None:
    """Write a run's measurements beside the command and the versions that made them.

    Folders of this machine are not written down.

    Args:
        name: File name without ending; a second run of that name replaces the first.
        measured: What JSON can hold.
    """
    words = [
        "DIR" if option in ("--data-dir", "--cache") else word
        for option, word in itertools.pairwise(sys.argv)
    ]
    record = {
        "command": shlex.join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *words]),
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "threads": torch.get_num_threads(),
        **measured,
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(record, indent=1) + "\n")
