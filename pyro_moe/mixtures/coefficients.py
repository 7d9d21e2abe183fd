"""The parameters of a mixture in the units and names of the data."""

from typing import Any

import pandas as pd
import torch

from .design import INTERCEPT, Design, has_intercept

LEVELS = ["component", "equation", "term"]
GATE = "gate"


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
    keys: list[tuple[int, str, str]] = []
    values: list[torch.Tensor] = []
    width, experts = len(design.columns), story.experts
    predictors = experts.linear_predictor(width)
    if design.classes is not None:
        predictors = predictors[:, 1:] - predictors[:, :1]
    equations = equation_names(design)
    scales = experts.scales() if hasattr(experts, "scales") else None
    gate = story.gate.maps.in_units(width)[0].double()
    for k, of_expert in enumerate(predictors):
        for m, (equation, row) in enumerate(zip(equations, of_expert, strict=True)):
            names, kept = in_order(design.experts, design.expert_terms, row)
            keys += [(k, equation, name) for name in names]
            values += kept
            if scales is not None:
                keys.append((k, equation, "sigma"))
                values.append(scales[k, m if scales.shape[1] > 1 else 0])
        if hasattr(experts, "log_df"):
            keys.append((k, equations[0], "df"))
            values.append(2.0 + experts.log_df[k, 0].double().exp())
        if k > 0:
            names, kept = in_order(design.gate, design.gate_terms, gate[k] - gate[0])
            keys += [(k, GATE, name) for name in names]
            values += kept
    return as_index(keys), torch.stack(values)


def as_index(keys: list[tuple[int, str, str]]) -> pd.MultiIndex:
    """An index with levels in the order of the keys, so that pandas takes it for sorted."""
    levels = [list(dict.fromkeys(column)) for column in zip(*keys, strict=True)]
    codes = [[level.index(key[i]) for key in keys] for i, level in enumerate(levels)]
    return pd.MultiIndex(levels=levels, codes=codes, names=LEVELS)


def equation_names(design: Design) -> list[str]:
    """Names of the experts' equations: the targets, or the classes but the first."""
    if design.classes is not None:
        return [str(value) for value in design.classes[1:]]
    return list(design.target_names)


def in_order(
    spec: Any, terms: tuple[str, ...], row: torch.Tensor
) -> tuple[list[str], list[torch.Tensor]]:
    """Names and values of one equation, the intercept first if there is one."""
    values = list(row.unbind())
    intercept = [values[-1]] if has_intercept(spec) else []
    return [INTERCEPT] * len(intercept) + list(terms), intercept + values[:-1]


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
