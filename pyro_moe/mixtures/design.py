"""Formulas: the design matrices of experts and gate, coded as the training rows were."""

import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from formulaic import Formula, ModelSpec
from formulaic.errors import DataMismatchWarning, FormulaicError
from formulaic.parser.types import Factor
from formulaic.utils.variables import get_expression_variables

from pyro_moe.inference.errors import DataError

INTERCEPT, SIGMA = "Intercept", "sigma"
MISSING = ("raise", "drop")
UNSEEN = ("raise", "reference")


@dataclass(frozen=True)
class Design:
    """How a table becomes x, y, weights and groups.

    Attributes:
        formula: The formula, ``y ~ experts | gate``, or several, joined by semicolons.
        targets: The coding of the targets, for each formula.
        experts: The coding of the experts' columns, for each formula.
        gate: The coding of the gate's columns.
        columns: Names of the columns of x: those of the experts, then those of the gate that the
            experts lack, then the offset.
        offset: The coding of the offset, or None.
        trials: The coding of the number of trials, or None.
        weights: Name of the column of weights, or None.
        groups: Name of the column of groups, or None.
        classes: The values of a categorical target, in the order of their numbers, or None.
        missing: What is done with rows with gaps, ``"raise"`` or ``"drop"``.
        unseen: What is done with levels of a factor that the training rows lack.
        shared: Names of the coefficients that are the same in all experts, and ``"sigma"``.
    """

    formula: str
    targets: tuple[ModelSpec, ...]
    experts: tuple[ModelSpec, ...]
    gate: ModelSpec
    columns: tuple[str, ...]
    offset: ModelSpec | None = None
    trials: ModelSpec | None = None
    weights: str | None = None
    groups: str | None = None
    classes: tuple[Any, ...] | None = None
    missing: str = "raise"
    unseen: str = "raise"
    shared: tuple[str, ...] = ()

    @property
    def predictors(self) -> list[ModelSpec]:
        """The coding of the experts' columns, for each target."""
        pairs = zip(self.targets, self.experts, strict=True)
        return [spec for target, spec in pairs for _ in target.column_names]

    @property
    def gate_terms(self) -> tuple[str, ...]:
        """Names of the gate's columns, without the intercept."""
        return terms(self.gate)

    @property
    def target_names(self) -> tuple[str, ...]:
        """Names of the targets; that of the variable, if it has classes."""
        if self.classes is not None:
            return (self.formula.partition("~")[0].strip(" `"),)
        return tuple(name for spec in self.targets for name in spec.column_names)

    def places(self, names: Sequence[str]) -> list[int]:
        """The numbers of columns of x, by name."""
        return [self.columns.index(name) for name in names]

    def features(self, data: pd.DataFrame) -> pd.DataFrame:
        """The columns of x of a table with the formula's variables.

        Raises:
            DataError: If a variable is absent, a value is missing, or a level is new.
        """
        data = plain(data)
        parts = [matrix(spec, data, self.unseen) for spec in (*self.experts, self.gate)]
        known = [spec for spec in (self.offset, self.trials) if spec is not None]
        parts += [matrix(spec, data, self.unseen) for spec in known]
        joined = pd.concat(parts, axis=1)
        joined = joined.loc[:, ~joined.columns.duplicated()]
        if INTERCEPT not in joined:
            joined[INTERCEPT] = 1.0
        return joined[list(self.columns)].astype(float)

    @property
    def derived(self) -> tuple[str, ...]:
        """The columns of x that are functions of other columns of x, as ``I(x ** 2)`` is of x."""
        return tuple(name for _, names in self._functions() for name in names)

    def recomputed(self, x: pd.DataFrame) -> pd.DataFrame:
        """Rows of x, with the columns that are functions of others computed from these."""
        x = x.copy()
        for spec, names in self._functions():
            found = pd.DataFrame(evaluated(spec, x))
            x[list(names)] = found[list(names)].to_numpy(float)
        return x

    def _functions(self) -> list[tuple[ModelSpec, tuple[str, ...]]]:
        """Codings of terms whose variables are all columns of x themselves, and their columns."""
        parts = [
            (spec, structure)
            for spec in (*self.experts, self.gate)
            for structure in spec.structure
            if structure.term.factors and INTERCEPT not in structure.columns
        ]
        plain_columns = {
            structure.columns[0]
            for _, structure in parts
            if list(structure.columns) == [str(structure.term).replace("`", "")]
            and len(structure.term.factors) == 1
            and structure.term.factors[0].eval_method is Factor.EvalMethod.LOOKUP
        }
        return [
            (spec.subset([structure.term]), tuple(structure.columns))
            for spec, structure in parts
            if not set(structure.columns) <= plain_columns
            and {str(v) for v in spec.term_variables[structure.term] if v.source == "data"}
            <= plain_columns
        ]

    def target(self, data: pd.DataFrame) -> pd.DataFrame | pd.Series:
        """The columns of y; for classes their numbers.

        Raises:
            DataError: If a target is absent, is missing in a row, or is a class that is not known.
        """
        data = plain(data)
        if self.classes is None:
            parts = [matrix(spec, data, "raise") for spec in self.targets]
            return pd.concat(parts, axis=1).astype(float)
        (name,) = self.target_names
        numbers = pd.Index(self.classes).get_indexer(variable(data, name))
        if (numbers < 0).any():
            value = data[name].iloc[int((numbers < 0).argmax())]
            raise DataError(f"expected classes of {name!r} in {list(self.classes)}; got {value!r}")
        return pd.Series(numbers, index=data.index, name=name)


