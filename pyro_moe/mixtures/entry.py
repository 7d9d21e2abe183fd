"""The function `mixture`."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from inspect import signature
from typing import Any

import pandas as pd
import torch

from pyro_moe.fitting import fit
from pyro_moe.fitting.annotations import em_takes_groups
from pyro_moe.inference.context import without_warnings
from pyro_moe.inference.em import EM, TOLERANCE
from pyro_moe.inference.errors import ConvergenceWarning, warn
from pyro_moe.inference.prior import Prior
from pyro_moe.rows import as_tensor

from .coefficients import at_limit, named_parameters
from .fit import FormulaFit, by_formula
from .formulas import (
    Design,
    annotations_of,
    as_frame,
    check_groups,
    columns_of,
    designed,
    stated,
    weighted,
)
from .result import MixtureFit
from .stories import Made, made_of
from .uncertainty import polish

ANNOTATIONS = ("weights", "groups", "labels")
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
    num_components: Any = 2,
    story: Any = "me",
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
    prior: str | Prior | None = None,
    seed: int = 0,
    progress: bool = False,
    story_options: Mapping[str, Any] | None = None,
    fit_options: Mapping[str, Any] | None = None,
) -> MixtureFit | FormulaFit:
    r"""Fit a mixture of regressions by maximum likelihood, or another story by formula.

    .. math:: p(y \mid x) = \sum_k g_k(x)\, p_k(y \mid x), \quad
              g_k(x) = \mathrm{softmax}_k(\langle v_k, x \rangle + a_k)

    It is the story `models.ME`, fitted by EM from several starts, and then by Newton's method.
    Other stories are fitted as by `fit`, with the same formulas, factors, offsets and weights.
    They have no standard errors.

    Args:
        formula: ``"y ~ experts | gate"``, as of ``formulaic``: transformations, factors,
            interactions, several targets (``"y1 + y2 ~ x"``), an offset (``"y ~ x + offset(t)"``),
            all columns that nothing else names (``"y ~ ."``). Without a second part the gate is
            constant, or in other stories than ``"me"`` reads what the experts read. Or a formula
            for each target.
        data: A data frame, or a mapping of columns.
        target: Name of the target, or names of targets, instead of a formula.
        experts: Names of the experts' columns, instead of a formula.
        gate: Names of the gate's columns, instead of a formula.
        num_components: K.
        story: The name of a story with a target, ``"me"``, ``"deepmoe"``, ``"dvmoe"``, …; a class;
            or a module with model and guide, which reads all columns of x as they are and has K
            and experts of its own.
        family: The family of the experts, ``"normal"``, ``"normal-full"`` (correlated targets),
            ``"student-t"``, ``"poisson"``, ``"bernoulli"``, ``"binomial"`` or ``"categorical"``;
            or a family for each target.
        offset: A column, or an expression as ``"log(time)"``, that is added to the linear
            predictor of all experts. The same as ``offset(…)`` in each formula.
        trials: A column, or an expression, with the number of trials of ``"binomial"`` experts.
            Other families have none.
        weights: A column of weights. Rows of weight zero are left out.
        groups: A column. The rows of a group are from one component. The columns of a gate p(c|x)
            must not differ in a group.
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
        order: The order of the components of ``"me"``, see `MixtureFit.relabel`; ``"fitted"`` for
            that of EM. If None, ``"size"``; with labels, their order.
        initialize: Responsibilities (N, K) or labels (N,) to start from, instead of several
            starts.
        restarts: The number of starts, 12 if None.
        epochs: The maximum number of iterations of EM.
        tolerance: EM ends when all further iterations are expected to add less, in nats.
        prior: ``"none"``, ``"weak"``, ``"auto"`` or a `Prior`, see `fit`. A prior keeps the
            likelihood bounded where an expert could fit a few rows exactly. The estimates are then
            the posterior mode, and standard errors those of the penalized observed information. If
            None, ``"none"`` for ``"me"``, and ``"auto"`` for other stories.
        seed: Seed of the starts.
        progress: Whether to show a progress bar.
        story_options: Further arguments of the story's constructor, such as ``hidden``.
        fit_options: Further arguments of `fit`, such as ``device``.

    Returns:
        A `MixtureFit`, which is a `Fit`; of other stories than ``"me"`` a `FormulaFit`.

    Raises:
        DataError: If the data lack a column, have gaps, or do not determine the coefficients.
        ValueError: If an argument is invalid.

    Warns:
        ConvergenceWarning: If the parameters are at no maximum.
        EmptyComponentWarning: If a component has few rows.

    Example:
        >>> import numpy as np
        >>> x = np.linspace(0.0, 1.0, 60)
        >>> y = np.where(np.arange(60) % 2, 2.0 * x, 1.0 - x) + 0.05 * np.sin(np.arange(60.0) ** 2)
        >>> fitted = mixture("y ~ x", {"x": x, "y": y}, order="x")
        >>> fitted.params[:, "y", "x"].round(1).tolist()
        [-1.0, 2.0]
    """
    families = [family] if isinstance(family, str) else list(family)
    is_me = isinstance(story, str) and story == "me"
    expect_possible(story, is_me, order=order)
    formulas = stated(formula, target, experts, gate)
    given = as_frame(data)
    design, table = coded(
        formulas,
        given,
        families,
        story,
        offset=offset,
        trials=trials,
        weights=weights,
        groups=groups,
        labels=labels,
        missing=missing,
        unseen=unseen,
        shared=shared,
    )
    made = made_of(story, story_options, design, num_components=num_components, families=families)
    options = {
        "initialize": of_rows(initialize, len(given), table.index),
        "restarts": restarts,
        "epochs": epochs,
        "tolerance": tolerance,
        "prior": ("none" if is_me else "auto") if prior is None else prior,
        "seed": seed,
        "progress": progress,
        "weight_type": weight_type,
    }
    columns, about = columns_of(design, table), annotations_of(design, table)
    if groups is not None and em_takes_groups(made.story.model):  # which have a gate p(c|x)
        check_groups(design, columns[0], about["groups"])
    options |= further(fit_options, {*options, *ANNOTATIONS, *(["loss"] if is_me else [])})
    fitting: Callable[..., MixtureFit | FormulaFit] = fitted_to if is_me else fitted_otherwise
    found = fitting(
        made,
        design,
        columns,
        " and ".join(families),
        **about,
        **options,
    )
    found = replace(found, index=given.index[table.index], given_rows=len(given))
    if not isinstance(found, MixtureFit):
        return found
    if not found.converged:
        warn(
            "expected EM and Newton's method to end at a maximum; got an expected increase of "
            f"{found.remaining:.2g} nats: give more epochs, more restarts, or fewer components",
            ConvergenceWarning,
        )
    if order is None:
        order = "size" if labels is None else "fitted"
    return found if isinstance(order, str) and order == "fitted" else found.relabel(order)


def coded(
    formulas: Sequence[str], data: Any, families: list[str], story: Any, **options: Any
) -> tuple[Design, pd.DataFrame]:
    """The design of a mixture, and the rows of the table that are fitted, numbered as given.

    Args:
        formulas: Formulas.
        data: A table.
        families: A family of experts, or one for each target.
        story: The story.
        **options: Further arguments of `designed`.

    Raises:
        DataError: If data lack a column or have gaps.
        ValueError: If a family or an option is invalid.
    """
    if not families or not set(families) <= set(FAMILIES):
        got = " and ".join(map(str, families))
        raise ValueError(f"expected family in {FAMILIES}, or one for each target; got {got!r}")
    if options.get("trials") is not None and "binomial" not in families:
        got = " and ".join(families)
        raise ValueError(f"expected family='binomial' with trials; got {got!r}")
    table = as_frame(data).reset_index(drop=True)
    return designed(
        formulas,
        weighted(table, options.get("weights"), options.get("missing", "raise")),
        classes={"categorical": "any", "bernoulli": "two"}.get(" ".join(families)),
        gate="constant" if isinstance(story, str) and story == "me" else "experts",
        **options,
    )


def of_rows(start: Any, number: int, kept: Any) -> Any:
    """What is known of the components of a table's rows, for those that are fitted.

    Args:
        start: Responsibilities or labels, or the name of a start.
        number: The number of rows of the table.
        kept: The numbers of the rows that are fitted.
    """
    is_of_table = hasattr(start, "__len__") and not isinstance(start, str) and len(start) == number
    if not is_of_table or len(kept) == number:
        return start
    return as_tensor(start, "initialize")[torch.tensor(list(kept))]


def expect_possible(story: Any, is_me: bool, *, order: Any) -> None:
    """Check that options are of a story.

    Raises:
        ValueError: If one has no meaning for it.
    """
    if is_me:
        return
    name = repr(story) if isinstance(story, str) else getattr(story, "__name__", "a module")
    if order is not None and not (isinstance(order, str) and order == "fitted"):
        raise ValueError(f"expected story='me' to order components; got {name}")


def further(given: Mapping[str, Any] | None, own: set[str]) -> dict[str, Any]:
    """Further arguments of `fit`.

    Raises:
        ValueError: If one is an argument of `mixture`, or not one of `fit`.
    """
    found = dict(given or {})
    known = set(signature(fit).parameters) - {"model", "guide", "data"} - own
    for name in found:
        if name not in known:
            raise ValueError(f"expected fit_options in {sorted(known)}; got {name!r}")
    return found


def fitted_to(
    made: Made,
    design: Design,
    columns: tuple[Any, ...],
    family: str,
    **options: Any,
) -> MixtureFit:
    """A story fitted to the columns of a design, by EM and then by Newton's method.

    Args:
        made: A story `models.ME`.
        design: Its design.
        columns: x and y.
        family: The name of the family.
        **options: Arguments of `fit`.
    """
    with without_warnings(ConvergenceWarning):  # of EM, from whose end Newton's method goes on
        fitted = fit(made.story.model, made.story.guide, columns, loss="em", **options)
    remaining = float("inf")
    if options.get("epochs") != 0 and isinstance(fitted.run, EM):
        fixed, before = at_limit(fitted.story, design), None
        while before is None or (fixed & ~before).any():  # others may come to a limit on the way
            before = fixed
            remaining = polish(
                fitted.run, lambda: named_parameters(fitted.story, design)[1], before
            )
            fixed = before | at_limit(fitted.story, design)
    values = {"design": design, "family": family, "remaining": remaining}
    values["cov_type"] = "sandwich" if options.get("weight_type") == "sampling" else "observed"
    return by_formula(MixtureFit, fitted, **values, **named(made))


def fitted_otherwise(
    made: Made,
    design: Design,
    columns: tuple[Any, ...],
    family: str,
    **options: Any,
) -> FormulaFit:
    """A story fitted to the columns of a design as by `fit`, see `fitted_to`."""
    fitted = fit(made.story.model, made.story.guide, columns, **options)
    return by_formula(FormulaFit, fitted, design=design, family=family, **named(made))


def named(made: Made) -> dict[str, Any]:
    """What a fit remembers of how its story was made."""
    return {"story_name": made.name, "story_arguments": made.arguments}
