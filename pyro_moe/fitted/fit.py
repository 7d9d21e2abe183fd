"""The result of `fit`: a model and a guide with their parameters, and the training history."""

import copy
import functools
import pickle
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Self, TypeVar

import torch

from pyro_moe.inference.context import running
from pyro_moe.inference.errors import DataError
from pyro_moe.inference.handlers import UNANNOTATED, Annotations, where_incomplete
from pyro_moe.inference.pickling import dumps
from pyro_moe.inference.programs import Program, Programs, isolated, owner
from pyro_moe.lazy import method
from pyro_moe.rows import Data, Rows, as_tensors, column_names, target_names

from .brief import brief
from .matching import as_fitted, expect_width, in_order
from .training import Training
from .weights import MOST_ROWS, counted, repeats

AnyData = TypeVar("AnyData", Rows, Data)


@dataclass(frozen=True, repr=False)
class Fit:
    """A fitted model and guide, with the settings and the history of training.

    It can be pickled, and so be sent to other processes, if its programs and schedules are methods
    and functions that are defined at the top level of a module. `resume` of the unpickled fit
    continues the training as that of the original does.

    Attributes:
        programs: The trained copies of model and guide, with their parameters.
        data: The fitted columns, tensors of N rows each; for a restored fit the rows that it was
            restored with, and for rows on disk a sample of them.
        history: One record for each epoch: phase, epoch, elbo (nats per row), temperature,
            learning_rate, seconds.
        settings: The arguments of `fit`, including defaults.
        held_out_elbo: The best marginal ELBO, in nats per row, of the rows that were held out in
            training; None if there were none.
        stopped: Why training ended early, such as ``"interrupted after 3 of 40 epochs"``, or None.
        columns: Names of the columns of x, or None.
        targets: Names of the columns of y, or None.
        image_shape: ``(channels, height, width)`` if a row of x is a flattened image, or None.
        restored: What is known of the training rows, if ``data`` are other rows or a sample; None
            if ``data`` are the training rows.
        annotations: The weights, groups and labels of the training rows.
        run: The run of SVI or EM that `resume` continues; None for a restored fit, and for rows on
            disk.
        predict: The function `evaluation.predict` as a method.
        score: The function `evaluation.score` as a method.
        summary: The function `criticism.summary` as a method.
        coefficients: The function `mixtures.coefficient_table` as a method.
        plot: The function `plots.pictures` as a method.
        report: The function `criticism.report` as a method.
        resume: The function `pyro_moe.resume` as a method.
    """

    programs: Programs
    data: tuple[torch.Tensor, ...]
    history: list[dict[str, Any]]
    settings: dict[str, Any]
    held_out_elbo: float | None = None
    stopped: str | None = None
    columns: tuple[str, ...] | None = None
    targets: tuple[str, ...] | None = None
    image_shape: tuple[int, int, int] | None = None
    restored: Training | None = field(default=None, repr=False)
    annotations: Annotations = field(default=UNANNOTATED, repr=False)
    run: Any = field(default=None, repr=False)

    def __repr__(self) -> str:
        """What was fitted, to which rows, and how training ended, in a few lines."""
        return brief(self)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle everything at once, so that the parts that share parameters still do."""
        return _unpickled, (type(self), dumps(vars(self)))

    def __copy__(self) -> "Fit":
        """A fit with the same programs."""
        return replace(self)

    def __deepcopy__(self, memo: dict[int, Any]) -> "Fit":
        """An independent fit."""
        if self.run is None:
            run, programs = None, Programs(*isolated(*vars(self.programs).values()))
        else:
            run = self.run.copy(epochs=self.run.epochs)
            programs = Programs(run.model, run.guide, run.store)
        copied: dict[str, Any] = {"programs": programs, "run": run}
        others = {name: value for name, value in vars(self).items() if name not in copied}
        return _made(type(self), copied | copy.deepcopy(others, memo))

    # Assigned below: their functions are in modules that import this one.
    predict: ClassVar[Callable[..., Any]]
    score: ClassVar[Callable[..., float]]
    summary: ClassVar[Callable[..., Any]]
    coefficients: ClassVar[Callable[..., Any]]
    plot: ClassVar[Callable[..., dict[str, Any]]]
    report: ClassVar[Callable[..., Path]]
    resume: ClassVar[Callable[..., "Fit"]]

    @property
    def model(self) -> Program:
        """The fitted model, callable with the columns of data like those of `fit`."""
        return _in_store(self.programs.model, self.programs.store)

    @property
    def guide(self) -> Program:
        """The fitted guide, callable with the columns of data like those of `fit`."""
        return _in_store(self.programs.guide, self.programs.store)

    @property
    def interrupted(self) -> bool:
        """Whether training was interrupted from outside."""
        return self.stopped is not None and self.stopped.startswith("interrupted")

    def uninterrupted(self) -> Self:
        """This fit, for what is of no use with a part of the training, such as a comparison.

        `fit` returns what was learned when it is interrupted. A loop over several fits would go on
        with the next one.

        Raises:
            KeyboardInterrupt: If training was interrupted.
        """
        if self.interrupted:
            raise KeyboardInterrupt
        return self

    @property
    def story(self) -> Any:
        """This fit's copy of the object that has model and guide as methods, or None."""
        return owner(self.programs.model)

    @property
    def x_dim(self) -> int:
        """D, the number of columns of x."""
        return self.data[0].shape[1]

    @property
    def has_target(self) -> bool:
        """Whether a target y was fitted."""
        return len(self.example) > 1

    @functools.cached_property
    def training(self) -> Training:
        """A summary of the training rows: their number, and the range of each column."""
        return Training.of(self.data) if self.restored is None else self.restored

    @property
    def num_rows(self) -> int:
        """N, the number of training rows."""
        return self.training.num_rows

    @property
    def weight_type(self) -> str:
        """What the weights mean, ``"replication"`` or ``"sampling"``."""
        return str(self.settings.get("weight_type", "replication"))

    @property
    def total(self) -> float:
        """The number of training rows as they count: the sum of their weights."""
        if self.restored is None:
            return self.annotations.total(self.num_rows)
        return self.restored.num_rows if self.restored.total is None else self.restored.total

    @property
    def training_rows(self) -> tuple[torch.Tensor, ...]:
        """The fitted columns, tensors of N rows each.

        Raises:
            DataError: If the fit was restored with other rows, or keeps a sample.
        """
        if self.restored is not None:
            sampled = self.restored.sampled
            reason = "keeps a sample of" if sampled else "was restored without"
            raise DataError(
                f"expected data=…, because the fit {reason} its training rows; got none"
            )
        return self.data

    def groups_of(self, data: Data | None = None) -> torch.Tensor | None:
        """The numbers of the groups of rows, whose rows have one component, shape (N,), or None.

        Args:
            data: Rows; the training rows if None. Others have the groups of `Rows.annotations`.
        """
        if isinstance(data, Rows) and "groups" in data.annotations:
            return data.annotations["groups"]
        columns = self.training_rows if data is None else data
        return self.annotations.groups if columns is self.data else None

    def weights_of(self, data: Data | None = None) -> torch.Tensor | None:
        """How many rows each row counts as, shape (N,), or None if each counts as one.

        Sampling weights have a mean of one.

        Args:
            data: Rows; the training rows if None. Others have the weights of `Rows.annotations`.
        """
        if isinstance(data, Rows):
            found = data.annotations.get("weights")
        else:
            columns = self.training_rows if data is None else data
            found = self.annotations.weights if columns is self.data else None
        return counted(found, sampling=self.weight_type == "sampling")

    def repeats_of(self, data: Data | None = None) -> torch.Tensor | None:
        """The numbers of rows, each as many times as its weight says, or None if each stands once.

        Of weights that are no whole numbers it is so up to rounding, and beyond 100,000 rows in
        proportion to the weights. Rows with sampling weights stand once: the sample has no others.

        Args:
            data: As for `weights_of`.
        """
        weights = self.weights_of(data)
        if weights is None or self.weight_type == "sampling":
            return None
        return repeats(weights, max(MOST_ROWS, 10 * len(weights)))

    def repeated(self, data: Data | None = None) -> Rows:
        """Rows as `repeats_of` has them, each of them then as one row, with columns in order."""
        rows = self.in_order(data) if isinstance(data, Rows) else self.rows(data)
        places = self.repeats_of(data)
        if places is None:
            return rows
        others = {name: each for name, each in rows.annotations.items() if name != "weights"}
        return replace(rows, annotations=others).take(places.cpu())

    def rows(self, data: Data | None = None) -> Rows:
        """Rows like the fitted ones with names of columns and their weights, on the CPU.

        Args:
            data: Rows; the training rows if None.

        Raises:
            DataError: As in `as_tensors`; or if data is None, and the fit was restored with other
                rows.
        """
        x, *others = self.training_rows if data is None else self.as_tensors(data)
        given = data if isinstance(data, Rows) else Rows(x)
        weights = self.weights_of(data)
        return Rows(
            x.cpu(),
            others[0].cpu() if others else None,
            given.labels,
            given.image_shape or self.image_shape,
            self.columns or column_names(data),
            self.targets or target_names(data),
            {} if weights is None else {"weights": weights.cpu()},
        )

    @property
    def example(self) -> tuple[torch.Tensor, ...]:
        """One row of each fitted column, with which model and guide can be run."""
        x, *others = (column[:1] for column in self.data)
        if self.restored:  # it may have been restored with x alone
            others = [value.unsqueeze(0).to(x.device) for value in self.restored.low[1:]]
        return (x, *others)

    def parameters(self) -> dict[str, torch.Tensor]:
        """Copies of the learned parameters by name, in unconstrained form."""
        return {name: p.detach().clone() for name, p in self.programs.parameters().items()}

    def in_order(self, data: AnyData) -> AnyData:
        """Data with columns in the order of the fitted ones, where both have names.

        Raises:
            DataError: If a fitted column is missing, or two columns have the same name.

        Warns:
            DataWarning: If there are other columns than were fitted. They are left out.
        """
        return in_order(data, self.columns, self.targets)

    def as_tensors(self, data: Data) -> tuple[torch.Tensor, ...]:
        """Convert data like the fitted data to validated tensors on the fit's device.

        Columns with names are matched by name, others by position. Targets are dropped if only x
        was fitted. They may be NaN if the fit had ``missing_targets=True``.

        Raises:
            DataError: If the data is invalid, if targets are required and absent, if x or y lacks
                a fitted column or has another number of columns, or if y has fractions where
                integers were fitted.

        Warns:
            DataWarning: If there are other columns than were fitted, which are left out; or if a
                value of x is far outside of its range in training, see `Training.warn_of_far`.
        """
        x, *others = self._converted(in_order(data, self.columns, self.targets))
        _, *fitted = self.example
        if len(others) < min(len(fitted), 1):  # further columns of a story may be absent
            raise DataError("expected data (x, y), as fitted; got x alone")
        pairs = zip(others, fitted, strict=False)
        return (x, *(as_fitted(column, like) for column, like in pairs))

    def features(self, data: Data) -> tuple[Any, ...]:
        """The arguments of `model` and `guide` for rows with unknown targets.

        Returns:
            x, validated as in `as_tensors`, and None for each other fitted column.

        Raises:
            DataError: If x is invalid, lacks a fitted column, or has another number of columns.

        Warns:
            DataWarning: As in `as_tensors`, for x alone.
        """
        x, *_ = self._converted(in_order(data, self.columns))
        return (x, *(None for _ in self.example[1:]))

    def _converted(self, data: Data) -> tuple[torch.Tensor, ...]:
        like = self.data[0]
        columns = as_tensors(
            data,
            dtype=like.dtype,
            missing_targets=self.settings.get("missing_targets", False),
            missing_features=getattr(self.story, "missing_features", False),
        )
        expect_width(columns[0], like, "x")
        columns = tuple(column.to(like.device) for column in columns)
        if self.history:  # without training, no rows are like those of training
            of_images = self.image_shape is not None
            self.training.warn_of_far(columns[0], self.columns, of_images=of_images)
        return columns


Fit.predict = method("pyro_moe.evaluation", "predict")
Fit.score = method("pyro_moe.evaluation", "score")
Fit.summary = method("pyro_moe.criticism", "summary")
Fit.coefficients = method("pyro_moe.mixtures", "coefficient_table")
Fit.plot = method("pyro_moe.plots", "pictures")
Fit.report = method("pyro_moe.criticism", "report")
Fit.resume = method("pyro_moe.fitting", "resume")


def _in_store(program: Program, store: dict[str, Any]) -> Program:
    @functools.wraps(program)
    def run(*args: Any, **kwargs: Any) -> Any:
        with running(store), where_incomplete(*args):
            return program(*args, **kwargs)

    return run


def _unpickled(kind: type[Fit], pickled: bytes) -> Fit:
    return _made(kind, pickle.loads(pickled))  # noqa: S301 - part of a pickle that is being loaded


def _made(kind: type[Fit], values: dict[str, Any]) -> Fit:
    fit = object.__new__(kind)
    vars(fit).update(values)
    return fit
