"""The runs of `fit`, from initialized parameters to trained ones."""

import math
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from pyro.infer import ELBO

from pyro_moe.fitted import Fit, Training
from pyro_moe.fitted.training import fingerprint
from pyro_moe.inference.context import reproducible, running, stream
from pyro_moe.inference.em import EM
from pyro_moe.inference.errors import NonFiniteWarning, warn
from pyro_moe.inference.objectives import MarginalELBO, has_temperatures, objective
from pyro_moe.inference.prior import with_ridge
from pyro_moe.inference.programs import Program, Programs, isolated
from pyro_moe.inference.rows.order import chosen
from pyro_moe.inference.svi import SVI, NonFiniteError, at
from pyro_moe.inference.traces import enumerated_traces, log_assignment, row_log_weights
from pyro_moe.progress import Progress

from .checkpoint import Checkpoint
from .plan import Plan
from .reset import reset

LAST_PHASE = "all rows"


def geometric(start: float, end: float) -> Callable[[float], float]:
    """A geometric schedule from ``start`` to ``end``, a function of the completed share.

    Example:
        >>> round(geometric(1.0, 0.01)(0.5), 3)
        0.1
    """
    return partial(_geometric, start, end)


def _geometric(start: float, end: float, done: float) -> float:
    return start * (end / start) ** done


DEFAULT_TEMPERATURE = geometric(1.0, 0.3)


def run_of(plan: Plan, number: int) -> Any:
    """A run of SVI or EM with initialized copies of model and guide.

    Args:
        plan: The plan of the fit.
        number: The number of the start.
    """
    held, settings = plan.held, plan.settings
    data, about = plan.training_columns, plan.training_annotations
    model, guide = isolated(plan.model, plan.guide)
    seed = stream(settings["seed"], number)
    keep = settings["initialize"] == "keep"
    reset(model, guide, data, seed, weights=about.weights, keep=keep)
    if plan.by_em:
        epochs, tolerance = settings["epochs"], settings["tolerance"]
        return EM(model, guide, data, epochs, seed, plan.prior, tolerance, about)
    with_ridge(plan.prior, model, guide)
    number = len(data[0])
    teaches = about.labels is not None or about.groups is not None
    teaches = teaches and not has_exact_posterior(model, guide, data, seed)
    elbo, treatment = objective(
        plan.loss,
        prior=plan.prior,
        num_rows=number,
        mean_weight=about.total(number) / number,
        teaches=teaches,
    )
    temperature = settings["temperature"]
    return SVI(
        model,
        guide,
        data,
        elbo,
        treatment,
        epochs=settings["epochs"],
        batch_size=settings["batch_size"],
        learning_rate=settings["learning_rate"],
        temperature=DEFAULT_TEMPERATURE if temperature is None else temperature,
        as_written=temperature is None and not has_temperatures(model, guide),
        seed=seed,
        held_out=tuple(column[held] for column in plan.columns) if len(held) else None,
        annotations=about,
        held_annotations=plan.annotations.take(held),
        patience=settings["patience"],
        compile=settings["compile"],
        bfloat16=settings["bfloat16"],
        new_optimizer=plan.new_optimizer,
    )


def begun(run: SVI | EM, plan: Plan, **described: Any) -> Fit:
    """A fit before its training, with the history of the run."""
    programs = Programs(run.model, run.guide, run.store)
    history = [{"phase": "training", **record} for record in run.history]
    return Fit(
        programs,
        plan.columns,
        history,
        plan.settings,
        annotations=plan.annotations,
        run=run,
        **described,
    )


def has_exact_posterior(
    model: Program, guide: Program, data: tuple[torch.Tensor, ...], seed: int
) -> bool:
    """Whether the guide has no q(c), or that of Bayes' rule given all else, on some rows."""
    some = tuple(column[:64] for column in data)
    with torch.no_grad(), reproducible(seed), running({"params": {}, "constraints": {}}):
        traces = enumerated_traces(*isolated(model, guide), *some)
    log_q = log_assignment(traces[1])
    bayes = row_log_weights(*traces).softmax(0)
    return log_q is None or torch.allclose(log_q.exp().to(bayes), bayes, atol=1e-3)


