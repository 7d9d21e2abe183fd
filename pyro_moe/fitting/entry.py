"""The functions `fit` and `resume`."""

import math
import warnings
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

import torch
from pyro.infer import ELBO

from pyro_moe.fitted import Fit, described
from pyro_moe.inference.em import EM, ITERATIONS, TOLERANCE
from pyro_moe.inference.errors import ConvergenceWarning, DataError
from pyro_moe.inference.initialize import phases
from pyro_moe.inference.prior import Prior
from pyro_moe.inference.programs import Program, Programs, isolated, modules, owner
from pyro_moe.inference.protocols import HasStart
from pyro_moe.inference.starts.several import best_start
from pyro_moe.inference.svi import Schedule, steps_in_epoch
from pyro_moe.progress import Progress
from pyro_moe.rows import Data, column_names
from pyro_moe.validation import check, check_columns, check_components

from .arguments import (
    check_numbers,
    check_prior,
    check_schedules,
    check_start,
    has_em,
    held_share,
    split,
)
from .choice import chosen_prior
from .columns import columns_of
from .training import LAST_PHASE, begun, finish, run_of, train

STEPS = 4000
STARTS_OF_EM = 12
PATIENCE = 20


def fit(
    model: Program,
    guide: Program,
    data: Data,
    *,
    epochs: int | None = None,
    batch_size: int | None = None,
    learning_rate: Schedule | None = None,
    loss: str | ELBO = "auto",
    temperature: Schedule | None = None,
    initialize: Any = None,
    initial_epochs: int | None = None,
    restarts: int | None = None,
    validation: float | None = None,
    patience: int | None = None,
    tolerance: float = TOLERANCE,
    prior: str | Prior = "auto",
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
        epochs: Passes over the data, or the maximum number of iterations of EM. If None, there are
            4,000 steps, initial phases included, or 5 epochs if these are more, unless training
            stops early, see ``patience``; and EM has up to 1,000 iterations. ``epochs=0`` with
            ``initialize="keep"`` returns a fit with the given parameters.
        batch_size: Maximum number of rows in a minibatch, 256 if None. All are nearly equal.
        learning_rate: Peak step size of Adam, 5e-3 if None. It is reached after 30 % of the run,
            and the step size falls to zero at the end. Or a function of the completed share of
            the run. For large networks choose a smaller value, such as 1e-3.
        loss: ``"auto"``: ``"em"`` if the model is that of a shipped story with an M-step for every
            parameter, and no argument is given that belongs to gradients; ``"marginal"``
            otherwise. Or ``"marginal"`` (``c`` summed out), ``"categorical-kl"`` (the paper's
            L̃), ``"relaxed"``, ``"em"``, or a Pyro ELBO object; see
            `pyro_moe.inference.objectives`.
        temperature: τ of the relaxed ``c`` in the guide, a number or a function of the completed
            share of the run. That of the model is 0.3 τ. If None, τ falls geometrically from 1 to
            0.3, except that a ``c`` relaxed in plain functions keeps the temperatures written
            there. ``"marginal"`` does not use it.
        initialize: How to initialize. None: the story's attribute ``start`` if it has one, and
            ``"random"`` otherwise. ``"random"``: ``reset_parameters`` of every module that has
            it. ``"keep"``: the given parameters. ``"autoencoder"``: train an autoencoder without
            noise and prior, and cluster its codes, see `inference.clustering`. ``"tsne"`` and
            ``"umap"``: the same with a neighbor embedding of the codes. Or responsibilities
            (N, K) of any clustering, or labels (N,) from 0 to K - 1. With all but the first two, a
            phase of training with fixed assignments comes before the training itself.
        initial_epochs: Epochs of the autoencoder. If None, ``epochs``, or a third of the training
            if ``epochs`` is None, too. The phase with fixed assignments takes a fifth as many.
        restarts: Number of starts. If None, EM has twelve short ones, see
            `inference.starts.several`, and gradients have one. EM takes the start with the best
            objective, gradients that with the best marginal ELBO on held-out rows.
        validation: Share of rows to hold out during training by gradients. If None, it is a tenth
            of the rows, or up to a quarter if a tenth is less than 50. It is zero if ``epochs``
            is given with one start, or if the rows are so few that the prior is strong. At the
            end there is a phase with all rows, a tenth as long.
        patience: Training stops if the marginal ELBO of the held-out rows, which is computed
            a hundred times in a run, has not increased so many times, and goes back to the best
            state. If None, 20; training does not stop early if ``epochs`` is given.
        tolerance: EM stops when its objective, the sum over rows, is expected to increase by less
            than so many nats in all further iterations.
        prior: ``"weak"``, the default `Prior`; ``"none"`` for maximum likelihood; a `Prior`; or
            ``"auto"``, a stronger one if there are few rows and cross-validation is in its favor,
            see `fitting.choice`. It applies to ``"em"`` and ``"marginal"``.
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
        ConvergenceWarning: If EM did not converge in its own 1,000 iterations.
        NonFiniteWarning: If training stopped at a non-finite value.

    Example:
        >>> from pyro_moe import models
        >>> story = models.GMM(x_dim=2, num_components=3)
        >>> x = torch.randn(60, 2, generator=torch.Generator().manual_seed(0))
        >>> fitted = fit(story.model, story.guide, x, epochs=2, progress=False)
        >>> len(fitted.history)
        2
    """
    check_numbers(
        epochs=(epochs, 0),
        batch_size=(batch_size, 1),
        initial_epochs=(initial_epochs, 0),
        restarts=(restarts, 1),
        patience=(patience, 1),
        seed=(seed, 0),
    )
    check_schedules(learning_rate, temperature)
    given_prior = check_prior(prior)
    story = owner(model)
    if initialize is None:
        initialize = story.start if isinstance(story, HasStart) else "random"
    keep = isinstance(initialize, str) and initialize == "keep"
    to_tensors: dict[str, Any] = {"device": device, "missing_targets": missing_targets}
    columns = columns_of(model, guide, data, double=loss == "em", **to_tensors)
    one, other = isolated(model, guide)
    for part in modules(one, other):
        part.to(columns[0]).eval()
    learns = not (epochs == 0 and keep)
    assigns = isinstance(loss, str) and loss == "categorical-kl"
    num_components = check(one, other, columns, learns=learns, assigns=assigns)
    if learns:
        check_columns(columns, column_names(data))
    if isinstance(loss, str) and loss == "auto":
        of_gradients = (batch_size, learning_rate, temperature, validation, patience)
        em = all(each is None for each in of_gradients) and has_em(one, other, columns)
        loss = "em" if em else "marginal"
        if em and learns:
            columns = columns_of(model, guide, data, double=True, **to_tensors)
    start = check_start(initialize, len(columns[0]), num_components)
    by_em = isinstance(loss, str) and loss == "em"
    if restarts is None:
        restarts = STARTS_OF_EM if by_em and start == "random" and epochs is None else 1
    if given_prior is None:
        given_prior = chosen_prior(model, guide, columns, num_components, loss, learns, seed)
    share = 0.0
    if not by_em:
        early = epochs is None and given_prior.rows < 1.0
        share = held_share(validation, len(columns[0]), early=early, restarts=restarts)
    held, kept = split(columns, share if learns else 0.0, seed)
    if learns and len(kept) < (num_components or 1):
        raise DataError(
            f"expected at least as many rows as components, {num_components or 1}; "
            f"got {len(kept)}, with {len(held)} held out"
        )
    lengths = _lengths(
        epochs, initial_epochs, batch_size, len(columns[0]), share, by_em=by_em, start=start
    )
    settings: dict[str, Any] = {
        **lengths,
        "learning_rate": 5e-3 if learning_rate is None else learning_rate,
        "loss": loss if isinstance(loss, str) else type(loss).__name__,
        "temperature": temperature,
        "initialize": initialize if isinstance(initialize, str) else "responsibilities",
        "restarts": restarts,
        "validation": share,
        "patience": PATIENCE if patience is None and epochs is None else patience,
        "tolerance": tolerance,
        "prior": asdict(given_prior),
        "missing_targets": missing_targets,
        "seed": seed,
    }
    if not isinstance(start, str):
        start = start[kept]

    def begin(number: int) -> Any:
        return run_of(model, guide, columns, (held, kept), loss, number, settings, given_prior)

    fits: list[Fit] = []
    for number in range(1 if by_em else restarts):
        several = by_em and isinstance(start, str) and start == "random"
        run = best_start(begin, restarts, num_components) if several else begin(number)
        runs = phases(run, start, epochs=settings["initial_epochs"], num_components=num_components)
        fitted = begun(run, columns, settings, **described(data))
        shown = Progress(progress, number + 1, 1 if by_em else restarts)
        fits.append(train(fitted, runs, shown, callback))
        if fits[-1].stopped == "interrupted":
            break
    best = max(fits, key=_score)
    if fits[-1].stopped != "interrupted" and best.stopped is None:
        best = finish(best, progress, callback)
    if best.history:
        check_components(best)
    if isinstance(best.run, EM) and epochs is None and not (best.run.converged or best.stopped):
        warnings.warn(
            f"expected EM to converge in {ITERATIONS} iterations; got an objective that would "
            f"increase by more than {tolerance:g} nats: give more epochs, or a larger tolerance",
            ConvergenceWarning,
            stacklevel=2,
        )
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
    phase = fit.history[-1]["phase"] if fit.history else "training"
    if not fit.run.history and phase == "training" and fit.history:
        phase = LAST_PHASE  # which was stopped in its first epoch
    elif not fit.run.history and fit.history:
        raise ValueError(
            "expected a fit that was stopped in phase 'training'; got one stopped in phase "
            f"{phase!r}"
        )
    run = fit.run.copy(epochs=fit.run.epochs if epochs is None else epochs)
    settings = {**fit.settings, "epochs": run.epochs}
    programs, history = Programs(run.model, run.guide, run.store), list(fit.history)
    resumed = replace(fit, programs=programs, history=history, settings=settings, run=run)
    trained = train(resumed, [(phase, run)], Progress(progress), None)
    return trained if trained.stopped else finish(trained, progress, None)


def _lengths(
    epochs: int | None,
    initial_epochs: int | None,
    batch_size: int | None,
    num_rows: int,
    share: float,
    *,
    by_em: bool,
    start: str | torch.Tensor,
) -> dict[str, Any]:
    """Rows of a minibatch, and epochs of the initial phases and of the training.

    By default an epoch of the kept rows has as many steps as one of all rows.
    """
    kept = num_rows - math.ceil(share * num_rows)
    steps = steps_in_epoch(num_rows if batch_size is None else kept, batch_size or 256)
    size = -(-kept // steps) if batch_size is None else batch_size
    found: dict[str, Any] = {"batch_size": max(1, min(size, kept))}
    if by_em:
        number = ITERATIONS if epochs is None else epochs
        return found | {"epochs": number, "initial_epochs": initial_epochs or 0}
    if epochs is not None:
        initial = epochs if initial_epochs is None else initial_epochs
        return found | {"epochs": epochs, "initial_epochs": initial}
    total = max(5, STEPS // steps)
    if isinstance(start, str) and start in ("random", "keep"):
        return found | {"epochs": total, "initial_epochs": 0}
    # a third of the training for the autoencoder, and a fifth of that with fixed assignments
    initial = max(1, round(total / 4.2)) if initial_epochs is None else initial_epochs
    training = max(1, total - initial - math.ceil(initial / 5))
    return found | {"epochs": training, "initial_epochs": initial}


def _score(fitted: Fit) -> float:
    elbo = fitted.held_out_elbo
    return elbo if elbo is not None and math.isfinite(elbo) else -math.inf
