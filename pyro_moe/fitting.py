"""Fitting of models: `fit` and `resume`."""

import math
import warnings
from collections.abc import Callable, Iterable
from dataclasses import replace
from numbers import Integral, Real
from typing import Any

import numpy as np
import torch
from pyro.infer import ELBO

from pyro_moe.inference.context import reproducible, running, stream
from pyro_moe.inference.em import EM
from pyro_moe.inference.errors import DataError, NonFiniteWarning
from pyro_moe.inference.initialize import STARTS, phases
from pyro_moe.inference.objectives import has_temperatures, objective
from pyro_moe.inference.programs import Program, Programs, isolated, modules, owner
from pyro_moe.inference.protocols import Adaptive, HasStart, Resettable
from pyro_moe.inference.svi import SVI, NonFiniteError, Schedule
from pyro_moe.inference.traces import enumerated_traces, row_bounds

from .fitted import Fit, described
from .progress import Progress
from .rows import Data, as_tensors
from .validation import check, check_components, check_resolution, check_target

STEPS = 4000


def geometric(start: float, end: float) -> Callable[[float], float]:
    """A geometric schedule from ``start`` to ``end``, a function of the completed share.

    Example:
        >>> round(geometric(1.0, 0.01)(0.5), 3)
        0.1
    """
    return lambda done: start * (end / start) ** done


DEFAULT_TEMPERATURE = geometric(1.0, 0.3)


