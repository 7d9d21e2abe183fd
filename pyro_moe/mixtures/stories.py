"""The story of a design: its name or class with arguments, or a module as it is."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from pyro_moe.models import Predictor
from pyro_moe.stories import arguments_of, class_of, name_of, parameters

from .formulas import SIGMA, Design
from .formulas.coding import INTERCEPT, has_intercept, terms


@dataclass(frozen=True)
class Made:
    """A story, and from what it is made.

    Attributes:
        story: A module with model and guide.
        name: Its name, if it is a shipped one.
        arguments: The arguments of its constructor; None if it was given as a module.
    """

    story: Any
    name: str | None = None
    arguments: dict[str, Any] | None = None


def made_of(
    story: Any,
    options: Mapping[str, Any] | None,
    design: Design,
    *,
    num_components: Any,
    families: list[str],
) -> Made:
    """The story of a design.

    Args:
        story: The name of a story, its class, or a module.
        options: Further arguments of the constructor, or None.
        design: The design.
        num_components: K.
        families: A family of experts, or one for each target.

    Raises:
        ValueError: If the story cannot have what the design asks for.
    """
    if isinstance(story, nn.Module):
        if options:
            raise ValueError(f"expected no story_options with a module; got {sorted(options)}")
        expect_readable("a module", design, set())
        return Made(copy.deepcopy(story), name_of(type(story)))
    kind = class_of(story)
    name = name_of(kind)
    targets, joint = len(design.target_names), len(families) > 1 or len(design.experts) > 1
    families = families * targets if joint and len(families) == 1 else families
    has_classes = families == ["categorical"] and design.classes is not None
    width = len(design.classes or ()) if has_classes else targets
    dimensions: dict[str, Any] = {
        "x_dim": len(design.columns),
        "y_dim": width,
        "num_components": num_components,
        "experts": families if joint else families[0],
    }
    if has_classes:
        dimensions["num_classes"] = width
    arguments = arguments_of(kind, options, **dimensions, **read_by(design, joint, name))
    expect_readable(repr(name or kind.__name__), design, set(parameters(kind)))
    return Made(kind(**arguments), name, arguments)


def read_by(design: Design, joint: bool, name: str | None) -> dict[str, Any]:
    """What experts and gate read, as arguments of a constructor; nothing where it is all columns.

    The classical mixture has them in any case.
    """
    pairs = zip(design.predictors, design.target_offsets, strict=True)
    predictors = [predictor_of(design, spec, offset) for spec, offset in pairs]
    everything = list(range(len(design.columns)))
    found: dict[str, Any] = {}
    if name == "me" or any(each != Predictor(everything, shared=[]) for each in predictors):
        found["predictor"] = predictors if joint else predictors[0]
    columns = design.places(terms(design.gate))
    if name == "me" or columns != everything:
        found["gate_columns"] = columns
    if name == "me" or not has_intercept(design.gate):
        found["gate_intercept"] = has_intercept(design.gate)
    return found


def expect_readable(name: str, design: Design, known: set[str]) -> None:
    """Check that a story can read the columns that the design says.

    Raises:
        ValueError: If it cannot.
    """
    gate = set(terms(design.gate))
    if not gate and "gate_intercept" not in known:
        raise ValueError(
            f"expected columns that the gate of {name} reads, after '|' in the formula; got none"
        )
    for spec in design.known:
        if "gate_columns" not in known:
            option = "trials" if spec is design.trials else "offset"
            raise ValueError(
                f"expected no {option} with {name}, all of whose columns are input of a network or "
                f"have a model; got {spec.column_names[0]!r}: story='me' and 'deepmoe', which have "
                "no model of x, take it"
            )
    others = [column for column in design.columns if column not in gate]
    if "gate_columns" not in known and others:
        raise ValueError(
            f"expected a gate of {name} that reads all columns, which are input of a network or "
            f"have a model; got {others[0]!r} of the experts alone: name it after '|', too"
        )
    asked = read_by(design, False, None).keys() - known
    if asked == {"gate_columns"}:
        asked = set()  # the same columns in another order
    if "predictor" in asked:
        raise ValueError(
            f"expected experts of {name} with all columns, an intercept, and no offset, trials or "
            "shared terms; got others in the formula"
        )
    if asked:
        raise ValueError(f"expected an intercept of the gate of {name}; got '0 +' after '|'")


def predictor_of(design: Design, spec: Any, offset: Any) -> Predictor:
    """The linear predictors of one formula, of the codings of its columns and of its offset."""
    names = terms(spec)
    return Predictor(
        columns=design.places(names),
        intercept=has_intercept(spec),
        offset_column=place_of(design, offset),
        trials_column=place_of(design, design.trials),
        shared=design.places([name for name in names if name in design.shared]),
        shared_intercept=INTERCEPT in design.shared,
        shared_scale=SIGMA in design.shared,
    )


def place_of(design: Design, spec: Any) -> int | None:
    """The number of the column of x of a coding of one column, or None."""
    return None if spec is None else design.places(spec.column_names)[0]
