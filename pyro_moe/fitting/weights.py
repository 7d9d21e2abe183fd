r"""Weights of rows, in any story.

.. math:: \max_\theta \sum_n w_n \log p_\theta(d_n) + \log p(\theta)

A weighted story takes the weights as its last column. Its sites in the plate are scaled by them,
and its M-step multiplies responsibilities by them. Units and the prior count each row once.
"""

import copy
import inspect
from collections.abc import Callable
from dataclasses import replace
from functools import wraps
from typing import Any

import torch

from pyro_moe.fitted import Fit
from pyro_moe.inference.handlers import RowWeights
from pyro_moe.inference.programs import Programs
from pyro_moe.inference.protocols import MixturePart


def weighted(story: Any) -> Any:
    """A copy of a story that takes weights, shape (N,), as the last column of its data.

    Args:
        story: A module with model and guide.

    Example:
        >>> from pyro_moe import fit, models
        >>> story = weighted(models.GMM(x_dim=1, num_components=1))
        >>> x, weights = torch.tensor([[0.0], [4.0]]), torch.tensor([3.0, 1.0])
        >>> fitted = fit(story.model, story.guide, (x, weights), prior="none", progress=False)
        >>> unweighted(fitted).story.mixture.normals.mean.tolist()
        [[1.0]]
    """
    kind = type(story)
    methods = {name: _scaled(getattr(kind, name)) for name in ("model", "guide")}
    methods |= {"m_step": _m_step(kind)}
    if hasattr(kind, "adapt"):
        methods["adapt"] = _without_weights(kind.adapt)
    if hasattr(kind, "shallow"):
        methods["shallow"] = lambda self: weighted(kind.shallow(self))
    copied = copy.deepcopy(story)
    copied.__class__ = type(kind.__name__, (kind,), methods)
    return copied


def unweighted(fit: Fit) -> Fit:
    """The fit of a weighted story as one of the story itself, without the column of weights.

    It cannot be resumed.
    """
    story = fit.story
    story.__class__ = type(story).__base__
    programs = Programs(story.model, story.guide, fit.programs.store)
    return replace(fit, programs=programs, data=fit.data[:-1], run=None)


def _scaled(program: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(program)
    def run(self: Any, *columns: torch.Tensor | None) -> Any:
        with RowWeights(columns[-1]):
            return program(self, *columns[:-1])

    del run.__wrapped__  # which has one argument less
    return run


def _without_weights(method: Callable[..., Any]) -> Callable[..., Any]:
    number = len(inspect.signature(method).parameters)  # of self and of the columns that it takes
    return lambda self, *columns: method(self, *columns[: number - 1])


def _m_step(kind: type) -> Callable[..., None]:
    def m_step(self: Any, responsibilities: torch.Tensor, points: torch.Tensor, *data: Any) -> None:
        *columns, weights = data
        shares = responsibilities * weights.unsqueeze(-1)
        if hasattr(kind, "m_step"):
            kind.m_step(self, shares, points, *columns)
            return
        for part in self.modules():
            if isinstance(part, MixturePart):
                part.maximize(points, shares)

    return m_step
