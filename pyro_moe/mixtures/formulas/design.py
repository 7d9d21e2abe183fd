"""The design of a mixture: how a table becomes the columns of x and y."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from formulaic import Formula, ModelSpec, SimpleFormula
from formulaic.errors import FormulaicError

from pyro_moe.inference.errors import DataError

from .coding import (
    INTERCEPT,
    coding,
    complete,
    levels_of,
    matrix,
    names_in,
    plain,
    terms,
    variable,
    variables,
    with_used_levels,
)
from .names import SIGMA, check_equations, check_terms, equation_names
from .text import as_column, expect_name, parsed
from .variables import Variables, variables_of

MISSING = ("raise", "drop")
UNSEEN = ("raise", "reference")
LEAST = 3e-6  # of a column, what others do not explain, for least squares to tell them apart
HINT = (
    ": missing='drop' (on the command line, --drop-missing) leaves such rows out, and "
    "models.GMMMoE has a story of x"
)


@dataclass(frozen=True)
class Design:
    """How a table becomes x, y, weights, groups and labels.

    Attributes:
        formula: The formula, ``y ~ experts | gate``, or several, joined by semicolons.
        targets: The coding of the targets, for each formula.
        experts: The coding of the experts' columns, for each formula.
        gate: The coding of the gate's columns.
        columns: Names of the columns of x: those of the experts, then those of the gate that the
            experts lack, then the offset.
        offsets: The coding of the offset, or None, for each formula.
        trials: The coding of the number of trials, or None.
        weights: Name of the column of weights, or None.
        groups: Name of the column of groups, or None.
        labels: Name of the column of components, or None.
        label_order: The label of each component, if they are in another order.
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
    offsets: tuple[ModelSpec | None, ...] = ()
    trials: ModelSpec | None = None
    weights: str | None = None
    groups: str | None = None
    labels: str | None = None
    label_order: tuple[int, ...] = ()
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
    def target_offsets(self) -> list[ModelSpec | None]:
        """The coding of the offset, or None, for each target."""
        pairs = zip(self.targets, self.offsets, strict=True)
        return [offset for target, offset in pairs for _ in target.column_names]

    @property
    def known(self) -> list[ModelSpec]:
        """The codings of columns without coefficients: offsets and trials."""
        return [spec for spec in (*self.offsets, self.trials) if spec is not None]

    @property
    def gate_terms(self) -> tuple[str, ...]:
        """Names of the gate's columns, without the intercept."""
        return terms(self.gate)

    @property
    def target_names(self) -> tuple[str, ...]:
        """Names of the targets; that of the variable, if it has classes."""
        if self.classes is not None:
            (spec,) = self.targets
            return ((*levels_of(spec), *spec.column_names)[0],)
        return tuple(name for spec in self.targets for name in spec.column_names)

    @property
    def texts(self) -> set[str]:
        """The names of columns that are texts: factors with such levels, and classes."""
        specs = [*self.targets, *self.experts, self.gate]
        found = {name: levels for spec in specs for name, levels in levels_of(spec).items()}
        if self.classes is not None:
            found[self.target_names[0]] = list(self.classes)
        return {name for name, levels in found.items() if any(isinstance(v, str) for v in levels)}

    def places(self, names: Sequence[str]) -> list[int]:
        """The numbers of columns of x, by name."""
        return [self.columns.index(name) for name in names]

    def features(self, data: pd.DataFrame) -> pd.DataFrame:
        """The columns of x of a table with the formula's variables.

        Raises:
            DataError: If a variable is absent, a value is missing, or a level is new.
        """
        data = plain(data)
        specs = (*self.experts, self.gate, *self.known)
        parts = [matrix(spec, data, self.unseen) for spec in specs]
        joined = pd.concat(parts, axis=1)
        joined = joined.loc[:, ~joined.columns.duplicated()]
        if INTERCEPT not in joined:
            joined[INTERCEPT] = 1.0
        return joined[list(self.columns)].astype(float)

    @functools.cached_property
    def variables(self) -> Variables:
        """The variables that can be read from the columns of x, and what is computed of them."""
        return variables_of((*self.experts, self.gate))

    @property
    def of_experts(self) -> set[str]:
        """Names of the columns of x, and of the variables, that experts read."""
        found = {name for spec in self.experts for name in terms(spec)}
        each = (structure.term for spec in self.experts for structure in spec.structure)
        return found.union(*(names_in(term) for term in each))

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
    classes: str | None = None,
    offset: str | None = None,
    trials: str | None = None,
    weights: str | None = None,
    groups: str | None = None,
    labels: str | None = None,
    missing: str = "raise",
    unseen: str = "raise",
    shared: Sequence[str] = (),
    gate: str = "constant",
) -> tuple[Design, pd.DataFrame]:
    """Formulas, coded by training rows.

    Args:
        formulas: ``y ~ experts | gate``. Or one for each target, of which one has the gate. The
            columns of ``.`` are those that nothing else names.
        data: The training rows.
        classes: ``"any"`` for a target that is a class; ``"two"`` if it may be one of two classes;
            None if it is a number.
        offset: A column, or an expression such as ``"log(time)"``, of formulas that have none of
            their own, ``offset(…)``; or None.
        trials: A column or an expression, or None.
        weights: A column, or None.
        groups: A column, or None.
        labels: A column, which may have gaps, or None.
        missing: ``"raise"`` or ``"drop"``.
        unseen: ``"raise"`` or ``"reference"``.
        shared: Terms whose coefficients all experts share, and ``"sigma"``.
        gate: What the gate reads if no formula has a second part: ``"constant"``, nothing; or
            ``"experts"``, what the experts read.

    Returns:
        The design, and the rows of data that are used.

    Raises:
        DataError: If data lack a variable, a value is missing, or columns are linearly dependent.
        ValueError: If a formula or an option is invalid.
    """
    check_choice("missing", missing, MISSING)
    check_choice("unseen", unseen, UNSEEN)
    data = plain(data)
    columns = free(formulas, data, offset, trials, weights, groups, labels)
    parts = [parsed(formula, columns) for formula in formulas]
    gates = [each.gate for each in parts if each.gate is not None]
    if len(gates) > 1:
        raise ValueError(f"expected one gate; got {len(gates)} in {list(formulas)}")
    if offset is not None and any(each.offset is not None for each in parts):
        raise ValueError(f"expected one offset; got {offset!r} and another in {list(formulas)}")
    lefts, rights = [each.targets for each in parts], [each.experts for each in parts]
    of_experts = [term for right in rights for term in right] if gate == "experts" else []
    of_gate = gates[0] if gates else Formula(list(dict.fromkeys([*Formula("1"), *of_experts])))
    offsets = [single("offset", each.offset or offset, data) for each in parts]
    of_trials = single("trials", trials, data)
    known = [each for each in (*offsets, of_trials) if each is not None]
    named = [name for name in (weights, groups) if name is not None]
    data = complete(data, [*lefts, *rights, of_gate, *known], named, missing, HINT)
    data = with_used_levels(data)
    targets, experts = (tuple(coding(each, data) for each in part) for part in (lefts, rights))
    for formula, spec in zip(formulas, experts, strict=True):
        if not spec.column_names:
            raise ValueError(
                f"expected experts with an intercept or columns; got none in {formula!r}: "
                "'y ~ 1' has the intercept"
            )
    known_classes = classes_of(targets, lefts, data, classes)
    gate_spec = coding(of_gate, data)
    codings = [coded("offset", each, data) for each in offsets]
    coded_trials = coded("trials", of_trials, data)
    specs = [*experts, gate_spec]
    specs += [spec for spec in (*codings, coded_trials) if spec is not None]
    check_terms(specs)
    names = [name for spec in specs for name in terms(spec)]
    design = Design(
        "; ".join(formulas),
        targets,
        experts,
        gate_spec,
        tuple(dict.fromkeys(names)) or (INTERCEPT,),
        tuple(codings),
        coded_trials,
        weights,
        groups,
        labels,
        classes=known_classes,
        missing=missing,
        unseen=unseen,
        shared=tuple(each for name in shared for each in shared_names(experts, name)),
    )
    check_equations(equation_names(design))
    for spec, of in [*((each, "experts") for each in experts), (gate_spec, "gate")]:
        check_rank(matrix(spec, data, "raise"), of)
    return design, data


