"""Names of columns that are also names of parameters."""

from collections.abc import Sequence
from typing import Any

from pyro_moe.inference.errors import DataError

from .coding import INTERCEPT

GATE, SIGMA, DF, CORRELATION = "gate", "sigma", "df", "corr("


def is_of_parameter(name: str) -> bool:
    """Whether a term of an equation has this name without a column."""
    return name in (INTERCEPT, SIGMA, DF) or name.startswith(CORRELATION)


def quoted(name: str) -> str:
    """A name of a column, in backticks if a parameter has it.

    Example:
        >>> quoted("dose"), quoted("sigma")
        ('dose', '`sigma`')
    """
    return f"`{name}`" if is_of_parameter(name) or name == GATE else name


def check_terms(specs: Sequence[Any]) -> None:
    """Check that each column of codings has a name of its own.

    Raises:
        DataError: If two terms have a column of the same name, or one has that of a parameter.
    """
    found: dict[str, Any] = {}
    for structure in (each for spec in specs for each in spec.structure):
        factors = sorted(str(factor.expr) for factor in structure.term.factors)
        if factors == ["1"]:
            continue
        for place, column in enumerate(structure.columns):
            if is_of_parameter(column):
                raise DataError(
                    f"expected names of columns that are not those of parameters, {INTERCEPT!r}, "
                    f"{SIGMA!r}, {DF!r} and 'corr(…)'; got {column!r}: rename it"
                )
            if found.setdefault(column, (factors, place)) != (factors, place):
                raise DataError(
                    f"expected terms with columns of distinct names; got {column!r} of two: rename "
                    "one"
                )


def equation_names(design: Any) -> list[str]:
    """Names of the experts' equations: the targets, or the classes but the first."""
    if design.classes is not None:
        return [str(value) for value in design.classes[1:]]
    return list(design.target_names)


def check_equations(names: Sequence[str]) -> None:
    """Check that each target, or each class, has a name of its own.

    Raises:
        DataError: If two have the same, or one has that of the gate.
    """
    for place, name in enumerate(names):
        if name == GATE:
            raise DataError(
                f"expected names of targets and classes other than {GATE!r}; got it: rename it"
            )
        if name in names[:place]:
            raise DataError(
                f"expected targets and classes with distinct names; got {name!r} twice: rename one"
            )