def fit(
    model: Program,
    guide: Program,
    data: Data,
    *,
    epochs: int | None = None,
    batch_size: int = 256,
    learning_rate: Schedule = 5e-3,
    loss: str | ELBO = "marginal",
    temperature: Schedule | None = None,
    initialize: Any = None,
    initial_epochs: int | None = None,
    restarts: int = 1,
    held_out: float = 0.1,
    missing_targets: bool = False,
    seed: int = 0,
    device: str | torch.device | None = None,
    progress: bool = True,
    callback: Callable[[Fit], None] | None = None,
) -> Fit:
    r"""Fit a Pyro model and guide to data by stochastic variational inference or EM.

    .. math:: \max_{\theta, \phi} \sum_n E_{q_\phi(z, c \mid x_n)}
              \log \frac{p_\theta(x_n, z, c)}{q_\phi(z, c \mid x_n)}

    The model must have its rows in the plate ``"data"``. If it has an assignment, this must be
    the one-hot site ``c``. Model and guide are copied. The caller's parameters do not change, and
    fits share no parameters. Modules are in training mode during training and in evaluation mode
    otherwise, so that dropout and batch normalization do not randomize results of a fit.

    Args:
        model: The generative model, called with the columns of a minibatch.
        guide: The variational posterior, called with the same arguments.
        data: x (N, D), or a tuple (x, y): tensors, numpy arrays, pandas data frames, or a torch
            ``Dataset`` of such rows.
        epochs: Passes over the data. If None, there are about 4,000 steps and at least 5 epochs.
            ``epochs=0`` with ``initialize="keep"`` returns a fit with the given parameters.
        batch_size: Rows in a minibatch.
        learning_rate: Peak step size of Adam. It is reached after 30 % of the run, and the step
            size falls to zero at the end. Or a function of the completed share of the run. For
            large networks choose a smaller value than the default, such as 1e-3.
        loss: ``"marginal"`` (``c`` summed out), ``"categorical-kl"`` (the paper's L̃),
            ``"relaxed"``, ``"em"``, or a Pyro ELBO object; see `pyro_moe.inference.objectives`.
        temperature: τ of the relaxed ``c`` in the guide, a number or a function of the completed
            share of the run. That of the model is 0.3 τ. If None, τ falls geometrically from 1 to
            0.3, except that a ``c`` relaxed in plain functions keeps the temperatures written
            there. ``"marginal"`` does not use it.
        initialize: How to initialize. None: the story's attribute ``start`` if it has one, and
            ``"random"`` otherwise. ``"random"``: ``reset_parameters`` of every module that has
            it. ``"keep"``: the given parameters. ``"autoencoder"``: train an autoencoder without
            noise and prior, and cluster its codes, see `inference.clustering`. ``"tsne"`` and
            ``"umap"``: the same with a neighbor embedding of the codes. Or responsibilities
            (N, K) of any clustering. With all but the first two, a phase of training with fixed
            assignments comes before the training itself.
        initial_epochs: Epochs of the autoencoder, ``epochs`` if None. The phase with fixed
            assignments takes a fifth as many.
        restarts: Number of independent starts. The one with the best marginal ELBO on held-out
            rows is returned.
        held_out: Share of rows held out to choose among restarts. Not used with one start.
        missing_targets: Whether y may have NaN. Rows without a target contribute to a model of x,
            but not to the experts.
        seed: Seed of all random numbers.
        device: Device of the training; that of the model's parameters if None.
        progress: Whether to show a progress bar, or a few lines if stderr is not a terminal.
        callback: Called after every epoch with the fit so far. It may raise
            ``KeyboardInterrupt`` to stop early.

    Returns:
        The fit. After Ctrl-C it has the completed epochs. After a non-finite loss or gradient it
        has the last valid state. ``stopped`` gives the reason.

    Raises:
        DataError: If the data cannot be fitted, because of its shape, its values or too few rows.
        ValueError: If an argument is invalid.

    Warns:
        DataWarning: If a column of y is constant, if a class has no rows, or if the type of a
            column has too few digits for its variation.
        EmptyComponentWarning: If the expected number of rows of a component is below one half, or
            below both D + 1 and a tenth of an equal share.
        NonFiniteWarning: If training stopped at a non-finite value.

    Example:
        >>> from pyro_moe import models
        >>> story = models.GMM(x_dim=2, num_components=3)
        >>> x = torch.randn(60, 2, generator=torch.Generator().manual_seed(0))
        >>> fitted = fit(story.model, story.guide, x, epochs=2, progress=False)
        >>> len(fitted.history)
        2
    """
    _check_numbers(
        epochs=(epochs, 0),
        batch_size=(batch_size, 1),
        initial_epochs=(initial_epochs, 0),
        restarts=(restarts, 1),
        seed=(seed, 0),
    )
    _check_schedules(learning_rate, temperature)
    if not 0 < held_out < 1:
        raise ValueError(f"expected held_out between 0 and 1; got {held_out}")
    if initialize is None:
        story = owner(model)
        initialize = story.start if isinstance(story, HasStart) else "random"
    columns = _columns(model, guide, data, device, missing_targets)
    for name, column in zip("xy", columns, strict=False):
        check_resolution(column, name)
    for y in columns[1:2]:
        check_target(y)
    copies = isolated(model, guide)
    for part in modules(*copies):
        part.to(columns[0].device).eval()
    learns = not (epochs == 0 and isinstance(initialize, str) and initialize == "keep")
    in_guide = isinstance(loss, str) and loss == "categorical-kl"
    num_components = check(copies[0], copies[1], columns, learns=learns, assigns=in_guide)
    start = _start(initialize, len(columns[0]), num_components)
    held, kept = _split(len(columns[0]), held_out if restarts > 1 else 0.0, seed)
    if learns and num_components is not None and len(kept) < num_components:
        raise DataError(
            f"expected at least as many rows as components, {num_components}; "
            f"got {len(kept)}, with {len(held)} held out"
        )
    batch_size = min(batch_size, len(kept))
    if epochs is None:
        epochs = max(5, math.ceil(STEPS * batch_size / len(kept)))
    settings: dict[str, Any] = {
        "epochs": epochs,
        "batch_size": batch_size,
        "learning_rate": learning_rate,
        "loss": loss if isinstance(loss, str) else type(loss).__name__,
        "temperature": temperature,
        "initialize": initialize if isinstance(initialize, str) else "responsibilities",
        "initial_epochs": epochs if initial_epochs is None else initial_epochs,
        "restarts": restarts,
        "missing_targets": missing_targets,
        "seed": seed,
    }
    if not isinstance(start, str):
        start = start[kept]
    fits: list[Fit] = []
    for restart in range(restarts):
        run = _run(model, guide, tuple(column[kept] for column in columns), loss, restart, settings)
        runs = phases(run, start, epochs=settings["initial_epochs"], num_components=num_components)
        started = _begun(run, settings, **described(data))
        fitted = _train(started, runs, Progress(progress, restart + 1, restarts), callback)
        if restarts > 1:
            try:
                score = _marginal_elbo(run, tuple(column[held] for column in columns))
                fitted = replace(fitted, held_out_elbo=score)
            except KeyboardInterrupt:
                fitted = replace(fitted, stopped="interrupted")
        fits.append(fitted)
        if fitted.stopped == "interrupted":
            break
    best = max(fits, key=_score)
    if best.history:
        check_components(best)
    return best


