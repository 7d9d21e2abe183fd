"""Validation of the arguments of `fit`."""

import math
from collections.abc import Sequence
from numbers import Integral, Real
from typing import Any

import torch

from pyro_moe.inference.context import late_imports, reproducible
from pyro_moe.inference.em import EM
from pyro_moe.inference.errors import DataError
from pyro_moe.inference.initialize import STARTS
from pyro_moe.inference.prior import FLAT, WEAK, Prior
from pyro_moe.inference.programs import Program, owner
from pyro_moe.inference.protocols import TakesIncomplete
from pyro_moe.inference.rows import OnDisk
from pyro_moe.inference.rows.order import SAMPLE, WINDOW
from pyro_moe.inference.starts.clustering import LEAST_ROWS
from pyro_moe.inference.svi import adam
from pyro_moe.rows import as_tensor, has_target, parted

from .annotations import responsibilities_of

PRIORS = {"weak": WEAK, "none": FLAT}


def check_numbers(**given: tuple[int | None, int]) -> None:
    """Check that each number is None, or an integer not below its minimum."""
    for name, (value, least) in given.items():
        if value is not None and not isinstance(value, Integral):
            raise ValueError(f"expected {name} to be an integer; got {value!r}")
        if value is not None and value < least:
            raise ValueError(f"expected {name} of at least {least}; got {value}")


def check_schedules(learning_rate: Any, temperature: Any) -> None:
    """Check that each is None, a function, or a number in its range."""
    rate = 0.0 if learning_rate is None or callable(learning_rate) else learning_rate
    if not (isinstance(rate, Real) and float(rate) >= 0):
        raise ValueError(f"expected learning_rate of at least 0, or a function; got {rate!r}")
    tau = 1.0 if temperature is None or callable(temperature) else temperature
    if not (isinstance(tau, Real) and float(tau) > 0):
        raise ValueError(f"expected temperature above 0, or a function; got {tau!r}")


def check_optimizer(optimizer: Any, weight_decay: Any) -> torch.optim.Optimizer:
    """The optimizer of one number, for which a step has been tried.

    Args:
        optimizer: A function of a list of parameters, or None for Adam.
        weight_decay: The decay of the parameters by Adam.

    Raises:
        ValueError: If it is no optimizer of one group of parameters, or its steps need more than
            gradients; or if there is a decay for another optimizer than Adam.
    """
    if not (isinstance(weight_decay, Real) and 0 <= float(weight_decay) < math.inf):
        raise ValueError(f"expected weight_decay of at least 0; got {weight_decay!r}")
    if optimizer is not None and weight_decay:
        raise ValueError(
            "expected weight_decay as an argument of the optimizer; got optimizer=… and "
            f"weight_decay={weight_decay!r}"
        )
    number, decay = torch.zeros(1, requires_grad=True), float(weight_decay)
    number.grad = torch.zeros(1)
    try:
        with late_imports():
            found = optimizer([number]) if optimizer is not None else adam([number], decay)
            (group,) = found.param_groups
            found.step()
            float(group["lr"])
    except Exception as error:  # whatever a function of the caller's raises
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(
            "expected optimizer to be a function of a list of parameters that returns an optimizer "
            f"of torch, whose steps need their gradients alone; got {optimizer!r}: {reason}"
        ) from error
    return found


def check_prior(prior: Any) -> Prior | None:
    """The prior by name or as given, or None for one that is to be chosen."""
    if isinstance(prior, Prior):
        return prior
    if prior == "auto":
        return None
    if prior in PRIORS:
        return PRIORS[prior]
    raise ValueError(f"expected prior in {('auto', *PRIORS)} or a Prior; got {prior!r}")


def check_start(initialize: Any, num_rows: int, num_components: int | None) -> str | torch.Tensor:
    """The name of a start, or responsibilities (N, K), equal where a label is missing."""
    if isinstance(initialize, str):
        if initialize not in STARTS:
            raise ValueError(
                f"expected initialize in {STARTS}, responsibilities (N, K) or labels (N,); "
                f"got {initialize!r}"
            )
        least = LEAST_ROWS.get(initialize, 1)
        if num_rows < least:
            raise DataError(
                f"expected at least {least} rows for initialize={initialize!r}; got {num_rows}"
            )
        return initialize
    if num_components is None:
        return as_tensor(initialize, "initialize").double().cpu()  # `phases` raises the error
    shares = responsibilities_of(initialize, "initialize", num_rows, num_components)
    if shares.isnan().all():
        raise DataError("expected initialize with the component of some row; got that of none")
    return shares.nan_to_num(1.0 / num_components)


