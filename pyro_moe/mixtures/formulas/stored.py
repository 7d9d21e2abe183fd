"""A design as data that JSON supports, and back: formulas, levels of factors, constants.

Nothing of formulaic is pickled. A coding is the factors of its terms, the levels of factors, and
the constants of transformations, such as means.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from formulaic import ModelSpec, SimpleFormula
from formulaic.materializers.base import EncodedTermStructure
from formulaic.materializers.types import EvaluatedFactor, ScopedFactor, ScopedTerm
from formulaic.parser.types import Factor, Term

from pyro_moe.inference.errors import DataError

from .design import Design
from .known import unknown_part

PLAIN = ("formula", "weights", "groups", "labels", "missing", "unseen")
TUPLES = ("columns", "shared", "label_order")


def as_data(design: Design) -> dict[str, Any]:
    """A design as values that JSON supports.

    Raises:
        DataError: If a level of a factor is neither text nor a number, or a transformation has a
            state that is not of numbers.
    """
    found: dict[str, Any] = {name: getattr(design, name) for name in PLAIN}
    found["trials"] = None if design.trials is None else coding_as_data(design.trials)
    found["offsets"] = [None if each is None else coding_as_data(each) for each in design.offsets]
    found["gate"] = coding_as_data(design.gate)
    for name in ("targets", "experts"):
        found[name] = [coding_as_data(spec) for spec in getattr(design, name)]
    classes = design.classes
    found["classes"] = None if classes is None else levels_as_data("the target", classes)
    return found | {name: list(getattr(design, name)) for name in TUPLES}


def from_data(data: Mapping[str, Any]) -> Design:
    """The design of what `as_data` returned.

    Raises:
        ValueError: If it is not what `as_data` returns.
    """
    given: dict[str, Any] = {name: data[name] for name in PLAIN}
    given["trials"] = None if data["trials"] is None else coding_from_data(data["trials"])
    given["offsets"] = tuple(
        None if each is None else coding_from_data(each) for each in data["offsets"]
    )
    given["gate"] = coding_from_data(data["gate"])
    for name in ("targets", "experts"):
        given[name] = tuple(coding_from_data(each) for each in data[name])
    classes = data["classes"]
    given["classes"] = None if classes is None else tuple(classes)
    given |= {name: tuple(data[name]) for name in TUPLES}
    return Design(**given)


def program_in(data: Mapping[str, Any]) -> str | None:
    """The first part of a stored design that would be executed as a program, None if none would.

    Columns, numbers and known functions are not executed as programs.
    """
    codings = [*data["targets"], *data["experts"], data["gate"]]
    codings += [each for each in (*data["offsets"], data["trials"]) if each is not None]
    for expression, method in (factor for coding in codings for factor in coding["factors"]):
        part = unknown_part(expression) if method == Factor.EvalMethod.PYTHON.value else None
        if part is not None:
            return part
    return None


def coding_as_data(spec: ModelSpec) -> dict[str, Any]:
    """A coding as values that JSON supports."""
    factors = list(dict.fromkeys(factor for term in spec.formula for factor in term.factors))
    numbers = {factor.expr: place for place, factor in enumerate(factors)}
    structure = [
        {
            "factors": [numbers[factor.expr] for factor in part.term.factors],
            "columns": list(part.columns),
            "scoped": [
                [[numbers[each.factor.expr], each.reduced] for each in scoped.factors]
                for scoped in part.scoped_terms
            ],
            "scales": [float(scoped.scale) for scoped in part.scoped_terms],
        }
        for part in spec.structure
    ]
    states = spec.encoder_state
    return {
        "factors": [[factor.expr, factor.eval_method.value] for factor in factors],
        "terms": structure,
        "kinds": {name: kind.value for name, (kind, _) in states.items()},
        "levels": {
            name: levels_as_data(name, state["categories"])
            for name, (_, state) in states.items()
            if "categories" in state
        },
        "constants": {
            name: constant_as_data(name, state) for name, state in spec.transform_state.items()
        },
    }


def coding_from_data(data: Mapping[str, Any]) -> ModelSpec:
    """The coding of what `coding_as_data` returned."""
    factors = [Factor(expression, eval_method=method) for expression, method in data["factors"]]
    terms = [Term([factors[i] for i in part["factors"]]) for part in data["terms"]]
    structure = [
        EncodedTermStructure(
            term,
            [
                ScopedTerm([scoped_factor(factors[i], reduced) for i, reduced in scoped], scale)
                for scoped, scale in zip(part["scoped"], part["scales"], strict=True)
            ],
            list(part["columns"]),
        )
        for term, part in zip(terms, data["terms"], strict=True)
    ]
    states = {
        name: (Factor.Kind(kind), {"categories": levels} if levels is not None else {})
        for name, kind in data["kinds"].items()
        for levels in [data["levels"].get(name)]
    }
    return ModelSpec(
        SimpleFormula(terms, _ordering="none"),
        materializer="pandas",
        na_action="ignore",
        output="pandas",
        structure=structure,
        transform_state={
            name: constant_from_data(state) for name, state in data["constants"].items()
        },
        encoder_state=states,
    )


def scoped_factor(factor: Factor, reduced: bool) -> ScopedFactor:
    """A factor of a column, which lacks the column of its first level if it is reduced."""
    return ScopedFactor(EvaluatedFactor(factor, values=None), reduced=reduced)


def levels_as_data(name: str, levels: Iterable[Any]) -> list[Any]:
    """The levels of a factor as texts and numbers of Python.

    Raises:
        DataError: If one is neither.
    """
    found = [level.item() if isinstance(level, np.generic) else level for level in levels]
    for level in found:
        if not isinstance(level, str | bool | int | float):
            raise DataError(
                f"expected levels of {name!r} that are texts or numbers, to be stored; "
                f"got {type(level).__name__} {level}"
            )
    return found


def constant_as_data(name: str, value: Any) -> Any:
    """The constants of a transformation, with arrays and mappings as pairs of a kind and values.

    Raises:
        DataError: If one is none of these, a number or a text.
    """
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, str | bool | int | float):
        return value
    if isinstance(value, np.ndarray) and value.dtype.kind in "biuf":
        return {"array": value.tolist()}
    if isinstance(value, list | tuple):
        return {"list": [constant_as_data(name, each) for each in value]}
    if isinstance(value, Mapping):
        pairs = [(key, constant_as_data(name, each)) for key, each in value.items()]
        return {"mapping": [[constant_as_data(name, key), each] for key, each in pairs]}
    raise DataError(
        f"expected constants of {name!r} that are numbers, to be stored; got {type(value).__name__}"
    )


def constant_from_data(data: Any) -> Any:
    """The constants of what `constant_as_data` returned."""
    if not isinstance(data, Mapping):
        return data
    ((kind, values),) = data.items()
    if kind == "array":
        return np.array(values)
    if kind == "list":
        return [constant_from_data(each) for each in values]
    if kind == "mapping":
        return {key: constant_from_data(each) for key, each in values}
    raise ValueError(f"expected an array, a list or a mapping; got {kind!r}")
