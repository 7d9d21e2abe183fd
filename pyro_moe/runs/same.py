"""Whether a story made from its arguments is the fitted one, before a run says so."""

from typing import Any

import torch
from torch import nn

from pyro_moe.fitted import Fit
from pyro_moe.inference.context import reproducible, running
from pyro_moe.inference.traces import enumerated_traces

from .loading import with_predictors

ROWS = 16


def expect_same_story(fit: Fit, story_class: type[nn.Module], arguments: dict[str, Any]) -> None:
    """Check that arguments make the story of a fit: its parameters, and densities of its rows.

    Args:
        fit: The fit.
        story_class: The class of the story.
        arguments: The arguments, as they are read from a run.

    Raises:
        ValueError: If they do not.
    """
    name = story_class.__name__
    try:
        with reproducible(0):
            story: Any = story_class(**with_predictors(arguments))
    except Exception as error:
        raise ValueError(f"expected story_arguments of the fitted {name}: {error}") from error
    fitted, made = fit.story.state_dict(), story.state_dict()
    for each in fitted.keys() | made.keys():
        shapes = [tuple(state[each].shape) if each in state else None for state in (fitted, made)]
        if shapes[0] != shapes[1]:
            raise ValueError(
                f"expected story_arguments of the fitted {name}, with {each} of shape {shapes[0]}; "
                f"got arguments of one with {shapes[1]}"
            )
    like = next(iter(fitted.values()), torch.empty(0))
    types = [value.dtype for value in fitted.values() if value.is_floating_point()]
    story.to(device=like.device, dtype=types[0] if types else None)
    story.load_state_dict(fitted)
    if not same_densities(fit, story.eval()):
        raise ValueError(
            f"expected story_arguments of the fitted {name}; got those of one with the same "
            "parameters and other densities"
        )


def same_densities(fit: Fit, story: Any) -> bool:
    """Whether a story has the densities of the fitted one at the first rows."""
    rows = fit.example if fit.restored is not None else tuple(c[:ROWS] for c in fit.data)
    one, other = (_log_probs(fit, each.model, each.guide, rows) for each in (fit.story, story))
    return one.keys() == other.keys() and all(
        one[name].shape == other[name].shape
        and torch.allclose(one[name], other[name], rtol=1e-5, atol=1e-8, equal_nan=True)
        for name in one
    )


def _log_probs(fit: Fit, model: Any, guide: Any, rows: Any) -> dict[str, torch.Tensor]:
    store = {name: dict(values) for name, values in fit.programs.store.items()}
    with torch.no_grad(), reproducible(0), running(store):
        traces = enumerated_traces(model, guide, *rows)
    return {
        f"{place}.{name}": trace.nodes[name]["log_prob"]
        for place, trace in enumerate(traces)
        for name in (*trace.stochastic_nodes, *trace.observation_nodes)
    }
