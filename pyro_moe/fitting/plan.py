"""What `fit` is about to do: rows, objective, start, prior and lengths, from its arguments."""

import math
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from typing import Any

import torch
from pyro.infer import ELBO

from pyro_moe.fitted import described
from pyro_moe.inference.em import ITERATIONS
from pyro_moe.inference.errors import DataError
from pyro_moe.inference.handlers import Annotations
from pyro_moe.inference.prior import Prior
from pyro_moe.inference.programs import Program, isolated, modules, owner
from pyro_moe.inference.protocols import HasStart
from pyro_moe.inference.rows import OnDisk, without
from pyro_moe.inference.svi import NewOptimizer, adam, steps_in_epoch
from pyro_moe.rows import Data, Rows, column_names
from pyro_moe.streams import on_disk
from pyro_moe.validation import check, check_columns, check_range

from .annotations import annotations_of, check_annotations, em_takes_groups
from .arguments import (
    check_numbers,
    check_optimizer,
    check_prior,
    check_restarts,
    check_schedules,
    check_start,
    check_takes_incomplete,
    has_em,
    held_rows,
    held_share,
)
from .choice import chosen_prior, with_networks
from .columns import columns_of

STEPS = 4000
STARTS_OF_EM = 12
PATIENCE = 20
ANNOTATIONS = ("weights", "groups", "labels")


@dataclass(frozen=True)
class Plan:
    """A fit before its first step. It does not depend on random numbers besides the seed's.

    Attributes:
        model: The caller's model, which is not changed.
        guide: The caller's guide.
        columns: All rows, in the type and on the device of the fit.
        annotations: What is known of the rows besides their data.
        held: Numbers of the held-out rows, in ascending order.
        num_components: K, or None for a model without ``c``.
        loss: The objective, which is not ``"auto"`` any more.
        start: The name of a start, or responsibilities of the training rows.
        prior: The prior of the parameters.
        settings: The arguments of `fit`, including defaults.
        new_optimizer: A function of the parameters that makes the optimizer.
    """

    model: Program
    guide: Program
    columns: tuple[torch.Tensor, ...]
    annotations: Annotations
    held: torch.Tensor
    num_components: int | None
    loss: str | ELBO
    start: str | torch.Tensor
    prior: Prior
    settings: dict[str, Any]
    new_optimizer: NewOptimizer

    @property
    def by_em(self) -> bool:
        """Whether the objective is maximized by EM."""
        return isinstance(self.loss, str) and self.loss == "em"

    @property
    def streamed(self) -> bool:
        """Whether the rows are on disk."""
        return any(isinstance(column, OnDisk) for column in self.columns)

    @cached_property
    def training_columns(self) -> tuple[torch.Tensor, ...]:
        """The rows that are not held out."""
        return tuple(without(column, self.held) for column in self.columns)

    @cached_property
    def training_annotations(self) -> Annotations:
        """What is known of the rows that are not held out."""
        return self.annotations.each(lambda column: without(column, self.held))


