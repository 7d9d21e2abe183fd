"""The columns of one part of a formula, coded as the training rows were."""

import re
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from formulaic import Formula, ModelSpec
from formulaic.errors import DataMismatchWarning, FormulaicError
from formulaic.parser.types import Factor, Term

from pyro_moe.inference.errors import DataError

from .known import names_of

INTERCEPT = "Intercept"
DECIMAL_COMMA = re.compile(r"\s*[+-]?\d[\d.]*(,\d+)?\s*")
MANY = 10  # levels that a table of few rows may have


def terms(spec: ModelSpec) -> tuple[str, ...]:
    """Names of the columns of a matrix without the intercept."""
    return tuple(name for name in spec.column_names if name != INTERCEPT)


def has_intercept(spec: ModelSpec) -> bool:
    """Whether a matrix has the intercept."""
    return INTERCEPT in spec.column_names


def coding(formula: Formula, data: pd.DataFrame) -> ModelSpec:
    """The coding of the columns of a formula, from training rows.

    Raises:
        DataError: If it cannot be computed, or a factor is made of numbers or of names of rows.
    """
    for factor in (factor for term in formula for factor in term.factors):
        if factor.eval_method is Factor.EvalMethod.LOOKUP:
            expect_numbers_or_texts(variable(data, str(factor.expr)))
    spec = evaluated(formula, data).model_spec
    for name, levels in known_levels(spec, data).items():
        expect_levels(name, levels, len(data))
    return spec


def expect_numbers_or_texts(column: pd.Series) -> None:
    """Check that a column can be coded.

    Raises:
        DataError: If it has times, durations or complex numbers.
    """
    if isinstance(column.dtype, pd.DatetimeTZDtype) or getattr(column.dtype, "kind", "") in "mMc":
        raise DataError(
            f"expected numbers or texts in the column {column.name!r}; got {column.dtype}: make "
            "numbers of it"
        )


def expect_levels(name: str, levels: Sequence[Any], num_rows: int) -> None:
    """Check that texts are levels of a factor, and not numbers or names of rows.

    Raises:
        DataError: If nine tenths of them are numbers with a decimal comma, or if there are more
            than ten and more than half as many as rows.
    """
    numbers = [level for level in levels if DECIMAL_COMMA.fullmatch(str(level))]
    commas = [level for level in numbers if "," in str(level)]
    if commas and len(numbers) >= 0.9 * len(levels):
        raise DataError(
            f"expected numbers in the column {name!r}; got {commas[0]!r}: read the table with "
            "decimal=',' (on the command line, --decimal ,)"
        )
    if len(levels) > max(MANY, num_rows / 2):
        raise DataError(
            f"expected a factor with several rows of each level; got {len(levels)} levels of "
            f"{name!r} in {num_rows} rows: leave out what identifies rows"
        )


def matrix(spec: ModelSpec, data: pd.DataFrame, unseen: str) -> pd.DataFrame:
    """The columns of a coding for rows.

    Raises:
        DataError: If a variable is absent or a value is missing; and if a level is new, unless
            ``unseen`` is ``"reference"``.
    """
    rows = with_used_levels(complete(data, [spec.formula], [], "raise"))
    for name, levels in known_levels(spec, data).items():
        values = pd.Series(rows[name])
        new = ~values.isin(levels)
        if not new.any():
            continue
        if unseen == "raise":
            raise DataError(
                f"expected levels of {name!r} in {pd.Index(levels).tolist()}, as fitted; "
                f"got {values[new].tolist()[0]!r}: fit with unseen='reference' (pyro-moe fit "
                "--unseen reference), which codes it as the first of them"
            )
        rows = rows.assign(**{name: values.where(~new, levels[0])})
    return pd.DataFrame(evaluated(spec, rows))


