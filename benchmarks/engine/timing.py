"""CPU seconds of pieces of work, printed and recorded beside those of peers."""

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
import record


def cpu_seconds(run: Callable[[], Any]) -> float:
    """CPU seconds of a call."""
    before = time.process_time()
    run()
    return time.process_time() - before


def report(what: str, ours: float, theirs: float | None = None, peer: str = "") -> None:
    """Print and record our seconds, and those of a peer if there is one."""
    ratio = f", {theirs:.4f} s {peer}, ratio {ours / theirs:.2f}" if theirs else ""
    print(f"{what}: {ours:.4f} s{ratio}", flush=True)
    key = {"work": what, "peer": peer}
    record.write("engine", key, {"seconds": ours, "peer_seconds": theirs})