def resume(fit: Fit, *, epochs: int | None = None, progress: bool = True) -> Fit:
    """Continue training. The result is that of an uninterrupted run.

    Args:
        fit: A fit returned by `fit`.
        epochs: Epochs of the whole run; those of `fit` if None.
        progress: Whether to show a progress bar, or a few lines if stderr is not a terminal.

    Returns:
        A new fit. The given one is unchanged.

    Raises:
        ValueError: If training stopped in an initial phase, or if the fit was restored from a run
            folder, which does not contain the optimizer.
    """
    if fit.run is None:
        raise ValueError("expected a fit with its optimizer; got one of a run folder")
    if fit.history and not fit.run.history:
        raise ValueError(
            "expected a fit that was stopped in phase 'training'; got one stopped in phase "
            f"{fit.history[-1]['phase']!r}"
        )
    run = fit.run.copy(epochs=fit.run.epochs if epochs is None else epochs)
    settings = {**fit.settings, "epochs": run.epochs}
    programs, history = Programs(run.model, run.guide, run.store), list(fit.history)
    begun: dict[str, Any] = {"programs": programs, "history": history, "held_out_elbo": None}
    resumed = replace(fit, **begun, settings=settings, run=run)
    return _train(resumed, [("training", run)], Progress(progress), None)


def _begun(run: SVI | EM, settings: dict[str, Any], **described: Any) -> Fit:
    """A fit before its training."""
    programs = Programs(run.model, run.guide, run.store)
    return Fit(programs, run.data, [], settings, run=run, **described)


def _score(fitted: Fit) -> float:
    elbo = fitted.held_out_elbo
    return elbo if elbo is not None and math.isfinite(elbo) else -math.inf


def _check_numbers(**given: tuple[int | None, int]) -> None:
    """Check that each number is None, or an integer not below its minimum."""
    for name, (value, least) in given.items():
        if value is not None and not isinstance(value, Integral):
            raise ValueError(f"expected {name} to be an integer; got {value!r}")
        if value is not None and value < least:
            raise ValueError(f"expected {name} of at least {least}; got {value}")


def _check_schedules(learning_rate: Any, temperature: Any) -> None:
    if not (
        callable(learning_rate) or (isinstance(learning_rate, Real) and float(learning_rate) >= 0)
    ):
        raise ValueError(
            f"expected learning_rate of at least 0, or a function; got {learning_rate!r}"
        )
    if temperature is None or callable(temperature):
        return
    if not (isinstance(temperature, Real) and float(temperature) > 0):
        raise ValueError(f"expected temperature above 0, or a function; got {temperature!r}")


def _run(
    model: Program,
    guide: Program,
    data: tuple[torch.Tensor, ...],
    loss: str | ELBO,
    restart: int,
    settings: dict[str, Any],
) -> SVI | EM:
    """A run with initialized copies of model and guide."""
    model, guide = isolated(model, guide)
    seed = stream(settings["seed"], restart)
    _reset(model, guide, data, seed, keep=settings["initialize"] == "keep")
    if loss == "em":
        return EM(model, guide, data, settings["epochs"], seed)
    elbo, treatment = objective(loss)
    chosen = {key: settings[key] for key in ("epochs", "batch_size", "learning_rate")}
    temperature = settings["temperature"]
    return SVI(
        model,
        guide,
        data,
        elbo,
        treatment,
        temperature=DEFAULT_TEMPERATURE if temperature is None else temperature,
        as_written=temperature is None and not has_temperatures(model, guide),
        seed=seed,
        **chosen,
    )


