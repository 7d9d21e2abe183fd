r"""What `fit`, EM and evaluation may ask of a story, and of its parts, beyond model and guide.

All of it is optional: a story of two plain functions gets every tool. A story, or a part of it,
that has one of these methods gets what the method's protocol says. None has to be inherited: an
``nn.Module`` with a method of that name will do.

Notation: N rows, K components, x of shape (N, D), y of shape (N,) or (N, M), responsibilities
r of shape (N, K) whose rows sum to one.
"""

from typing import Any, Protocol, runtime_checkable

import torch


@runtime_checkable
class HasStart(Protocol):
    """Where training starts unless `fit` is told: ``"random"``, ``"autoencoder"`` or another."""

    start: str


@runtime_checkable
class HasWidth(Protocol):
    """The number of columns of x, D: other data is refused before any work is done."""

    x_dim: int


@runtime_checkable
class Adaptive(Protocol):
    r"""Takes the units of the data before training.

    .. math:: u = (x - m) / s

    With it, parameters live in standard units, and one learning rate does for all data.
    """

    def adapt(self, x: torch.Tensor, y: torch.Tensor | None = None) -> None:
        """Set m and s from the training rows."""


@runtime_checkable
class Resettable(Protocol):
    """Draws its parameters anew, so that restarts differ; modules of torch do already."""

    def reset_parameters(self) -> None:
        """Draw the parameters from torch's generator."""


@runtime_checkable
class MStep(Protocol):
    r"""A story whose parts take EM's M-step.

    .. math:: \theta \leftarrow \arg\max_\theta \sum_{nk} r_{nk} \log p_\theta(x_n, y_n, c_n = k)

    With it, ``loss="em"`` works, and a clustering becomes a start for every part.
    """

    def m_step(self, responsibilities: torch.Tensor, points: torch.Tensor, *data: Any) -> None:
        """Set the parameters, given r, what mixtures are over (x or codes), and the columns."""


@runtime_checkable
class MixturePart(Protocol):
    r"""A mixture over points, with its own M-step, in a story that has no ``m_step``.

    .. math:: \theta \leftarrow \arg\max_\theta \sum_{nk} r_{nk} \log p_\theta(u_n, c_n = k)
    """

    def responsibilities(self, points: torch.Tensor) -> Any:
        """The distribution of c given points u, shape (N, L)."""

    def maximize(self, points: torch.Tensor, responsibilities: torch.Tensor) -> None:
        """Set the parameters, given points and r."""


@runtime_checkable
class Maximizable(Protocol):
    """A part whose parameters an M-step sets: a mixture, a gate, experts.

    EM refuses a story with a parameter that belongs to no such part.
    """

    def maximize(self, *arguments: Any) -> None:
        """Set the parameters, given data and r."""


@runtime_checkable
class TargetLikelihoods(Protocol):
    r"""How likely each expert makes the targets.

    .. math:: \log p_k(y_n \mid x_n)

    With it, targets correct the clustering of x that training starts from.
    """

    def target_log_likelihoods(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Shape (N, K); zero where y is missing."""


@runtime_checkable
class EvaluatedOnce(Protocol):
    """A part that is a function of one tensor, its parameters and its buffers alone.

    Where ``evaluated_once`` is true, a guide and a model that call it with the same tensor get
    one evaluation, with one and the same noise of dropout.
    """

    evaluated_once: bool


@runtime_checkable
class Differentiable(Protocol):
    """An ELBO whose loss can be had as one differentiable tensor."""

    def differentiable_loss(self, model: Any, guide: Any, *arguments: Any) -> torch.Tensor:
        """The negative objective, summed over rows."""


def temperatures(story: torch.nn.Module) -> dict[str, torch.Tensor]:
    r"""A story's buffers ``temperature`` (of q(c)) and ``prior_temperature`` (of p(c)), if any.

    Training anneals them where it is asked to relax ``c``; a story without them is relaxed by
    an effect handler.

    Example:
        >>> temperatures(torch.nn.Linear(1, 1))
        {}
    """
    own = dict(story.named_buffers(recurse=False))
    return {name: own[name] for name in ("temperature", "prior_temperature") if name in own}
