"""The story of an estimator, by its name, its class or as it is, and its fit."""

import copy
import inspect
from typing import Any

import numpy as np
import torch
from torch import nn

from pyro_moe.fitted import Fit
from pyro_moe.fitting import fit
from pyro_moe.rows import Rows
from pyro_moe.runs.shipped import parameters, shipped

TARGET_ARGUMENTS = {"y_dim", "num_classes"}
Z_DIM = 10  # at most, unless the story's options say otherwise


def story_of(
    story: Any, options: dict[str, Any] | None, *, dtype: torch.dtype, **dimensions: Any
) -> Any:
    """The story that an estimator fits.

    Args:
        story: The name of a shipped story, the class of a story, or a module, which is copied.
        options: Further arguments of the constructor, or None.
        dtype: The type of its parameters.
        **dimensions: Arguments of the constructor that are given by the data and the estimator.
            Those that it does not have are left out.

    Raises:
        ValueError: If the story is none of these, has a target and none is given or the reverse,
            does not have an option, or needs another one.
    """
    if isinstance(story, nn.Module):
        if options:
            raise ValueError(f"expected no story_options with a module; got {sorted(options)}")
        return copy.deepcopy(story).to(dtype)
    made = shipped(story) if isinstance(story, str) else story
    if not (inspect.isclass(made) and issubclass(made, nn.Module)):
        raise ValueError(
            f"expected the name of a story, its class, or a module with model and guide; "
            f"got {story!r}"
        )
    known = parameters(made)
    unknown = sorted((options or {}).keys() - known.keys())
    if unknown:
        raise ValueError(
            f"expected story_options of {made.__name__}, {', '.join(known)}; got {unknown[0]!r}"
        )
    wanted = TARGET_ARGUMENTS & dimensions.keys()
    if bool(wanted) != bool(TARGET_ARGUMENTS & known.keys()):
        kind = "with a target y, for predictions" if wanted else "of x alone, for clusters"
        raise ValueError(f"expected a story {kind}; got {made.__name__}")
    given = {"z_dim": min(dimensions["x_dim"], Z_DIM)} | dimensions
    given = {name: value for name, value in given.items() if name in known} | (options or {})
    for name, parameter in known.items():
        if name not in given and parameter.default is parameter.empty:
            raise ValueError(f"expected story_options with {name!r}, for {made.__name__}; got none")
    return made(**given).to(dtype)


def fitted(story: Any, rows: Rows, weights: np.ndarray | None, options: dict[str, Any]) -> Fit:
    """The fit of a story to rows with weights.

    Args:
        story: A module with model and guide, which is copied.
        rows: N rows.
        weights: Weights, shape (N,), or None.
        options: Arguments of `fit`.
    """
    return fit(story.model, story.guide, rows, weights=weights, **options)