def planned(model: Program, guide: Program, data: Data, **options: Any) -> Plan:
    """Check the arguments of `fit`, and resolve its defaults.

    Args:
        model: The model.
        guide: The guide.
        data: The data.
        **options: All other arguments of `fit` but those of its display.

    Raises:
        DataError: If the data cannot be fitted.
        ValueError: If an argument is invalid.
    """
    _check(options)
    optimizer = check_optimizer(options["optimizer"], options["weight_decay"])
    rate = options["learning_rate"]
    if rate is None:
        rate = 5e-3 if options["optimizer"] is None else optimizer.param_groups[0]["lr"]
    options |= _known(data, options)
    names = described(data)["columns"]
    data = on_disk(data, missing_targets=options["missing_targets"], seed=options["seed"])
    prior = check_prior(options["prior"])
    initialize = options["initialize"]
    if initialize is None:
        story = owner(model)
        initialize = story.start if isinstance(story, HasStart) else "random"
    keep = isinstance(initialize, str) and initialize == "keep"
    learns = not (options["epochs"] == 0 and keep)
    columns, loss, num_components = _resolved(model, guide, data, names, options, learns=learns)
    by_em = isinstance(loss, str) and loss == "em"
    annotations = annotations_of(
        len(columns[0]),
        num_components,
        like=columns[0],
        weight_type=options["weight_type"],
        **{name: options[name] for name in ANNOTATIONS},
    )
    check_annotations(annotations, model, guide, loss, columns)
    start = check_start(initialize, len(columns[0]), num_components)
    check_restarts(options["restarts"], start, by_em=by_em)
    restarts, epochs, seed = options["restarts"], options["epochs"], options["seed"]
    if restarts is None:
        several = by_em and epochs is None and isinstance(start, str) and start == "random"
        restarts = STARTS_OF_EM if several else 1
    if prior is None:
        prior = chosen_prior(model, guide, columns, num_components, loss, learns, seed, annotations)
        prior = with_networks(prior, len(columns[0]), model, guide)
    share = 0.0
    if not by_em:
        early = epochs is None and prior.rows < 1.0
        share = held_share(options["validation"], len(columns[0]), early=early, restarts=restarts)
    held = held_rows(columns, share if learns else 0.0, seed, annotations.groups)
    kept = len(columns[0]) - len(held)
    if learns and kept < (num_components or 1):
        raise DataError(
            f"expected at least as many rows as components, {num_components or 1}; "
            f"got {kept}, with {len(held)} held out"
        )
    patience = options["patience"]
    settings = {
        **_lengths(options, len(columns[0]), kept, by_em=by_em, start=start),
        "learning_rate": rate,
        "optimizer": type(optimizer).__name__,
        "weight_decay": float(options["weight_decay"]),
        "loss": loss if isinstance(loss, str) else type(loss).__name__,
        "temperature": options["temperature"],
        "initialize": initialize if isinstance(initialize, str) else "responsibilities",
        "restarts": restarts,
        "validation": share,
        "patience": PATIENCE if patience is None and epochs is None else patience,
        "tolerance": options["tolerance"],
        "prior": asdict(prior),
        "missing_targets": options["missing_targets"],
        **({} if annotations.weights is None else {"weight_type": options["weight_type"]}),
        "seed": seed,
        "compile": options["compile"],
        "bfloat16": options["bfloat16"],
    }
    start = start if isinstance(start, str) else without(start, held)
    new_optimizer = options["optimizer"] or partial(adam, weight_decay=options["weight_decay"])
    return Plan(
        model,
        guide,
        columns,
        annotations,
        held,
        num_components,
        loss,
        start,
        prior,
        settings,
        new_optimizer,
    )


def _known(data: Data, options: dict[str, Any]) -> dict[str, Any]:
    """The weights, groups and labels of rows: those of the arguments, or of the data."""
    own = data.annotations if isinstance(data, Rows) else {}
    return {name: own.get(name) if options[name] is None else options[name] for name in ANNOTATIONS}


def _check(options: dict[str, Any]) -> None:
    least = {
        "epochs": 0,
        "batch_size": 1,
        "initial_epochs": 0,
        "restarts": 1,
        "patience": 1,
        "seed": 0,
    }
    check_numbers(**{name: (options[name], value) for name, value in least.items()})
    check_schedules(options["learning_rate"], options["temperature"])
    if options["compile"] not in (True, False, "auto"):
        raise ValueError(f"expected compile in ('auto', True, False); got {options['compile']!r}")
    if not isinstance(options["bfloat16"], bool):
        raise ValueError(f"expected bfloat16 to be True or False; got {options['bfloat16']!r}")


def _resolved(
    model: Program,
    guide: Program,
    data: Data,
    names: tuple[str, ...] | None,
    options: dict[str, Any],
    *,
    learns: bool,
) -> tuple[tuple[torch.Tensor, ...], str | ELBO, int | None]:
    """The columns, the objective and K, after all checks of model and data."""
    loss = options["loss"]
    to_tensors = {name: options[name] for name in ("device", "missing_targets", "missing_features")}
    if options["missing_features"]:
        check_takes_incomplete(model)
    columns = columns_of(
        model, guide, data, double=isinstance(loss, str) and loss == "em", **to_tensors
    )
    if learns:
        check_range(columns[0], column_names(data))
    one, other = isolated(model, guide)
    for part in modules(one, other):
        part.to(columns[0][:1]).eval()
    needs = f"loss={loss!r}" if loss in ("categorical-kl", "relaxed") else ""
    num_components = check(one, other, columns, learns=learns, needs=needs)
    if learns:
        check_columns(columns, names)
    if isinstance(loss, str) and loss == "auto":
        of_gradients = (
            "batch_size",
            "learning_rate",
            "temperature",
            "validation",
            "patience",
            "optimizer",
        )
        plain = all(options[name] is None for name in of_gradients) and not options["weight_decay"]
        plain = plain and (options["groups"] is None or em_takes_groups(model))
        em = plain and has_em(one, other, columns)
        loss = "em" if em else "marginal"
        if em and learns:
            columns = columns_of(model, guide, data, double=True, **to_tensors)
    return columns, loss, num_components


def _lengths(
    options: dict[str, Any], num_rows: int, kept: int, *, by_em: bool, start: Any
) -> dict[str, Any]:
    """Rows of a minibatch, and epochs of the initial phases and of the training.

    By default an epoch of the kept rows has as many steps as one of all rows.
    """
    epochs, initial_epochs = options["epochs"], options["initial_epochs"]
    batch_size = options["batch_size"]
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
