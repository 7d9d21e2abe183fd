"""The text of formulas, and formulas of columns by name."""

import ast
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from formulaic import Formula
from formulaic.errors import FormulaicError
from formulaic.parser import DefaultFormulaParser
from formulaic.parser.types import Term, Token

from pyro_moe.inference.errors import DataError

from .known import ARITHMETIC

AVAILABLE = "__formulaic_variables_available__"


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


@dataclass(frozen=True)
class Parts:
    """The parts of one formula.

    Attributes:
        targets: The left side.
        experts: What the experts read.
        gate: What the gate reads, or None.
        offset: What is added to the linear predictors, ``offset(…)`` of the experts, or None.
    """

    targets: Formula
    experts: Formula
    gate: Formula | None
    offset: str | None


def parsed(formula: str, columns: Sequence[str] = ()) -> Parts:
    """The parts of a formula.

    Args:
        formula: ``"y ~ experts | gate"``.
        columns: What ``.`` stands for, without the targets.

    Raises:
        ValueError: If it is no such formula.

    Example:
        >>> parsed("y ~ . + offset(log(time)) | g", ["a", "b"])
        Parts(targets=y, experts=1 + a + b, gate=1 + g, offset='log(time)')
    """
    for name in re.findall(r"`([^`]*)`", formula):
        expect_name(name)
    try:
        found = Formula(formula, _context={AVAILABLE: list(columns)})
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
    experts, *gate = parts
    expect_targets(re.sub("`[^`]*`", "_", formula).split("~")[0])
    for term in left:
        if called("cbind", term):
            raise ValueError(
                "expected targets joined by '+', 'a + b ~ x'; or successes as the target, with "
                f"family='binomial' and their trials=; got {term}"
            )
    if any(called("offset", term) for part in gate for term in part):
        raise ValueError(f"expected an offset of the experts, before '|'; got {formula!r}")
    offsets = [term for term in experts if called("offset", term)]
    if len(offsets) > 1 or any(len(term.factors) > 1 for term in offsets):
        raise ValueError(f"expected one term offset(…) by itself; got {formula!r}")
    kept = Formula([term for term in experts if term not in offsets])
    text = str(offsets[0]).removeprefix("offset(").removesuffix(")") if offsets else None
    return Parts(left, kept if offsets else experts, gate[0] if gate else None, text)


def expect_name(name: Any) -> None:
    """Check that a formula can have the name of a column.

    Raises:
        DataError: If it is no text, or a number, which in a formula is itself.
    """
    if not isinstance(name, str) or re.fullmatch(r"[\d.]+", name) or "`" in name:
        raise DataError(
            f"expected names of columns that are texts and no numbers; got {name!r}: rename it, as "
            "by data.rename(columns=…)"
        )


def expect_targets(text: str) -> None:
    """Check that the left side of a formula is targets joined by ``+``.

    Raises:
        ValueError: If it has another operator. What R computes there is an interaction here.
    """
    tokens = list(DefaultFormulaParser(include_intercept=False).get_tokens(text))
    others = [each.token for each in tokens if each.kind is Token.Kind.OPERATOR]
    if set(others) - {"+"}:
        raise ValueError(
            f"expected targets joined by '+', and I(…) around what is computed of columns; got "
            f"{text.strip()!r}"
        )


def as_column(text: str) -> str:
    """The formula of one column that is a column, or an expression of columns.

    In an expression operators are those of arithmetic, and not of formulas.

    Raises:
        SyntaxError: If it is no expression.

    Example:
        >>> as_column("log(time)"), as_column("log(time) - log(`the base`)")
        ('log(time)', 'I(log(time) - log(`the base`))')
    """
    body = ast.parse(re.sub("`[^`]*`", "_", text).strip(), mode="eval").body
    if isinstance(body, ast.Name | ast.Call):
        return text
    nodes = list(ast.walk(body))
    strange = [n for n in nodes if isinstance(n, ast.BinOp) and not isinstance(n.op, ARITHMETIC)]
    if strange or not any(isinstance(node, ast.Name) for node in nodes):
        raise SyntaxError(f"expected an expression of columns; got {text!r}")
    return f"I({text})"


def called(function: str, term: Term) -> bool:
    """Whether a factor of a term is a call of the function."""
    return any(str(factor.expr).startswith(f"{function}(") for factor in term.factors)


def formula_of(targets: Any, experts: Sequence[str], gate: Sequence[str]) -> str:
    """The formula of columns by name.

    Example:
        >>> formula_of("y", ["age", "dose 2"], [])
        '`y` ~ `age` + `dose 2` | 1'
    """
    names = [targets] if isinstance(targets, str) else list(targets)
    sides = (names, experts, gate)
    for name in (name for side in sides for name in side):
        expect_name(name)
    left, right, last = (" + ".join(f"`{name}`" for name in side) or "1" for side in sides)
    return f"{left} ~ {right} | {last}"