def classes_of(
    targets: Sequence[ModelSpec], lefts: Sequence[Formula], data: pd.DataFrame, kind: str | None
) -> tuple[Any, ...] | None:
    """The classes of the target, see `designed`, None if it is a number.

    Raises:
        DataError: If a target is a text and should be a number, or has not two classes.
        ValueError: If there is not one target with classes.
    """
    texts = {name: each for spec in targets for name, each in levels_of(spec).items()}
    if kind == "any" or (kind == "two" and texts):
        found = tuple(sorted_values(data, lefts[0]))
        if kind == "two" and (len(found) != 2 or len(targets) > 1):
            raise DataError(f"expected two classes of one target; got {list(found)}")
        return found
    if kind == "two":
        values = {*np.unique(pd.concat([matrix(spec, data, "raise") for spec in targets], axis=1))}
        if values - {0, 1}:
            raise DataError(
                "expected 0 and 1, or two texts, in a target of family='bernoulli'; got "
                f"{sorted(map(float, values))[:5]}"
            )
    for name, levels in texts.items():
        raise DataError(
            f"expected numbers in the target {name!r}; got {levels[0]!r}: family='categorical' is "
            "for classes, and 'bernoulli' for two"
        )
    return None


def free(formulas: Sequence[str], data: pd.DataFrame, *named: str | None) -> list[str]:
    """The columns that ``.`` may stand for: no target, and none that an option names.

    Args:
        formulas: The formulas.
        data: The training rows.
        *named: Columns, expressions or None.
    """
    taken: set[str] = set()
    if not any("." in formula for formula in formulas):
        return []
    for formula in formulas:
        part = parsed(formula)
        used = [part.targets, *(single("offset", each, data) for each in (part.offset, *named))]
        taken.update(name for each in used if each is not None for name in variables(each, data))
    found = [name for name in data.columns if name not in taken]
    for name in found:
        expect_name(name)
    return found


