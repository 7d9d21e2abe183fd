"""The functions `fit` and `resume`."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from pyro.infer import ELBO

from pyro_moe.fitted import Fit, described
from pyro_moe.inference.context import learning
from pyro_moe.inference.em import EM, TOLERANCE
from pyro_moe.inference.errors import ConvergenceWarning, warn
from pyro_moe.inference.prior import Prior
from pyro_moe.inference.programs import Program, Programs
from pyro_moe.inference.svi import NewOptimizer, Schedule
from pyro_moe.progress import Progress
from pyro_moe.rows import Data
from pyro_moe.validation import check_components

from .checkpoint import Checkpoint
from .plan import planned
from .starts import trained
from .training import LAST_PHASE, finish, train, with_a_sample


@learning()
def fit(
    model: Program,
    guide: Program,
    data: Data,
    *,
    labels: Any = None,
    weights: Any = None,
    groups: Any = None,
    weight_type: str = "replication",
    epochs: int | None = None,
    batch_size: int | None = None,
    learning_rate: Schedule | None = None,
    optimizer: NewOptimizer | None = None,
    weight_decay: float = 0.0,
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
    missing_features: bool = False,
    seed: int = 0,
    device: str | torch.device | None = None,
    compile: bool | str = "auto",
    bfloat16: bool = False,
    progress: bool = True,
    callback: Callable[[Fit], Any] | None = None,
    checkpoint: str | Path | None = None,
    resume: str | Path | None = None,
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
        data: x (N, D), or a tuple (x, y): tensors, numpy arrays, pandas data frames; or a torch
            ``Dataset`` or ``DataLoader`` of such rows, `streams.Parquet`, or memory maps of numpy,
            which stay on disk if they have more than four megabytes, see `streams.on_disk`.
        labels: The component of each row where it is known: numbers (N,) from 0 to K - 1, and -1,
            NaN or None where it is not known. Or responsibilities (N, K), rows of NaN where they
            are not known. The term of a labeled row is log p(d_n, c_n = k), or the sum
            Σ_k r_nk log(p(d_n, c_n = k) / r_nk). For ``"em"`` and ``"marginal"``.
        weights: w (N,) of at least 0: row n stands for w_n rows. `Rows` have weights, groups and
            labels of their own, see `Rows.annotations`, which are used unless others are given.
        groups: Numbers or names (N,). The rows of a group are from one component. For ``"em"`` of
            mixtures of experts such as `models.ME`, and for ``"marginal"``, whose minibatches are
            of whole groups, of stories whose targets are given c. A guide's q(c|x) learns the
            posterior of the group. The log-probability of c is the mean of those of its rows.
        weight_type: ``"replication"``: row n is w_n rows. Or ``"sampling"``: it stands for others
            in proportion to w_n, as in a survey. The weights then are scaled to a mean of one, and
            standard errors of coefficients are those of the sandwich.
        epochs: Passes over the data, or the maximum number of iterations of EM. If None, there are
            4,000 steps, initial phases included, or 5 epochs if these are more, unless training
            stops early, see ``patience``; and EM has up to 1,000 iterations. ``epochs=0`` with
            ``initialize="keep"`` returns a fit with the given parameters.
        batch_size: Maximum number of rows in a minibatch, 256 if None. All are nearly equal.
        learning_rate: Peak step size, 5e-3 if None. It is reached after 30 % of the run,
            and the step size falls to zero at the end. Or a function of the completed share of
            the run. For large networks choose a smaller value, such as 1e-3. With ``optimizer``,
            None is the step size of the optimizer.
        optimizer: A function of a list of parameters that returns an optimizer of torch, or its
            class; Adam if None. One with one group of parameters, whose steps need no closure.
        weight_decay: The decay of all parameters in a step of Adam, times the step size, as in
            `torch.optim.AdamW`.
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
            (N, K) of any clustering, or labels (N,) from 0 to K - 1, -1 where they are not known.
            With all but the first two, a phase of training with fixed assignments comes before
            the training itself. Here labels are only a start; see ``labels``.
        initial_epochs: Epochs of the autoencoder. If None, ``epochs``, or a third of the training
            if ``epochs`` is None, too. The phase with fixed assignments takes a fifth as many.
        restarts: Number of starts. If None, EM has twelve short ones, see
            `inference.starts.several`, and gradients have one. EM takes the start with the best
            objective, gradients that with the best marginal ELBO on held-out rows. Starts of small
            networks take their steps together, see `inference.starts.stacked`, unless there is a
            callback or a checkpoint. More than one start of EM needs ``initialize="random"``.
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
            with a standard normal prior of the weights of networks for at most 2,000 rows, see
            `fitting.choice`. It applies to ``"em"`` and ``"marginal"``.
        missing_targets: Whether y may have NaN. Rows without a target contribute to a model of x,
            but not to the experts. So do rows that lack one of several targets.
        missing_features: Whether x may have NaN. The likelihood is then that of the observed
            entries of each row, with the others summed out, which is right if entries are missing
            at random. For `models.GMM`, and `models.GMMMoE` with normal experts, it is exact. VAEs
            have its bound: their encoders read means in place of missing entries. In a VaDEMoE or
            DVMoE the experts must be functions of z.
        seed: Seed of all random numbers.
        device: Device of the training; that of the model's parameters if None.
        compile: Whether steps by gradients are compiled by torch's inductor, which needs a C++
            compiler, and takes about a minute, or some seconds if it has compiled the same step
            before. ``"auto"``: if the run is so long that this saves time. The progress says so.
            On a GPU, True also captures them as CUDA graphs. Steps that cannot be compiled are
            replayed, see `inference.steps`. Results are equal up to rounding.
        bfloat16: Whether large products of matrices in steps that are replayed or compiled, those
            of wide networks, are of numbers in bfloat16. A processor or GPU that computes with them
            takes about half the time. All else stays in single precision. Gradients are compared
            with those in single precision now and then, and products stay there if they differ.
        progress: Whether to show a progress bar, or a few lines if stderr is not a terminal.
        callback: Called after every epoch with the fit so far, whose last entry of ``history`` is
            the record of the epoch. If it returns True, training stops.
        checkpoint: A folder in which states of the training are saved every thirty seconds and at
            the end of each phase, the last two of each phase.
        resume: A folder with checkpoints of the same call of `fit`, which was stopped or killed.
            The fit goes on from the last one, and the result is that of an uninterrupted run, for
            starts that are trained together up to rounding. Its checkpoints go to the same folder,
            unless ``checkpoint`` is another.

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
    plan = planned(
        model,
        guide,
        data,
        labels=labels,
        weights=weights,
        groups=groups,
        weight_type=weight_type,
        epochs=epochs,
        batch_size=batch_size,
        learning_rate=learning_rate,
        optimizer=optimizer,
        weight_decay=weight_decay,
        loss=loss,
        temperature=temperature,
        initialize=initialize,
        initial_epochs=initial_epochs,
        restarts=restarts,
        validation=validation,
        patience=patience,
        tolerance=tolerance,
        prior=prior,
        missing_targets=missing_targets,
        missing_features=missing_features,
        seed=seed,
        device=device,
        compile=compile,
        bfloat16=bfloat16,
    )
    folder = resume if checkpoint is None else checkpoint
    checkpoints = None if folder is None else Checkpoint(folder, plan, resume)
    fits = trained(plan, described(data), progress, callback, checkpoints)
    best = max(fits, key=_score)
    interrupted = next((each.stopped for each in fits if each.interrupted), None)
    if interrupted and not best.interrupted:
        best = replace(best, stopped=f"{interrupted} of another start")
    if best.stopped is None:
        best = finish(best, progress, callback, checkpoints)
    if best.history:
        check_components(best)
    if isinstance(best.run, EM) and epochs is None and not (best.run.converged or best.stopped):
        warn(
            f"expected EM to converge in {best.run.epochs} iterations; got an objective that would "
            f"increase by more than {tolerance:g} nats: give more epochs, or a larger tolerance",
            ConvergenceWarning,
        )
    return with_a_sample(best) if plan.streamed else best


@learning()
def resume(fit: Fit, *, epochs: int | None = None, progress: bool = True) -> Fit:
    """Continue training. The result is that of an uninterrupted run.

    Args:
        fit: A fit returned by `fit`.
        epochs: Epochs of the whole run; those of `fit` if None.
        progress: Whether to show a progress bar, or a few lines if stderr is not a terminal.

    Returns:
        A new fit. The given one is unchanged.

    Raises:
        ValueError: If training stopped in an initial phase, if the fit was restored from a run
            folder, which does not contain the optimizer, or if its rows were on disk.
    """
    if fit.run is None:
        raise ValueError(
            "expected a fit with its optimizer; got one of a run folder, or of rows on disk"
        )
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


def _score(fitted: Fit) -> float:
    elbo = fitted.held_out_elbo
    return elbo if elbo is not None and math.isfinite(elbo) else -math.inf
