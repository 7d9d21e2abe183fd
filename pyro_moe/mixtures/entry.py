"""The function `mixture`."""

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

import numpy as np
import pandas as pd

from pyro_moe.fitting import fit
from pyro_moe.inference.em import EM, TOLERANCE
from pyro_moe.inference.errors import ConvergenceWarning, DataError, warn
from pyro_moe.inference.prior import Prior
from pyro_moe.models import ME, Predictor

from .coefficients import at_limit, named_parameters
from .design import (
    INTERCEPT,
    SIGMA,
    Design,
    designed,
    formula_of,
    has_intercept,
    terms,
    variable,
)
from .information import polish
from .result import MixtureFit

WEIGHT_TYPES = ("replication", "sampling")
FAMILIES = (
    "normal",
    "normal-full",
    "student-t",
    "poisson",
    "bernoulli",
    "binomial",
    "categorical",
)


def mixture(
    formula: str | Sequence[str] | None = None,
    data: Any = None,
    *,
    target: str | Sequence[str] | None = None,
    experts: Sequence[str] | None = None,
    gate: Sequence[str] = (),
    num_components: int = 2,
    family: str | Sequence[str] = "normal",
    offset: str | None = None,
    trials: str | None = None,
    weights: str | None = None,
    groups: str | None = None,
    labels: str | None = None,
    weight_type: str = "replication",
    shared: Sequence[str] = (),
    missing: str = "raise",
    unseen: str = "raise",
    order: Any = None,
    initialize: Any = None,
    restarts: int | None = None,
    epochs: int | None = None,
    tolerance: float = TOLERANCE,
    prior: str | Prior = "none",
    seed: int = 0,
    progress: bool = False,
) -> MixtureFit:
    r"""Fit a mixture of regressions by maximum likelihood.

    .. math:: p(y \mid x) = \sum_k g_k(x)\, p_k(y \mid x), \quad
              g_k(x) = \mathrm{softmax}_k(\langle v_k, x \rangle + a_k)

    It is the story `models.ME`, fitted by EM from several starts, and then by Newton's method.

    Args:
        formula: ``"y ~ experts | gate"``, as of ``formulaic``: transformations, factors,
            interactions, several targets (``"y1 + y2 ~ x"``). Without a second part the gate is
            constant. Or a formula for each target.
        data: A data frame, or a mapping of columns.
        target: Name of the target, or names of targets, instead of a formula.
        experts: Names of the experts' columns, instead of a formula.
        gate: Names of the gate's columns, instead of a formula.
        num_components: K.
        family: The family of the experts, ``"normal"``, ``"normal-full"`` (correlated targets),
            ``"student-t"``, ``"poisson"``, ``"bernoulli"``, ``"binomial"`` or ``"categorical"``;
            or a family for each target.
        offset: A column, or an expression as ``"log(time)"``, that is added to the linear
            predictor of all experts.
        trials: A column, or an expression, with the number of trials of ``"binomial"`` experts.
        weights: A column of weights. Rows of weight zero are left out.
        groups: A column. The rows of a group are from one component. The gate's columns must not
            differ in a group.
        labels: A column with the component of each row, 0 to K - 1, where it is known; missing
            or -1 elsewhere.
        weight_type: ``"replication"``: a row of weight w is w rows. Or ``"sampling"``: a row
            stands for others in proportion to w, as in a survey. The weights then are scaled to
            a mean of one, and standard errors are those of the sandwich.
        shared: Terms whose coefficients are the same in all experts, such as ``["treatment"]``;
            ``"Intercept"``; and ``"sigma"``, for one scale.
        missing: What is done with rows with gaps: ``"raise"`` an error, or ``"drop"`` them.
        unseen: What is done in new rows with levels of a factor that the training rows lack:
            ``"raise"`` an error, or code them as the ``"reference"``.
        order: The order of the components, see `MixtureFit.relabel`; ``"fitted"`` for that of EM.
            If None, ``"size"``; with labels, their order.
        initialize: Responsibilities (N, K) or labels (N,) to start from, instead of several
            starts.
        restarts: The number of starts, 12 if None.
        epochs: The maximum number of iterations of EM.
        tolerance: EM ends when all further iterations are expected to add less, in nats.
        prior: ``"none"``, ``"weak"`` or a `Prior`, see `fit`. A prior keeps the likelihood
            bounded where an expert could fit a few rows exactly.
        seed: Seed of the starts.
        progress: Whether to show a progress bar.

    Returns:
        A `MixtureFit`, which is a `Fit`.

    Raises:
        DataError: If the data lack a column, have gaps, or do not determine the coefficients.
        ValueError: If an argument is invalid.

    Warns:
        ConvergenceWarning: If the parameters are at no maximum.
        EmptyComponentWarning: If a component has few rows.

    Example:
        >>> x = np.linspace(0.0, 1.0, 60)
        >>> y = np.where(np.arange(60) % 2, 2.0 * x, 1.0 - x) + 0.05 * np.sin(np.arange(60.0) ** 2)
        >>> fitted = mixture("y ~ x", {"x": x, "y": y}, order="x")
        >>> fitted.params[:, "y", "x"].round(1).tolist()
        [-1.0, 2.0]
    """
    families = [family] if isinstance(family, str) else list(family)
    if not families or not set(families) <= set(FAMILIES):
        raise ValueError(f"expected family in {FAMILIES}, or one for each target; got {family!r}")
    if weight_type not in WEIGHT_TYPES:
        raise ValueError(f"expected weight_type in {WEIGHT_TYPES}; got {weight_type!r}")
    if weight_type == "sampling" and weights is None:
        raise ValueError("expected weights, the name of a column, with weight_type='sampling'")
    formulas = stated(formula, target, experts, gate)
    table = as_frame(data)
    if weights is not None:
        table = table[weighing(table, weights) != 0]
    design, table = designed(
        formulas,
        table,
        classes=family == "categorical",
        offset=offset,
        trials=trials,
        weights=weights,
        groups=groups,
        missing=missing,
        unseen=unseen,
        shared=shared,
    )
    columns = columns_of(design, table)
    annotations = annotations_of(design, table, labels, sampling=weight_type == "sampling")
    story = story_of(design, columns, num_components, families)
    found = fitted_to(
        story,
        design,
        columns,
        family=" and ".join(families),
        cov_type="sandwich" if weight_type == "sampling" else "observed",
        weight_type=weight_type,
        **annotations,
        initialize=initialize,
        restarts=restarts,
        epochs=epochs,
        tolerance=tolerance,
        prior=prior,
        seed=seed,
        progress=progress,
    )
    if not found.converged:
        warn(
            "expected EM and Newton's method to end at a maximum; got an expected increase of "
            f"{found.remaining:.2g} nats: give more epochs, more restarts, or fewer components",
            ConvergenceWarning,
        )
    if order is None:
        order = "size" if labels is None else "fitted"
    return found if isinstance(order, str) and order == "fitted" else found.relabel(order)


