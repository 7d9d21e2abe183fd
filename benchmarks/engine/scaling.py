"""Peak memory by rows, seconds by processes, and the cost of a step by rows, batch, K and D.

    python benchmarks/engine/scaling.py memory
    python benchmarks/engine/scaling.py processes
    python benchmarks/engine/scaling.py cost        # also draws docs/pictures/cost.png

Each measurement is a process of its own, of one thread.
"""

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import timing
import torch
from matplotlib.figure import Figure

import pyro_moe
from pyro_moe import models
from pyro_moe.inference import EM
from pyro_moe.inference.objectives import objective
from pyro_moe.inference.svi import SVI
from pyro_moe.processes import Processes

PICTURE = Path(__file__).parents[2] / "docs" / "pictures" / "cost.png"
ROWS, DIM, NUMBER = 2 * 10**5, 4, 3
STORIES: dict[str, tuple[Any, dict[str, Any]]] = {
    "GMM": (lambda: models.GMM(DIM, NUMBER), {"epochs": 2, "restarts": 2}),
    "ME": (lambda: models.ME(DIM - 1, 1, NUMBER), {"epochs": 2, "restarts": 2}),
    "VAE": (lambda: models.VAE(DIM, 2, hidden=(32,)), {"epochs": 1, "batch_size": 500}),
}
AXES: dict[str, tuple[int, ...]] = {
    "rows": (10**3, 10**4, 10**5, 10**6),
    "batch": (32, 128, 512, 2048),
    "K": (2, 5, 10, 20, 50),
    "D": (2, 8, 32, 128),
}
USUAL = {"rows": 10**5, "batch": 256, "K": 5, "D": 8}


def memory() -> None:
    """Peak memory of fits of rows in a file, of 200,000 rows and of two million."""
    with tempfile.TemporaryDirectory(dir="/var/tmp") as folder:
        for name in STORIES:
            few, many = (measured("peak", name, rows, folder) for rows in (ROWS, 10 * ROWS))
            print(f"{name}: {few:.0f} MiB, {many:.0f} MiB with ten times the rows", flush=True)
            key = {"story": name, "rows": ROWS}
            timing.record.write("memory", key, {"mebibytes": few, "of_ten_times": many})


def peak(name: str, rows: str, folder: str) -> float:
    """Peak memory of a fit, in MiB."""
    path = Path(folder, f"{rows}.npy")
    if not path.exists():
        subprocess.run([sys.executable, __file__, "write", rows, str(path)], check=True)  # noqa: S603
    x = np.load(path, mmap_mode="r")
    make, options = STORIES[name]
    story: Any = make()
    data = (x[:, :-1], x[:, -1:]) if name == "ME" else x
    pyro_moe.fit(story.model, story.guide, data, progress=False, **options)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def write(rows: str, path: str) -> float:
    """Write rows of three groups."""
    generator, shape = np.random.default_rng(0), (int(rows), DIM)
    table = np.lib.format.open_memmap(path, mode="w+", dtype=np.float64, shape=shape)
    for first in range(0, len(table), 10**5):
        block = table[first : first + 10**5]
        block[:] = generator.normal(size=block.shape) + 4 * generator.integers(
            NUMBER, size=(len(block), 1)
        )
    table.flush()
    return 0.0


def processes() -> None:
    """Seconds of an iteration of EM and of a step, by one process and by two."""
    for work in ("em", "step"):
        one = measured(work)
        with tempfile.TemporaryDirectory() as folder:
            two = started(work, folder, "0"), started(work, folder, "1")
            seconds = max(result(each) for each in two)
        print(f"{work}: {one:.3f} s by one process, {seconds:.3f} s by two", flush=True)
        key = {"work": work, "processes": 2}
        timing.record.write("processes", key, {"one": one, "seconds": seconds})


def em(folder: str | None = None, rank: str = "0") -> float:
    """Seconds of the clock of an iteration of EM of a mixture of a million rows."""
    join(folder, rank)
    run = run_of_em(5 * ROWS, 5, DIM)
    return clock(run) / 3


def step(folder: str | None = None, rank: str = "0") -> float:
    """Seconds of the clock of a step with 2,048 rows of a model with wide layers."""
    join(folder, rank)
    run = run_of_svi(20_480, 2048, 5, 64, hidden=(500, 500))
    return clock(run) / (run.epochs * 10)