def designed(
    formulas: Sequence[str],
    data: pd.DataFrame,
    *,
    classes: bool = False,
    offset: str | None = None,
    trials: str | None = None,
    weights: str | None = None,
    groups: str | None = None,
    missing: str = "raise",
    unseen: str = "raise",
    shared: Sequence[str] = (),
) -> tuple[Design, pd.DataFrame]:
    """Formulas, coded by training rows.

    Args:
        formulas: ``y ~ experts | gate``; without a second part the gate is constant. Or one for
            each target, of which one has the gate.
        data: The training rows.
        classes: Whether the target is a class.
        offset: A column, or an expression such as ``"log(time)"``, or None.
        trials: A column or an expression, or None.
        weights: A column, or None.
        groups: A column, or None.
        missing: ``"raise"`` or ``"drop"``.
        unseen: ``"raise"`` or ``"reference"``.
        shared: Terms whose coefficients all experts share, and ``"sigma"``.

    Returns:
        The design, and the rows of data that are used.

    Raises:
        DataError: If data lack a variable, a value is missing, or columns are linearly dependent.
        ValueError: If a formula or an option is invalid.
    """
    check_choice("missing", missing, MISSING)
    check_choice("unseen", unseen, UNSEEN)
    data, sides = plain(data), [parsed(formula) for formula in formulas]
    gates = [right[1] for _, right in sides if len(right) == 2]
    if len(gates) > 1:
        raise ValueError(f"expected one gate; got {len(gates)} in {list(formulas)}")
    gate = gates[0] if gates else Formula("1")
    known = {
        name: Formula(f"0 + {each}")
        for name, each in (("offset", offset), ("trials", trials))
        if each
    }
    lefts, rights = [left for left, _ in sides], [right[0] for _, right in sides]
    named = [name for name in (weights, groups) if name is not None]
    data = complete(data, [*lefts, *rights, gate, *known.values()], named, missing)
    targets, experts = (tuple(coding(each, data) for each in part) for part in (lefts, rights))
    of_gate, codings = (
        coding(gate, data),
        {name: coding(each, data) for name, each in known.items()},
    )
    for name, spec in codings.items():
        if len(spec.column_names) != 1:
            raise ValueError(f"expected {name} of one column; got {list(spec.column_names)}")
    names = [*(name for spec in (*experts, of_gate) for name in terms(spec))]
    names += [name for spec in codings.values() for name in spec.column_names]
    design = Design(
        "; ".join(formulas),
        targets,
        experts,
        of_gate,
        tuple(dict.fromkeys(names)) or (INTERCEPT,),
        codings.get("offset"),
        codings.get("trials"),
        weights,
        groups,
        tuple(sorted_values(data, lefts[0])) if classes else None,
        missing,
        unseen,
        tuple(each for name in shared for each in shared_names(experts, name)),
    )
    for spec, of in [*((each, "experts") for each in experts), (of_gate, "gate")]:
        check_rank(matrix(spec, data, "raise"), of)
    return design, data


def shared_names(experts: Sequence[ModelSpec], term: str) -> list[str]:
    """The columns of a term of the experts, or ``"sigma"``.

    Raises:
        ValueError: If there is no such term.
    """
    found = [term] if term == SIGMA else []
    known: dict[str, None] = {}
    for spec in experts:
        for structure in spec.structure:
            known |= dict.fromkeys(structure.columns)
            if str(structure.term).replace("`", "") == term or term in structure.columns:
                found += [name for name in structure.columns if name not in found]
    found = [term] if term in known else found
    if INTERCEPT in found and term != INTERCEPT:
        found.remove(INTERCEPT)
    if not found:
        raise ValueError(f"expected shared terms among {[*known, SIGMA]}; got {term!r}")
    return found


def parsed(formula: str) -> tuple[Formula, tuple[Formula, ...]]:
    """The left side, and one or two parts of the right side.

    Raises:
        ValueError: If it is no such formula.

    Example:
        >>> parsed("y ~ x | g")
        (y, (1 + x, 1 + g))
    """
    try:
        found = Formula(formula)
    except (FormulaicError, SyntaxError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"expected a formula 'y ~ experts | gate'; got {formula!r}: {reason}"
        ) from error
    left, right = getattr(found, "lhs", None), getattr(found, "rhs", None)
    if left is None or right is None or isinstance(left, tuple):
        raise ValueError(f"expected a formula 'y ~ experts | gate'; got {formula!r}")
    parts = right if isinstance(right, tuple) else (right,)
    if len(parts) > 2:
        raise ValueError(f"expected one '|' in the formula at most; got {formula!r}")
    return left, parts