def evaluated(formula: Any, data: pd.DataFrame) -> Any:
    """The model matrix of a formula or of a coding.

    Raises:
        DataError: If it cannot be computed from the data.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", DataMismatchWarning)
            return formula.get_model_matrix(data, na_action="ignore")
    except DataMismatchWarning as warning:
        raise DataError(f"expected levels of factors as fitted; got others: {warning}") from None
    except (FormulaicError, KeyError, TypeError, ValueError, NameError) as error:
        cause = error.__cause__ or error
        raise DataError(
            f"expected columns from which {str(formula_text(formula))!r} can be computed; "
            f"got {type(cause).__name__}: {cause}"
        ) from error


def formula_text(formula: Any) -> str:
    """A formula or a coding as text."""
    return str(formula.formula if isinstance(formula, ModelSpec) else formula)


def known_levels(spec: ModelSpec, data: pd.DataFrame) -> dict[str, list[Any]]:
    """The levels of each factor that is a column of the data, by itself or in C(…)."""
    return {name: each for name, each in levels_of(spec).items() if name in data.columns}


def levels_of(spec: ModelSpec) -> dict[str, list[Any]]:
    """The levels of each factor, under the name of its column if it is one, or one in C(…)."""
    found = {}
    for expression, (kind, state) in spec.encoder_state.items():
        if kind is Factor.Kind.CATEGORICAL and "categories" in state:
            inside = re.fullmatch(r"C\(\s*`?([^,()`]+?)`?\s*(,.*)?\)", str(expression))
            found[inside[1] if inside else str(expression)] = list(state["categories"])
    return found


def names_in(term: Term) -> set[str]:
    """The variables of a term."""
    found: set[str] = set()
    for factor in term.factors:
        expression = str(factor.expr)
        if factor.eval_method is Factor.EvalMethod.LOOKUP:
            found.add(expression.strip("`"))
        elif factor.eval_method is Factor.EvalMethod.PYTHON:
            found |= names_of(expression)
    return found


def variables(formula: Formula, data: pd.DataFrame) -> list[str]:
    """The columns of the data that a formula uses.

    Raises:
        DataError: If a term is a name that is no column.
    """
    found: dict[str, None] = {}
    for factor in (factor for term in formula for factor in term.factors):
        expression = str(factor.expr)
        if factor.eval_method is Factor.EvalMethod.LOOKUP:
            found[str(variable(data, expression).name)] = None
        elif factor.eval_method is Factor.EvalMethod.PYTHON:
            found |= dict.fromkeys(n for n in sorted(names_of(expression)) if n in data.columns)
    return list(found)


def variable(data: pd.DataFrame, name: str) -> pd.Series:
    """A column by name.

    Raises:
        DataError: If it is absent.
    """
    name = name.strip("`")
    if name not in data.columns:
        raise DataError(f"expected a column {name!r}; got {list(map(str, data.columns))}")
    return data[name]


def complete(
    data: pd.DataFrame,
    formulas: Sequence[Formula],
    names: Sequence[str],
    missing: str,
    hint: str = "",
) -> pd.DataFrame:
    """The rows without gaps in the columns that are used.

    Args:
        data: A table.
        formulas: The formulas that use columns.
        names: Names of other columns that are used.
        missing: ``"raise"`` or ``"drop"``.
        hint: The end of the message.

    Raises:
        DataError: If a column is absent; or if a value is missing and ``missing`` is ``"raise"``.
    """
    used = dict.fromkeys(name for each in formulas for name in variables(each, data))
    used |= dict.fromkeys(variable(data, name).name for name in names)
    gaps = data[list(used)].isna()
    if not gaps.to_numpy().any():
        return data
    if missing == "drop":
        return data[~gaps.any(axis=1)]
    column = gaps.columns[int(gaps.any().argmax())]
    raise DataError(
        f"expected values in all rows of {column!r}; got {int(gaps[column].sum())} of {len(data)} "
        f"missing{hint}"
    )


def with_used_levels(data: pd.DataFrame) -> pd.DataFrame:
    """A table whose categorical columns have the categories of its rows alone."""
    found = {
        name: column.cat.remove_unused_categories()
        for name, column in data.items()
        if isinstance(column.dtype, pd.CategoricalDtype)
    }
    return data.assign(**found) if found else data


def plain(data: pd.DataFrame) -> pd.DataFrame:
    """A table whose columns are of numpy's types, or categorical. Gaps are NaN or None.

    Raises:
        DataError: If two columns have the same name.
    """
    twice = data.columns[data.columns.duplicated()]
    if len(twice):
        raise DataError(f"expected columns with distinct names; got {str(twice[0])!r} twice")
    found: dict[Any, pd.Series] = {}
    for name, column in data.items():
        if isinstance(column.dtype, pd.CategoricalDtype | np.dtype):
            found[name] = column
        elif pd.api.types.is_numeric_dtype(column.dtype):
            gaps = {"dtype": float, "na_value": np.nan} if column.isna().any() else {}
            found[name] = pd.Series(column.to_numpy(**gaps), column.index)
        elif pd.api.types.is_string_dtype(column.dtype):
            found[name] = column.astype(object)
        else:
            found[name] = column
    return pd.DataFrame(found, index=data.index)