def _train(
    fitted: Fit,
    runs: Iterable[tuple[str, SVI | EM]],
    progress: Progress,
    callback: Callable[[Fit], None] | None,
) -> Fit:
    """Train the phases in order, until the last ends or training stops."""
    stopped = None
    with progress:
        try:
            for phase, run in runs:
                progress.begin(phase, len(run.history), run.epochs)
                for record in run:
                    fitted.history.append({"phase": phase, **record})
                    progress.advance(record)
                    if callback is not None:
                        callback(fitted)
        except KeyboardInterrupt:
            stopped = "interrupted"
        except NonFiniteError as problem:
            stopped = str(problem)
            warnings.warn(
                f"expected finite losses and gradients; got a {problem}: training stopped, and "
                "the fit has the last valid parameters",
                NonFiniteWarning,
                stacklevel=3,
            )
    return replace(fitted, stopped=stopped)


def _columns(
    model: Program,
    guide: Program,
    data: Data,
    device: str | torch.device | None,
    missing_targets: bool,
) -> tuple[torch.Tensor, ...]:
    """Data with the type of the parameters, on the device of the training."""
    parameters = [p for part in modules(model, guide) for p in part.parameters()]
    like = parameters[0] if parameters else torch.empty(0)
    columns = as_tensors(data, dtype=like.dtype, missing_targets=missing_targets)
    return tuple(column.to(device or like.device) for column in columns)


def _start(initialize: Any, num_rows: int, num_components: int | None) -> str | torch.Tensor:
    if isinstance(initialize, str):
        if initialize not in STARTS:
            raise ValueError(
                f"expected initialize in {STARTS} or responsibilities (N, K); got {initialize!r}"
            )
        return initialize
    if torch.is_tensor(initialize):
        initialize = initialize.detach().cpu()
    responsibilities = torch.as_tensor(np.asarray(initialize), dtype=torch.float64)
    if num_components is None:
        return responsibilities  # `phases` raises the error
    if responsibilities.shape != (num_rows, num_components):
        raise DataError(
            f"expected responsibilities of shape ({num_rows}, {num_components}); "
            f"got {tuple(responsibilities.shape)}"
        )
    sums = responsibilities.sum(-1)
    if not ((responsibilities >= 0).all() and (sums - 1).abs().max() < 1e-3):
        raise DataError(
            "expected responsibilities that are probabilities in each row; got entries from "
            f"{responsibilities.min().item():.3g} and row sums from {sums.min().item():.3g} "
            f"to {sums.max().item():.3g}"
        )
    return responsibilities


def _split(num_rows: int, share: float, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Indices of held-out rows and of the other rows."""
    with reproducible(seed):
        order = torch.randperm(num_rows)
    num_held = math.ceil(share * num_rows)
    return order[:num_held].sort().values, order[num_held:].sort().values


def _reset(
    model: Program, guide: Program, data: tuple[torch.Tensor, ...], seed: int, keep: bool
) -> None:
    """Initialize the parameters, and set the units of stories from the data."""
    for part in modules(model, guide):
        part.to(data[0].device).eval()  # only the epochs of `SVI` are in training mode
        if keep:
            continue
        with reproducible(seed):
            part.apply(_reset_parameters)
        if isinstance(part, Adaptive):
            with reproducible(seed, 0, 1), torch.no_grad():
                part.adapt(*data)


def _reset_parameters(module: torch.nn.Module) -> None:
    if isinstance(module, Resettable):
        module.reset_parameters()


def _marginal_elbo(
    run: SVI | EM, columns: tuple[torch.Tensor, ...], num_particles: int = 8
) -> float:
    """The marginal ELBO in nats per row, which compares starts trained with any objective.

    The KL divergence of latent variables outside the plate, such as experts with a prior, is left
    out. It belongs to the training rows.
    """
    total = 0.0
    with torch.no_grad(), reproducible(run.seed, 0, 2), running(run.store):
        for batch in zip(*(column.split(4096) for column in columns), strict=True):
            for _ in range(num_particles):
                traces = enumerated_traces(run.model, run.guide, *batch)
                total += row_bounds(*traces).sum().item()
    return total / num_particles / len(columns[0])
