"""The text of formulas, and formulas of columns by name."""

from collections.abc import Sequence
from typing import Any

from formulaic import Formula
from formulaic.errors import FormulaicError


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