def fitted_to(
    story: Any,
    design: Design,
    columns: tuple[Any, ...],
    *,
    family: str,
    cov_type: str = "observed",
    weight_type: str = "replication",
    **options: Any,
) -> MixtureFit:
    """A story fitted to the columns of a design, by EM and then by Newton's method.

    Args:
        story: A story `models.ME`.
        design: Its design.
        columns: x and y.
        family: The name of the family.
        cov_type: See `MixtureFit`.
        weight_type: See `mixture`.
        **options: Arguments of `fit`.
    """
    fitted = fit(story.model, story.guide, columns, loss="em", **options)
    remaining = float("inf")
    if options.get("epochs") != 0 and isinstance(fitted.run, EM):
        remaining = polish(
            fitted.run,
            lambda: named_parameters(fitted.story, design)[1],
            at_limit(fitted.story, design),
        )
    own = {"design": design, "family": family, "remaining": remaining}
    own |= {"cov_type": cov_type, "weight_type": weight_type}
    values = vars(fitted) | own
    return MixtureFit(
        **{each.name: values[each.name] for each in fields(MixtureFit) if each.name in values}
    )


def stated(formula: Any, target: Any, experts: Any, gate: Sequence[str]) -> list[str]:
    """The formulas, or that of columns by name.

    Raises:
        ValueError: If there are both, or neither.
    """
    if formula is None and target is not None:
        return [formula_of(target, list(experts or ()), list(gate))]
    formulas = [formula] if isinstance(formula, str) else list(formula or ())
    if (
        not formulas
        or not all(isinstance(each, str) for each in formulas)
        or target is not None
        or experts is not None
        or len(gate)
    ):
        raise ValueError(
            "expected a formula, or target= with experts= and gate=; got "
            f"formula={formula!r}, target={target!r}, experts={experts!r}, gate={gate!r}"
        )
    return formulas


