"""The parameters of a mixture in the units and names of the data."""

from typing import Any

import pandas as pd
import torch

from pyro_moe.models import StudentTExperts

from .formulas.coding import INTERCEPT, has_intercept, terms
from .formulas.design import Design
from .formulas.names import CORRELATION, DF, GATE, SIGMA, equation_names

LEVELS = ["component", "equation", "term"]
ALL = "all"
MANY = 1e3  # degrees of freedom
Key = tuple[Any, str, str]


def named_parameters(story: Any, design: Design) -> tuple[pd.MultiIndex, torch.Tensor]:
    r"""All parameters in the units of the data, as a differentiable function of the story's.

    They are, component by component, the coefficients of each expert's linear predictor and its
    scales, and those of a softmax gate, relative to component 0:

    .. math:: \log \frac{g_k(x)}{g_0(x)} = \langle v_k, x \rangle + a_k

    Gates of other stories than `models.ME` have no coefficients.

    Args:
        story: A story.
        design: Its design.

    Returns:
        Names (component, equation, term), and values, shape (P,).

    Raises:
        ValueError: If the experts are not affine.
    """
    width, experts = len(design.columns), story.experts
    try:
        predictors = experts.linear_predictor(width)
    except (AttributeError, ValueError) as error:
        raise ValueError(
            f"expected affine experts, which have coefficients; got {type(experts).__name__} of "
            f"{type(story).__name__}"
        ) from error
    scales = scales_of(experts, list(design.target_names))
    specs, equations = design.predictors, equation_names(design)
    if design.classes is not None:
        if predictors.shape[1] > 1:  # of categorical experts; those of Bernoulli have one
            predictors = predictors[:, 1:] - predictors[:, :1]
        specs, scales = specs[:1] * len(equations), scales[:1] * len(equations)
    maps = getattr(getattr(story, "gate", None), "maps", None)
    gate = None if maps is None else maps.in_units(width)[0].double()
    found: dict[Key, torch.Tensor] = {}
    for k, of_expert in enumerate(predictors):
        for m, (equation, spec) in enumerate(zip(equations, specs, strict=True)):
            for name, value in coefficients(design, spec, of_expert[m]):
                found[(k, equation, name)] = value
            for name, scale in scales[m].items():
                found[(k, equation, name)] = scale[k % len(scale)]
        if gate is not None and k > 0:
            for name, value in coefficients(design, design.gate, gate[k] - gate[0]):
                found[(k, GATE, name)] = value
    found = with_shared(found, design.shared, equations)
    return as_index(list(found)), torch.stack(list(found.values()))


def coefficients(design: Design, spec: Any, row: torch.Tensor) -> list[tuple[str, torch.Tensor]]:
    """Names and values of one equation, the intercept first if there is one.

    Args:
        design: The design.
        spec: The coding of the equation's columns.
        row: Its slopes in all columns of x, and the intercept, shape (D + 1,).
    """
    first = [(INTERCEPT, row[-1])] if has_intercept(spec) else []
    return first + [(name, row[design.columns.index(name)]) for name in terms(spec)]


def with_shared(
    found: dict[Key, torch.Tensor], shared: tuple[str, ...], equations: list[str]
) -> dict[Key, torch.Tensor]:
    """The parameters with those that all experts share once, first, as of component ``"all"``."""
    common: dict[Key, torch.Tensor] = {}
    others: dict[Key, torch.Tensor] = {}
    for (k, equation, term), value in found.items():
        if equation != GATE and term in shared:
            common.setdefault((ALL, equation, term), value)
        else:
            others[(k, equation, term)] = value
    return common | others


def scales_of(experts: Any, targets: list[str]) -> list[dict[str, torch.Tensor]]:
    """The scales of each target by name, shape (K,) or (1,): deviations, and correlations."""
    if hasattr(experts, "parts"):
        pairs = zip(experts.parts, targets, strict=True)
        return [scales for part, name in pairs for scales in scales_of(part, [name])]
    found: list[dict[str, torch.Tensor]] = [{} for _ in targets]
    if getattr(experts, "covariance", None) == "full":
        covariances = experts.covariances().double()
        deviations = covariances.diagonal(dim1=-2, dim2=-1).sqrt()
        for m in range(len(targets)):
            found[m][SIGMA] = deviations[:, m]
            for j in range(m):
                product = deviations[:, m] * deviations[:, j]
                found[m][f"{CORRELATION}{targets[j]})"] = covariances[:, m, j] / product
    elif hasattr(experts, "scales"):
        for scales, scale in zip(found, experts.scales().unbind(1), strict=False):
            scales[SIGMA] = scale  # a single one of all targets is listed with the first
        if hasattr(experts, "degrees_of_freedom"):
            found[0][DF] = experts.degrees_of_freedom()[:, 0]
    return found


def at_limit(story: Any, design: Design) -> torch.Tensor:
    """Which parameters are at a limit, so that their likelihood has no maximum, shape (P,).

    These are scales at their lower limit, and degrees of freedom at theirs, or so many that the
    tails are normal.
    """
    index, values = named_parameters(story, design)
    low: dict[str, list[bool]] = {}
    parts = getattr(story.experts, "parts", [story.experts])
    names = iter(design.target_names)
    for part in parts:
        if hasattr(part, "floor"):
            flags = part.log_scale.detach().exp() < 0.01 * part.floor
            for column in flags.unbind(1):
                low[next(names, "")] = column.tolist()
        else:
            next(names, None)
    least_df = 1.002 * StudentTExperts.least_df
    found = []
    for (k, equation, term), value in zip(index, values.tolist(), strict=True):
        flags_of = low.get(equation, [False])
        scale = (
            term == SIGMA and equation != GATE and flags_of[0 if k == ALL else k % len(flags_of)]
        )
        found.append(scale or (equation != GATE and term == DF and not least_df < value < MANY))
    return torch.tensor(found)


def as_index(keys: list[Key]) -> pd.MultiIndex:
    """An index with levels in the order of the keys, so that pandas takes it for sorted."""
    levels = [list(dict.fromkeys(column)) for column in zip(*keys, strict=True)]
    codes = [[level.index(key[i]) for key in keys] for i, level in enumerate(levels)]
    return pd.MultiIndex(levels=levels, codes=codes, names=LEVELS)


def permute(story: Any, order: list[int]) -> None:
    """Put the components of a story in another order, in place.

    Args:
        story: A story `models.ME`.
        order: The present number of each new component.
    """
    with torch.no_grad():
        for name, value in story.named_parameters():
            dim = 1 if name.startswith("gate.") else 0
            if value.shape[dim] == len(order):
                chosen = torch.tensor(order, device=value.device)
                value.copy_(value.index_select(dim, chosen))