def train(
    fitted: Fit,
    runs: Iterable[tuple[str, SVI | EM]],
    progress: Progress,
    callback: Callable[[Fit], Any] | None = None,
    checkpoint: Checkpoint | None = None,
    start: str = "last",
) -> Fit:
    """Train the phases in order, until the last ends or training stops.

    With a checkpoint, a phase that has not begun goes on from the last state of its name in this
    start.
    """
    reason, phase, run = None, "training", fitted.run
    with progress:
        try:
            for phase, run in runs:
                name = name_of(start, phase)
                done = checkpoint.go_on(name, run) if checkpoint and not run.history else []
                fitted.history.extend({"phase": phase, **record} for record in done)
                progress.begin(phase, len(run.history), run.epochs)
                if isinstance(run, SVI):
                    run.gradients.say = progress.say
                try:
                    for record in run:
                        fitted.history.append({"phase": phase, **record})
                        progress.advance(record)
                        if checkpoint and checkpoint.due:
                            checkpoint.keep(name, run)
                        if callback is not None and callback(fitted) is True:
                            raise KeyboardInterrupt
                finally:
                    if checkpoint:
                        checkpoint.keep(name, run)
        except KeyboardInterrupt:
            return stopped(fitted, phase, run)
        except NonFiniteError as problem:
            reason = str(problem)
            warn(
                f"expected finite losses and gradients; got a {problem}: training stopped, and "
                "the fit has the last valid parameters",
                NonFiniteWarning,
            )
    return _scored(fitted, reason)


def name_of(start: str | int, phase: str) -> str:
    """The name of a phase of a start among all phases of a fit."""
    return f"{start}-{phase}".replace(" ", "-")


def stopped(fitted: Fit, phase: str, run: Any) -> Fit:
    """The fit with the words of an interruption in this phase."""
    reason = f"interrupted after {len(run.history)} of {run.epochs} epochs"
    return _scored(fitted, reason if phase == "training" else f"{reason} of phase {phase!r}")


def _scored(fitted: Fit, reason: str | None) -> Fit:
    elbo = fitted.held_out_elbo
    if isinstance(fitted.run, SVI) and fitted.run.held_out is not None:
        elbo = fitted.run.held_out_elbo
    return replace(fitted, stopped=reason, held_out_elbo=elbo)


def with_a_sample(fitted: Fit) -> Fit:
    """A fit that has a sample of its rows, and what is to be remembered of all of them."""
    columns = (*fitted.data, *fitted.annotations.columns)
    training = replace(Training.of(fitted.data), fingerprint=fingerprint(columns), sampled=True)
    rows = chosen(fitted.data, fitted.settings["seed"])
    data, annotations = tuple(c[rows] for c in fitted.data), fitted.annotations.take(rows)
    return replace(fitted, data=data, annotations=annotations, restored=training, run=None)


def finish(
    fitted: Fit,
    progress: bool,
    callback: Callable[[Fit], Any] | None,
    checkpoint: Checkpoint | None = None,
) -> Fit:
    """A last phase with all rows, if some were held out.

    It is a tenth as long as the training was, and its learning rate rises to that of the best
    state, or to a tenth of the peak if that is higher, and falls to zero.
    """
    run = fitted.run
    if not isinstance(run, SVI) or run.held_out is None or not run.history:
        return fitted
    best = max(run.history, key=lambda record: record.get("held_out_elbo", -math.inf))
    tenth = 0.1 * max(record["learning_rate"] for record in run.history)
    peak = max(best["learning_rate"], tenth)
    temperature = at(run.temperature, best["epoch"] / run.epochs)
    last = replace(
        run,
        data=fitted.data,
        annotations=fitted.annotations,
        elbo=_of_rows(run.elbo, fitted),
        epochs=max(1, round(0.1 * len(run.history))),
        learning_rate=peak,
        temperature=temperature,
        held_out=None,
        patience=None,
        history=[],
        optimizer=None,
        best=None,
    )
    fitted, runs = replace(fitted, run=last), [(LAST_PHASE, last)]
    return train(fitted, runs, Progress(progress), callback, checkpoint)


def _of_rows(elbo: ELBO, fitted: Fit) -> ELBO:
    """The same objective for all rows of a fit, on whose number its prior depends."""
    if not isinstance(elbo, MarginalELBO):
        return elbo
    number = len(fitted.data[0])
    return MarginalELBO(
        elbo.num_particles,
        prior=elbo.prior,
        num_rows=number,
        mean_weight=fitted.annotations.total(number) / number,
        teaches=elbo.teaches,
    )
