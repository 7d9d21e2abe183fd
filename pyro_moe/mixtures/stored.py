"""A fit by formula as data that JSON supports, and back."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pandas as pd
import torch

from pyro_moe.fitted import Fit
from pyro_moe.rows import Rows, as_tensor, as_tensors

from .fit import FormulaFit, by_formula
from .formulas import Design, annotations_of, columns_of
from .formulas.coding import terms
from .formulas.rows import kept
from .formulas.stored import as_data, from_data, program_in
from .result import MixtureFit

OF_MIXTURES_ALONE = ("remaining", "cov_type")


def formula_of(fit: FormulaFit) -> dict[str, Any]:
    """What a run says of a fit by formula.

    Raises:
        DataError: If something of the formula cannot be stored as texts and numbers.
    """
    names = OF_MIXTURES_ALONE if isinstance(fit, MixtureFit) else ()
    own = {name: getattr(fit, name) for name in names}
    return {"design": as_data(fit.design), "family": fit.family, **own}


def program_of(formula: Mapping[str, Any]) -> str | None:
    """The first part of a stored formula that would be executed as a program, None without one."""
    return program_in(formula["design"])


def design_of(formula: Mapping[str, Any]) -> Design:
    """The design of a stored formula.

    Raises:
        ValueError: If it is damaged.
    """
    design = from_data(formula["design"])
    specs = [*design.experts, design.gate, *design.known]
    known = {name for spec in specs for name in terms(spec)}
    if not known <= set(design.columns) or len(set(design.columns)) < len(design.columns):
        raise ValueError(f"expected columns of the formula; got {list(design.columns)}")
    return design


def with_formula(fit: Fit, design: Design, formula: Mapping[str, Any], **others: Any) -> FormulaFit:
    """A restored fit as one by formula.

    Args:
        fit: The fit.
        design: Its design.
        formula: The stored formula.
        **others: Name and arguments of the story, and what is known of the rows' table.
    """
    own = {name: formula[name] for name in ("family", *OF_MIXTURES_ALONE) if name in formula}
    kind = MixtureFit if "remaining" in formula else FormulaFit
    found: FormulaFit = by_formula(kind, fit, design=design, **own, **others)
    return found


def fitted_rows(design: Design, table: pd.DataFrame) -> tuple[Any, dict[str, Any], dict[str, Any]]:
    """The rows of a table as they were fitted, and their weights, groups and labels.

    Args:
        design: The design.
        table: A table with the variables of the formula.

    Returns:
        The rows x and y, or x alone if the table has no target; further arguments of `fit`,
        of which there are none if the table lacks a column of them; and the attributes of a
        `FormulaFit` that say where the rows are in the table.
    """
    targets = {str(name) for spec in design.targets for name in variables_of(spec)}
    if not targets <= set(table.columns):
        return design.features(table), {}, {}
    others = {design.weights, design.groups, design.labels} - {None}
    if not others <= set(table.columns):
        design = replace(design, weights=None, groups=None, labels=None)
    rows = kept(design, table)
    places = {"index": table.index[rows.index], "given_rows": len(table)}
    return columns_of(design, rows), annotations_of(design, rows), places


def as_rows(design: Design, table: pd.DataFrame) -> Rows:
    """The rows x and y of a table, or x alone, as tensors with names and annotations."""
    data, about, _ = fitted_rows(design, table)
    if "groups" in about:
        about["groups"] = pd.factorize(about["groups"])[0]
    x, *y = as_tensors(data, dtype=torch.float64)
    return Rows(
        x,
        y[0] if y else None,
        columns=design.columns,
        targets=design.target_names if y else None,
        annotations={name: as_tensor(column, name) for name, column in about.items()},
    )


def variables_of(spec: Any) -> set[str]:
    """The names of variables that a coding reads."""
    return {str(name) for factor in spec.factors for name in factor.required_variables}
