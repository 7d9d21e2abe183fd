"""Training steps of `fit`, in milliseconds of CPU, beside plain PyTorch and Pyro's own SVI.

    python benchmarks/engine/steps.py
    python benchmarks/engine/steps.py --stories dmvae --repeats 3
    python benchmarks/engine/steps.py --device cuda      # seconds of the clock, not of the CPU

The three are timed in turns, and the median of the turns is printed. Ratios below one mean that
`fit` is faster. "Compiled" is `fit` with `compile=True`, "bfloat16" replays with large products in
bfloat16, and "evaluated" is without replay.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import by_hand
import pyro
import timing
import torch
from pyro.infer import TraceEnum_ELBO
from pyro.optim import Adam

from pyro_moe import models
from pyro_moe.inference.handlers import EnumerateInParallel
from pyro_moe.inference.objectives import objective
from pyro_moe.inference.steps import gradients
from pyro_moe.inference.svi import SVI

SPIRAL, MNIST = (128, 128), (500, 500, 2000)


def main() -> None:
    """Time the requested stories."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--stories", nargs="+", default=list(CASES))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--steps", type=int, default=200, help="steps of each turn")
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    torch.set_num_threads(1)
    for name in options.stories:
        ways = ways_of(*(part.to(options.device) for part in CASES[name]()))
        turns: dict[str, list[float]] = {way: [] for way in ways}
        for _ in range(options.repeats):
            for way, run in ways.items():
                turns[way].append(1e3 * run(options.steps))
        median = {way: statistics.median(times) for way, times in turns.items()}
        print(name, {way: round(value, 2) for way, value in median.items()}, flush=True)
        for way in ("fit", "compiled", "bfloat16", "evaluated"):
            ratios = {f"{way} / {other}": median[way] / median[other] for other in ("hand", "pyro")}
            print("  ", {pair: round(value, 2) for pair, value in ratios.items()}, flush=True)
        key = {"story": name, "steps": options.steps, "device": options.device}
        timing.record.write("steps", key, {"milliseconds": median})


def ways_of(
    story: Any, plain: torch.nn.Module, *columns: torch.Tensor
) -> dict[str, Callable[[int], float]]:
    """Functions that take a number of steps and give the seconds of one."""
    by_plain = by_hand.step(plain, columns)
    return {
        "hand": lambda steps: seconds(lambda: [by_plain() for _ in range(steps)]) / steps,
        "fit": lambda steps: of_fit(story, columns, steps, replay=True),
        "compiled": lambda steps: of_fit(story, columns, steps, replay=True, compile=True),
        "bfloat16": lambda steps: of_fit(story, columns, steps, replay=True, bfloat16=True),
        "evaluated": lambda steps: of_fit(story, columns, steps, replay=False),
        "pyro": lambda steps: of_pyro(story, columns, max(10, steps // 5)),
    }


def of_fit(
    story: Any,
    columns: tuple[torch.Tensor, ...],
    steps: int,
    *,
    replay: bool,
    **choices: bool,
) -> float:
    """Seconds of a step after the first epoch, in which steps are recorded."""
    per_epoch = -(-len(columns[0]) // 256)
    elbo, treatment = objective("marginal")
    gradients.WORTHWHILE = 1 if replay else 10**9
    settings: dict[str, Any] = {"learning_rate": 1e-3, "temperature": 1.0, "seed": 0}
    run = SVI(
        story.model,
        story.guide,
        columns,
        elbo,
        treatment,
        epochs=1 + max(1, round(steps / per_epoch)),
        batch_size=256,
        **settings,
        **choices,
    )
    epochs = iter(run)
    next(epochs)
    return seconds(lambda: list(epochs)) / (len(run.history) - 1) / per_epoch


def of_pyro(story: Any, columns: tuple[torch.Tensor, ...], steps: int) -> float:
    """Seconds of a step by Pyro's SVI with the assignment summed out."""
    pyro.clear_param_store()
    model, guide = EnumerateInParallel()(story.model), EnumerateInParallel()(story.guide)
    svi = pyro.infer.SVI(model, guide, Adam({"lr": 1e-3}), TraceEnum_ELBO(max_plate_nesting=1))

    def take() -> None:
        rows = torch.randint(len(columns[0]), (256,), device=columns[0].device)
        svi.step(*(column[rows] for column in columns))

    with pyro.validation_enabled(False):
        take()
        return seconds(lambda: [take() for _ in range(steps)]) / steps


def seconds(work: Callable[[], Any]) -> float:
    """Seconds of a piece of work: of the CPU, or of the clock if a GPU is in use."""
    on_gpu = torch.cuda.is_initialized()
    clock = time.perf_counter if on_gpu else time.process_time
    started = clock()
    work()
    if on_gpu:
        torch.cuda.synchronize()
    return clock() - started


def spiral(y_dim: int = 0) -> tuple[torch.Tensor, ...]:
    """Columns of the size of the spirals: 10,240 rows of two columns, and targets."""
    torch.manual_seed(0)
    x = torch.randn(10240, 2)
    return (x, torch.randn(10240, y_dim)) if y_dim else (x,)


def digits(y_dim: int = 0) -> tuple[torch.Tensor, ...]:
    """Columns of the size of MNIST's: 2,560 rows of 784 columns, and targets."""
    torch.manual_seed(0)
    x = torch.rand(2560, 784)
    return (x, torch.randn(2560, y_dim)) if y_dim else (x,)


CASES: dict[str, Callable[[], tuple[Any, ...]]] = {
    "dmvae": lambda: (
        models.DMVAE(2, 2, 5, hidden=SPIRAL),
        by_hand.DMVAE(2, 2, 5, SPIRAL),
        *spiral(),
    ),
    "dvmoe": lambda: (
        models.DVMoE(2, 1, 5, 2, hidden=SPIRAL),
        by_hand.DVMoE(2, 1, 2, 5, SPIRAL),
        *spiral(1),
    ),
    "dmvae-mnist": lambda: (
        models.DMVAE(784, 10, 10, hidden=MNIST),
        by_hand.DMVAE(784, 10, 10, MNIST),
        *digits(),
    ),
    "dvmoe-mnist": lambda: (
        models.DVMoE(784, 1, 10, 10, hidden=MNIST),
        by_hand.DVMoE(784, 1, 10, 10, MNIST),
        *digits(1),
    ),
}


if __name__ == "__main__":
    main()
