"""The story of an estimator, by its name, its class or as it is, and its fit."""

import copy
from typing import Any

import numpy as np
import torch
from torch import nn

from pyro_moe.fitted import Fit
from pyro_moe.fitting import fit
from pyro_moe.rows import Rows
from pyro_moe.stories import arguments_of, class_of


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
    made = class_of(story)
    return made(**arguments_of(made, options, **dimensions)).to(dtype)


def fitted(story: Any, rows: Rows, weights: np.ndarray | None, options: dict[str, Any]) -> Fit:
    """The fit of a story to rows with weights.

    Args:
        story: A module with model and guide, which is copied.
        rows: N rows.
        weights: Weights, shape (N,), or None.
        options: Arguments of `fit`.
    """
    return fit(story.model, story.guide, rows, weights=weights, **options)
