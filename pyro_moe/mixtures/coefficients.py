"""The parameters of a mixture in the units and names of the data."""

from typing import Any

import pandas as pd
import torch

from .design import INTERCEPT, Design, has_intercept, terms

LEVELS = ["component", "equation", "term"]
GATE, ALL = "gate", "all"
Key = tuple[Any, str, str]


def named_parameters(story: Any, design: Design) -> tuple[pd.MultiIndex, torch.Tensor]:
    r"""All parameters in the units of the data, as a differentiable function of the story's.

    They are, component by component, the coefficients of each expert's linear predictor and its
    scales, and the gate's coefficients, relative to component 0:

    .. math:: \log \frac{g_k(x)}{g_0(x)} = \langle v_k, x \rangle + a_k

    Args:
        story: A story `models.ME`.
        design: Its design.

    Returns:
        Names (component, equation, term), and values, shape (P,).
    """
    width, experts = len(design.columns), story.experts
    predictors = experts.linear_predictor(width)
    scales = scales_of(experts, len(design.target_names))
    specs, equations = design.predictors, equation_names(design)
    if design.classes is not None:
        predictors = predictors[:, 1:] - predictors[:, :1]
        specs, scales = specs[:1] * len(equations), scales[:1] * len(equations)
    gate = story.gate.maps.in_units(width)[0].double()
    found: dict[Key, torch.Tensor] = {}
    for k, of_expert in enumerate(predictors):
        for m, (equation, spec) in enumerate(zip(equations, specs, strict=True)):
            for name, value in coefficients(design, spec, of_expert[m]):
                found[(k, equation, name)] = value
            if scales[m] is not None:
                found[(k, equation, "sigma")] = scales[m][k % len(scales[m])]
        if hasattr(experts, "log_df"):
            found[(k, equations[0], "df")] = 2.0 + experts.log_df[k, 0].double().exp()
        if k > 0:
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


def scales_of(experts: Any, number: int) -> list[Any]:
    """The scales of each target, shape (K,), or None for a family without scales."""
    if hasattr(experts, "parts"):
        return [scale for part in experts.parts for scale in scales_of(part, 1)]
    if not hasattr(experts, "scales"):
        return [None] * number
    scales = experts.scales()
    return list(scales.expand(len(scales), number).unbind(1))


def as_index(keys: list[Key]) -> pd.MultiIndex:
    """An index with levels in the order of the keys, so that pandas takes it for sorted."""
    levels = [list(dict.fromkeys(column)) for column in zip(*keys, strict=True)]
    codes = [[level.index(key[i]) for key in keys] for i, level in enumerate(levels)]
    return pd.MultiIndex(levels=levels, codes=codes, names=LEVELS)


def equation_names(design: Design) -> list[str]:
    """Names of the experts' equations: the targets, or the classes but the first."""
    if design.classes is not None:
        return [str(value) for value in design.classes[1:]]
    return list(design.target_names)


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
