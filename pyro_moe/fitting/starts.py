"""The starts of a fit, trained one after the other or, if they are small, together."""

from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from typing import Any

from pyro_moe.fitted import Fit
from pyro_moe.inference.initialize import phases
from pyro_moe.inference.programs import learned
from pyro_moe.inference.starts.several import best_start
from pyro_moe.inference.starts.stacked import side_by_side
from pyro_moe.inference.steps import MOST
from pyro_moe.progress import Progress

from .checkpoint import Checkpoint
from .plan import Plan
from .training import begun, name_of, run_of, stopped, train

Phases = Iterator[tuple[str, Any]]


def trained(
    plan: Plan,
    names: dict[str, Any],
    progress: bool,
    callback: Callable[[Fit], Any] | None,
    checkpoint: Checkpoint | None,
) -> list[Fit]:
    """The trained starts, up to one that was interrupted. EM goes on with the best of its own.

    Starts of large models, or with a callback, are trained one after the other, and the others
    together as far as `side_by_side` takes them.
    """
    number = 1 if plan.by_em else plan.settings["restarts"]
    if number > 1 and callback is None and _is_small(plan):
        return _together(plan, names, progress, checkpoint)
    fits: list[Fit] = []
    for start in range(number):
        run = _begin(plan, start)
        shown = Progress(progress, start + 1, number)
        begin = begun(run, plan, **names)
        fits.append(train(begin, _phases(plan, run), shown, callback, checkpoint, str(start)))
        if fits[-1].interrupted:
            break
    return fits


def _begin(plan: Plan, start: int) -> Any:
    if plan.by_em and isinstance(plan.start, str) and plan.start == "random":
        return best_start(partial(run_of, plan), plan.settings["restarts"], plan.num_components)
    return run_of(plan, start)


def _phases(plan: Plan, run: Any) -> Phases:
    epochs = plan.settings["initial_epochs"]
    return phases(run, plan.start, epochs=epochs, num_components=plan.num_components)


def _is_small(plan: Plan) -> bool:
    """Whether the starts have few parameters."""
    values = learned({"params": {}}, plan.model, plan.guide).values()
    return plan.settings["restarts"] * sum(value.numel() for value in values) <= MOST


def _together(
    plan: Plan, names: dict[str, Any], progress: bool, checkpoint: Checkpoint | None
) -> list[Fit]:
    """The starts, one phase after the other, each of all starts."""
    runs = [run_of(plan, start) for start in range(plan.settings["restarts"])]
    fits = [begun(run, plan, **names) for run in runs]
    rest = {start: _phases(plan, run) for start, run in enumerate(runs)}
    latest: list[tuple[str, Any]] = [("training", run) for run in runs]
    while rest:
        try:
            rest = {start: more for start, more in rest.items() if _next(more, latest, start)}
        except KeyboardInterrupt:
            return [stopped(fit, *each) for fit, each in zip(fits, latest, strict=True)]
        named = {name_of(start, latest[start][0]): latest[start][1] for start in rest}
        interrupted = bool(rest) and _ahead(latest[min(rest)][0], named, progress, checkpoint)
        for start in list(rest):
            phase, run = latest[start]
            fits[start].history.extend({"phase": phase, **record} for record in run.history)
            if interrupted:
                fits[start] = stopped(fits[start], phase, run)
                continue
            shown = Progress(progress and not run.ended, start + 1, len(fits))
            fits[start] = train(
                fits[start], [(phase, run)], shown, checkpoint=checkpoint, start=str(start)
            )
            if fits[start].stopped:
                del rest[start]
            interrupted = fits[start].interrupted
        if interrupted:
            break
    return fits


def _next(phases: Phases, latest: list[tuple[str, Any]], start: int) -> bool:
    """Prepare the next phase of a start. Whether there is one."""
    for each in phases:
        latest[start] = each
        return True
    return False


def _ahead(phase: str, runs: dict[str, Any], progress: bool, checkpoint: Checkpoint | None) -> bool:
    """Take epochs of all runs together. Whether that was interrupted."""
    if checkpoint:
        checkpoint.go_on_together(runs)
    first, *_ = runs.values()
    with Progress(progress, starts=len(runs)) as shown:
        first.gradients.say = shown.say
        shown.begin(phase, len(first.history), first.epochs)
        try:
            with closing(side_by_side(list(runs.values()))) as records:
                for record in records:
                    shown.advance(record)
                    if checkpoint and checkpoint.due:
                        checkpoint.keep_together(runs)
        except KeyboardInterrupt:
            return True
        finally:
            if checkpoint:
                checkpoint.keep_together(runs)
    return False