def check_takes_incomplete(model: Program) -> None:
    """Check that a story takes rows whose x lacks entries.

    Raises:
        ValueError: If it does not.
    """
    story = owner(model)
    if not (isinstance(story, TakesIncomplete) and story.missing_features):
        raise ValueError(
            "expected a story with a density of x and of y given what is observed of it, such as "
            "GMM, GMMMoE with normal experts, VaDE, DMVAE, or VaDEMoE and DVMoE with context='z', "
            f"for missing_features=True; got {type(story).__name__}: choose one of these, leave "
            "rows with gaps out, or impute them, see evaluation.impute"
        )


def check_restarts(restarts: int | None, start: str | torch.Tensor, *, by_em: bool) -> None:
    """Check that several starts of EM would differ.

    Raises:
        ValueError: If they would not.
    """
    name = start if isinstance(start, str) else "responsibilities"
    if by_em and restarts is not None and restarts > 1 and name != "random":
        raise ValueError(
            f"expected initialize='random' with restarts={restarts} of EM, which has the same "
            f"result from equal starts; got {name!r}"
        )


def held_share(validation: float | None, num_rows: int, *, early: bool, restarts: int) -> float:
    """The share of rows to hold out.

    If it is not given, it is zero unless training may stop early or there are several starts. It
    is then a tenth of the rows, or up to a quarter of them if a tenth is less than fifty rows. A
    single row is not held out.
    """
    if validation is None:
        wanted = num_rows > 1 and (early or restarts > 1)
        return max(0.1, min(0.25, 50.0 / num_rows)) if wanted else 0.0
    if not (isinstance(validation, Real) and 0 <= validation < 1):
        raise ValueError(f"expected validation of at least 0 and below 1; got {validation!r}")
    if validation == 0 and restarts > 1:
        raise ValueError("expected validation above 0, to choose among restarts; got 0")
    return float(validation)


def held_rows(
    columns: Sequence[torch.Tensor],
    share: float,
    seed: int,
    groups: torch.Tensor | None = None,
) -> torch.Tensor:
    """Numbers of held-out rows in ascending order, with the same share of known targets.

    If targets are missing, at least one known target is kept. Of more than 262,144 rows on disk
    at most 65,536 are held out. Of rows in groups whole groups are held out.
    """
    number = len(columns[0])
    if not share or (groups is not None and bool((groups == groups[0]).all())):
        return torch.zeros(0, dtype=torch.int64)
    if groups is not None:
        return torch.from_numpy(parted(number, share, seed, groups.cpu())[1])
    with reproducible(seed):
        if number > WINDOW and isinstance(columns[0], OnDisk):
            return torch.randint(number, (min(math.ceil(share * number), SAMPLE),)).unique()
        order = torch.randperm(number)
    known = has_target(columns[1]).cpu()[order] if len(columns) > 1 else torch.ones(number).bool()
    num_known = math.ceil(share * int(known.sum()))
    if not known.all():
        num_known = min(num_known, int(known.sum()) - 1)
    num_others = math.ceil(share * int((~known).sum()))
    return torch.cat([order[known][:num_known], order[~known][:num_others]]).sort().values


def has_em(model: Program, guide: Program, columns: tuple[torch.Tensor, ...]) -> bool:
    """Whether EM can fit the story: only c is latent, and every parameter has an M-step.

    The model must be that of a shipped story. An edited model may keep a story's M-step, which
    then maximizes something else.
    """
    of_story = getattr(model, "__func__", None)
    if of_story is None or of_story.__module__.partition(".")[0] != "pyro_moe":
        return False
    run = EM(model, guide, tuple(column[:1] for column in columns), 1, 0)
    try:
        run.log_joint()
        run.check_steps()
    except (LookupError, ValueError):
        return False
    return bool(run.parameters())