def coded(name: str, formula: Formula | None, data: pd.DataFrame) -> ModelSpec | None:
    """The coding of one column, or None.

    Raises:
        ValueError: If the formula has more columns.
    """
    if formula is None:
        return None
    spec = coding(formula, data)
    if len(spec.column_names) != 1:
        raise ValueError(f"expected {name} of one column; got {list(spec.column_names)}")
    return spec


def single(name: str, text: str | None, data: pd.DataFrame) -> Formula | None:
    """The formula of a column, or of an expression; None for None.

    Raises:
        ValueError: If it is neither.
    """
    if text is None:
        return None
    is_column = text in data.columns
    if is_column:
        expect_name(text)
    try:
        found = Formula(f"0 + {f'`{text}`' if is_column else as_column(text)}")
    except (FormulaicError, SyntaxError):
        found = None
    if not isinstance(found, SimpleFormula):
        raise ValueError(f"expected {name} that is a column or an expression; got {text!r}")
    return found


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
    dependent = constant | (diagonal < LEAST)
    if dependent.any():
        name = columns.columns[int(dependent.argmax())]
        raise DataError(
            f"expected linearly independent columns of the {of}; got {name!r}, which is a "
            "combination of others, or nearly: leave it out, or center what it is made of"
        )


def check_choice(name: str, value: Any, choices: tuple[str, ...]) -> None:
    """Check that an option is one of its choices."""
    if value not in choices:
        raise ValueError(f"expected {name} in {choices}; got {value!r}")