def as_frame(data: Any) -> pd.DataFrame:
    """A data frame with rows numbered from 0.

    Raises:
        DataError: If data are no table.
    """
    if not isinstance(data, pd.DataFrame):
        try:
            data = pd.DataFrame(data)
        except (TypeError, ValueError) as error:
            raise DataError(f"expected a table with named columns; got {error}") from error
    if data.empty:
        raise DataError(f"expected a table with rows and columns; got shape {data.shape}")
    return data.reset_index(drop=True)


def weighing(table: pd.DataFrame, name: str) -> np.ndarray:
    """The weights of rows.

    Raises:
        DataError: If one is not a number of at least zero.
    """
    found = pd.to_numeric(variable(table, name), errors="coerce").to_numpy(float, na_value=np.nan)
    wrong = ~(np.isfinite(found) & (found >= 0))
    if wrong.any():
        row = int(wrong.argmax())
        raise DataError(
            f"expected weights {name!r} of at least 0; got {table[name].iloc[row]!r} in row {row}"
        )
    return found


def columns_of(design: Design, table: pd.DataFrame) -> tuple[Any, ...]:
    """The rows x and y as data frames."""
    x, y = design.features(table), design.target(table)
    if design.trials is not None:
        check_trials(design, x, y)
    if design.groups is not None:
        check_groups(design, x, pd.factorize(variable(table, design.groups))[0])
    return x, y


def annotations_of(
    design: Design, table: pd.DataFrame, labels: str | None, *, sampling: bool
) -> dict[str, Any]:
    """The weights, groups and labels of the rows, arguments of `fit`."""
    found: dict[str, Any] = {}
    if design.weights is not None:
        weights = weighing(table, design.weights)
        found["weights"] = weights / weights.mean() if sampling else weights
    if design.groups is not None:
        found["groups"] = variable(table, design.groups).to_numpy()
    if labels is not None:
        found["labels"] = variable(table, labels)
    return found


def check_trials(design: Design, x: pd.DataFrame, y: Any) -> None:
    """Check that there are no more successes than trials.

    Raises:
        DataError: If there are.
    """
    (name,) = design.trials.column_names if design.trials is not None else ("",)
    most, counts = x[[name]].to_numpy(), np.atleast_2d(y.to_numpy().T).T
    over = counts > most
    if over.any():
        row = int(over.any(1).argmax())
        raise DataError(
            f"expected counts of at most the trials {name!r}; got {y.to_numpy()[row].max():g} of "
            f"{x[name].iloc[row]:g} in row {row}"
        )


def check_groups(design: Design, x: pd.DataFrame, place: np.ndarray) -> None:
    """Check that the gate's columns do not differ in a group.

    Raises:
        DataError: If one does.
    """
    for name in design.gate_terms:
        by_group = x[name].groupby(place)
        differing = by_group.max() != by_group.min()
        if differing.any():
            raise DataError(
                f"expected columns of the gate that are constant in each group of "
                f"{design.groups!r}; got different values of {name!r}"
            )


def story_of(
    design: Design, columns: tuple[Any, ...], num_components: int, families: list[str]
) -> ME:
    """The story of a design."""
    x, y = columns[:2]
    width = 1 if y.ndim == 1 else y.shape[1]
    predictors = [predictor_of(design, spec) for spec in design.predictors]
    joint = len(families) > 1 or len(design.experts) > 1
    if joint and len(families) == 1:
        families = families * width
    return ME(
        x.shape[1],
        width if design.classes is None else len(design.classes),
        num_components,
        experts=families if joint else families[0],
        predictor=predictors if joint else predictors[0],
        gate_columns=design.places(terms(design.gate)),
        gate_intercept=has_intercept(design.gate),
    )


def predictor_of(design: Design, spec: Any) -> Predictor:
    """The linear predictors of one formula."""
    names = terms(spec)
    return Predictor(
        columns=design.places(names),
        intercept=has_intercept(spec),
        offset_column=place_of(design, design.offset),
        trials_column=place_of(design, design.trials),
        shared=design.places([name for name in names if name in design.shared]),
        shared_intercept=INTERCEPT in design.shared,
        shared_scale=SIGMA in design.shared,
    )


def place_of(design: Design, spec: Any) -> int | None:
    """The number of the column of x of a coding of one column, or None."""
    return None if spec is None else design.places(spec.column_names)[0]