def formula_of(targets: Any, experts: Sequence[str], gate: Sequence[str]) -> str:
    """The formula of columns by name.

    Example:
        >>> formula_of("y", ["age", "dose 2"], [])
        '`y` ~ `age` + `dose 2` | 1'
    """
    names = [targets] if isinstance(targets, str) else list(targets)
    sides = (names, experts, gate)
    left, right, last = (" + ".join(f"`{name}`" for name in side) or "1" for side in sides)
    return f"{left} ~ {right} | {last}"


def plain(data: pd.DataFrame) -> pd.DataFrame:
    """A table whose columns are of numpy's types, or categorical. Gaps are NaN or None."""
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


def terms(spec: ModelSpec) -> tuple[str, ...]:
    """Names of the columns of a matrix without the intercept."""
    return tuple(name for name in spec.column_names if name != INTERCEPT)


def has_intercept(spec: ModelSpec) -> bool:
    """Whether a matrix has the intercept."""
    return INTERCEPT in spec.column_names


def coding(formula: Formula, data: pd.DataFrame) -> ModelSpec:
    """The coding of the columns of a formula, from training rows."""
    return evaluated(formula, data).model_spec


def matrix(spec: ModelSpec, data: pd.DataFrame, unseen: str) -> pd.DataFrame:
    """The columns of a coding for rows.

    Raises:
        DataError: If a variable is absent or a value is missing; and if a level is new, unless
            ``unseen`` is ``"reference"``.
    """
    rows = complete(data, [spec.formula], [], "raise")
    for name, levels in known_levels(spec, data).items():
        values = pd.Series(rows[name])
        new = ~values.isin(levels)
        if not new.any():
            continue
        if unseen == "raise":
            raise DataError(
                f"expected levels of {name!r} in {list(levels)}, as fitted; "
                f"got {values[new].iloc[0]!r}: unseen='reference' codes it as the first of them"
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
    found = {}
    for expression, (kind, state) in spec.encoder_state.items():
        if kind is Factor.Kind.CATEGORICAL and "categories" in state:
            inside = re.fullmatch(r"C\(\s*`?([^,()`]+?)`?\s*(,.*)?\)", str(expression))
            found[inside[1] if inside else str(expression)] = list(state["categories"])
    return {name: levels for name, levels in found.items() if name in data.columns}


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
            quoted = re.findall("`([^`]+)`", expression)
            others = map(str, get_expression_variables(re.sub("`[^`]+`", "0", expression)))
            found |= dict.fromkeys(name for name in (*quoted, *others) if name in data.columns)
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
    data: pd.DataFrame, formulas: Sequence[Formula], names: Sequence[str], missing: str
) -> pd.DataFrame:
    """The rows without gaps in the columns that are used.

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
        "missing: missing='drop' leaves such rows out, and models.GMMMoE has a story of x"
    )


def sorted_values(data: pd.DataFrame, left: Formula) -> list[Any]:
    """The values of the one variable of a left side, in the order of its categories.

    Raises:
        ValueError: If there is not one variable.
    """
    names = variables(left, data)
    if len(names) != 1:
        raise ValueError(f"expected one variable with classes; got {names}")
    values = variable(data, names[0])
    if isinstance(values.dtype, pd.CategoricalDtype):
        return list(values.cat.remove_unused_categories().cat.categories)
    return sorted(values.unique().tolist())


def check_rank(columns: pd.DataFrame, of: str) -> None:
    """Check that the columns of a matrix are linearly independent.

    Raises:
        DataError: If one is a combination of others, or if there are fewer rows than columns.
    """
    values = columns.to_numpy(float)
    if not np.isfinite(values).all():
        name = columns.columns[int((~np.isfinite(values)).any(0).argmax())]
        raise DataError(f"expected finite values of {name!r}; got others")
    if INTERCEPT in columns:
        values = np.where(columns.columns == INTERCEPT, values, values - values.mean(0))
    scale = np.sqrt((values**2).sum(0))
    size = np.abs(columns.to_numpy(float)).max(0, initial=0.0) * np.sqrt(len(values))
    constant = scale <= 1e-13 * size
    scaled = values / np.where(scale > 0, scale, 1.0)
    upper = np.linalg.qr(scaled, mode="r")
    diagonal = np.zeros(values.shape[1])
    diagonal[: len(upper)] = np.abs(np.diag(upper))
    dependent = constant | (diagonal < 1e-9)
    if dependent.any():
        name = columns.columns[int(dependent.argmax())]
        raise DataError(
            f"expected linearly independent columns of the {of}; got {name!r}, which is a "
            "combination of others: leave it out"
        )


def check_choice(name: str, value: Any, choices: tuple[str, ...]) -> None:
    """Check that an option is one of its choices."""
    if value not in choices:
        raise ValueError(f"expected {name} in {choices}; got {value!r}")