def join(folder: str | None, rank: str) -> None:
    """Let this process be one of two."""
    if folder is not None:
        meeting = f"file://{folder}/meeting"
        torch.distributed.init_process_group(
            "gloo", init_method=meeting, rank=int(rank), world_size=2
        )
        assert Processes.running().size == 2  # noqa: S101


def run_of_em(rows: int, number: int, dim: int, epochs: int = 3) -> EM:
    """EM of a Gaussian mixture."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(rows, dim, generator=generator, dtype=torch.float64)
    torch.manual_seed(0)
    story = models.GMM(dim, number).double()
    story.adapt(x)
    return EM(story.model, story.guide, (x,), epochs, 0, tolerance=-1.0)


def run_of_svi(
    rows: int, batch: int, number: int, dim: int, hidden: Any = (64,), epochs: int = 2
) -> SVI:
    """Gradients of a DMVAE."""
    torch.manual_seed(0)
    x = torch.randn(rows, dim)
    story = models.DMVAE(dim, 2, number, hidden=hidden)
    elbo, treatment = objective("marginal")
    settings: dict[str, Any] = {"learning_rate": 1e-3, "temperature": 1.0, "seed": 0}
    return SVI(
        story.model,
        story.guide,
        (x,),
        elbo,
        treatment,
        epochs=epochs,
        batch_size=batch,
        **settings,
    )


def clock(run: Iterable[Any]) -> float:
    """Seconds of a run."""
    started = time.perf_counter()
    for _ in run:
        pass
    return time.perf_counter() - started


def cost() -> None:
    """Microseconds a row, of an iteration of EM and of an epoch, along each axis."""
    for axis, values in AXES.items():
        for value in values:
            at = {**USUAL, axis: value}
            em_run = run_of_em(at["rows"], at["K"], at["D"])
            rows = min(at["rows"], 40 * at["batch"])
            steps = run_of_svi(rows, at["batch"], at["K"], at["D"], epochs=4)
            works = ("iteration of EM", em_run, at["rows"]), ("epoch", steps, rows)
            for work, run, number in works:
                records = iter(run)
                next(records), next(records)  # in which steps are recorded
                before = len(run.history)
                seconds = timing.cpu_seconds(lambda records=records: list(records))
                micro = 1e6 * seconds / (len(run.history) - before) / number
                print(f"{axis}={value}, {work}: {micro:.3f} µs a row", flush=True)
                key = {"axis": axis, "value": value, "work": work}
                timing.record.write("cost", key, {"microseconds": micro})
    chart()


def chart() -> None:
    """Draw the costs that were recorded."""
    figure = Figure(figsize=(9, 2.6), layout="constrained")
    panels = figure.subplots(1, len(AXES), sharey=True)
    names = {"rows": "rows", "batch": "rows in a step", "K": "components K", "D": "columns D"}
    for panel, (axis, values) in zip(panels, AXES.items(), strict=True):
        for work, style in (("iteration of EM", "C0o-"), ("epoch", "C1s--")):
            found = timing.record.recorded("cost", axis=axis, work=work)
            if (axis, work) != ("batch", "iteration of EM"):
                points = [(run["value"], run["microseconds"]) for run in found]
                panel.loglog(*zip(*points, strict=True), style, label=work)
        panel.set_xlabel(names[axis])
        panel.set_xticks(values, [f"{value:,}" for value in values], rotation=30)
        panel.minorticks_off()
        panel.grid(alpha=0.3)
    panels[0].set_ylabel("µs of CPU a row")
    panels[0].legend(frameon=False)
    figure.savefig(PICTURE, dpi=150)


def started(*words: Any) -> subprocess.Popen[str]:
    """A measurement in a process of its own."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    arguments = [sys.executable, __file__, *map(str, words)]
    return subprocess.Popen(arguments, env=environment, stdout=subprocess.PIPE, text=True)  # noqa: S603


def result(process: subprocess.Popen[str]) -> float:
    """What a measurement has printed last."""
    printed, _ = process.communicate()
    if process.returncode:
        raise RuntimeError(f"expected a measurement; got {printed}")
    return float(json.loads(printed.splitlines()[-1]))


def measured(*words: Any) -> float:
    """The result of a measurement."""
    return result(started(*words))


WORK: dict[str, Any] = {
    each.__name__: each for each in (memory, peak, write, processes, em, step, cost, chart)
}

if __name__ == "__main__":
    torch.set_num_threads(1)
    name, *words = sys.argv[1:] or ["cost"]
    value = WORK[name](*words)
    if value is not None:
        print(json.dumps(value))
