r"""Optional methods and attributes of a story and its parts, beyond model and guide.

`fit` and all tools work without them, also with a model and a guide that are plain functions.
Each protocol says what a story gains by it. A protocol need not be inherited: any ``nn.Module``
with a method or attribute of this name conforms to it.

Notation: N rows, K components, x of shape (N, D), y of shape (N,) or (N, M). Responsibilities r
have shape (N, K), and each row sums to one. Points u, shape (N, L), are what a mixture over
components is fitted to: the codes E[z|x] if the guide has a site ``z``, and x otherwise.
"""

from typing import Any, Protocol, runtime_checkable

import torch


@runtime_checkable
class HasStart(Protocol):
    """A story with its own default of ``initialize`` in `fit`, such as ``"autoencoder"``."""

    start: str


@runtime_checkable
class HasWidth(Protocol):
    """A story with a fixed number of columns of x, D. `fit` rejects other data at once."""

    x_dim: int


@runtime_checkable
class Adaptive(Protocol):
    r"""A story that standardizes the data, by constants set from the training rows.

    .. math:: \tilde x = (x - m) / s

    Its parameters then are in standard units, and one learning rate suits all data sets.
    """

    def adapt(self, x: torch.Tensor, y: torch.Tensor | None = None) -> None:
        """Set m and s, of x and of y if it is given. Called before training."""


@runtime_checkable
class Resettable(Protocol):
    """A module with random initial parameters, so that restarts differ.

    The modules of torch conform to it already.
    """

    def reset_parameters(self) -> None:
        """Initialize the parameters, with random numbers from torch's global generator."""


@runtime_checkable
class MStep(Protocol):
    r"""A story with an M-step, that is, a maximizer of the expected complete-data likelihood.

    .. math:: \theta \leftarrow \arg\max_\theta
              \sum_{nk} r_{nk} \log p_\theta(u_n, y_n, c_n = k)

    The sum separates into one problem for each part: the prior of u and c, and each expert. A
    story of y given x has the conditional density given x, with a gate and experts. A step that
    increases the sum without maximizing it gives generalized EM.

    The M-step serves ``loss="em"`` and the initialization of all parts from a clustering.
    """

    def m_step(self, responsibilities: torch.Tensor, points: torch.Tensor, *data: Any) -> None:
        """Set the parameters in place.

        Args:
            responsibilities: r, shape (N, K).
            points: u, shape (N, L).
            data: The columns that are fitted: x, or x and y.

        A story whose rows may be in groups also takes ``sizes``, the number of rows that share
        the c of each row, shape (N,), by which what depends on c alone is divided.
        """


@runtime_checkable
class MixturePart(Protocol):
    r"""A mixture over points u with its own M-step.

    .. math:: \theta \leftarrow \arg\max_\theta \sum_{nk} r_{nk} \log p_\theta(u_n, c_n = k)

    If a story has no ``m_step``, every part of it that conforms to this protocol is updated.
    """

    def responsibilities(self, points: torch.Tensor) -> Any:
        """The distribution p(c|u) given points u, shape (N, L)."""

    def maximize(self, points: torch.Tensor, responsibilities: torch.Tensor) -> None:
        """Set the parameters in place, given points u and r."""


@runtime_checkable
class Maximizable(Protocol):
    """A part with an M-step of its own: a mixture, a gate, or experts.

    ``loss="em"`` raises an error if a learned parameter belongs to no such part.
    """

    def maximize(self, *arguments: Any) -> None:
        """Set the parameters in place, given data and r. The story's ``m_step`` calls it."""


@runtime_checkable
class HasShallow(Protocol):
    """A deep story with a shallow counterpart, by which the prior for few rows is chosen."""

    def shallow(self) -> Any:
        """A story of the same data with experts of the same family, which EM fits."""


@runtime_checkable
class Penalized(Protocol):
    r"""A part with the penalty λ/2 times its squared weights, see `inference.prior`.

    Attributes:
        ridge: λ.
        role: ``"gate"``, ``"experts"`` or ``"network"``.
    """

    ridge: float
    role: str

    def squared_weights(self) -> torch.Tensor:
        """The sum of squares of the weights w, a scalar."""


@runtime_checkable
class TakesIncomplete(Protocol):
    """A story whose rows x may lack entries, which then are NaN.

    The density of the site ``x`` is that of the observed entries, see `handlers.Incomplete`. What
    else depends on x asks `distributions.rows_are_incomplete`.

    Attributes:
        missing_features: Whether they may.
    """

    missing_features: bool


@runtime_checkable
class Completes(Protocol):
    """A story with an M-step from expected moments, where rows lack entries."""

    def completed(self, responsibilities: torch.Tensor, *data: torch.Tensor) -> tuple[Any, ...]:
        """Weights (R, K), and R rows without gaps that have the expected moments of N rows.

        Args:
            responsibilities: r, shape (N, K).
            data: x, or x and y, NaN where missing.
        """


@runtime_checkable
class TargetLikelihoods(Protocol):
    r"""A story that evaluates the log-likelihood of the targets under each expert.

    .. math:: \ell_{nk} = \log p_k(y_n \mid x_n)

    With it, the targets correct an initial clustering of x, see `initialize.corrected`.
    """

    def target_log_likelihoods(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """The log-likelihoods, shape (N, K); zero in rows where y is missing."""


@runtime_checkable
class Countable(Protocol):
    """A part that has fewer free parameters than numbers, such as a softmax gate."""

    def num_free_parameters(self) -> int:
        """Their number."""


@runtime_checkable
class HasJoint(Protocol):
    r"""A story of c alone that evaluates its joint density with each component.

    .. math:: \ell_{nk} = \log p_\theta(d_n, c_n = k)

    With it, EM need not run the model. It is used if it is written in the same class as the
    story's ``model``, see `programs.beside`, and both agree at the first parameters.
    """

    def log_joint(self, x: torch.Tensor, *others: torch.Tensor | None) -> torch.Tensor:
        """The log-densities, shape (N, K), of x, or of x and y; None for unknown targets."""


@runtime_checkable
class HasSideBySide(Protocol):
    """A story of which several copies take iterations of EM together.

    It is used together with `HasJoint`, if both and ``m_step`` are written in the same class as the
    story's ``model``. See `models.parts.side_by_side` for the story that it returns.
    """

    def side_by_side(self, others: Any) -> Any:
        """This story and S - 1 others as one, or None if their M-steps are not separate.

        It has a ``log_joint`` of shape (N, S, K), an ``m_step`` of responsibilities of this shape,
        ``penalties`` of shape (S,), and ``put``, which sets the parameters of one of the stories.
        """


@runtime_checkable
class Predictive(Protocol):
    r"""A story whose ``forward`` is the distribution of the targets, with c summed out.

    .. math:: p(y \mid x) = \sum_k g_k(x)\, p_k(y \mid x)

    With it, `predict` need not run the model. It is used if it is written in the same class as
    the story's ``model``, see `programs.beside`, and both agree on some rows.
    """

    def forward(self, x: torch.Tensor) -> Any:
        """The `Mixture` of the experts of each row x, shape (N, D)."""


@runtime_checkable
class EvaluatedOnce(Protocol):
    """A part whose output depends only on one tensor, its parameters and its buffers.

    If ``evaluated_once`` is true, it is evaluated once when guide and model call it with the same
    tensor. Both then have the same dropout noise.
    """

    evaluated_once: bool


@runtime_checkable
class Differentiable(Protocol):
    """An ELBO that returns its loss as a differentiable tensor."""

    def differentiable_loss(self, model: Any, guide: Any, *arguments: Any) -> torch.Tensor:
        """The negative objective, summed over rows, as a scalar tensor."""


def temperatures(story: torch.nn.Module) -> dict[str, torch.Tensor]:
    r"""A story's buffers ``temperature``, of q(c), and ``prior_temperature``, of p(c), if any.

    Training with a relaxed ``c`` anneals them. Without these buffers an effect handler sets the
    temperatures.

    Example:
        >>> temperatures(torch.nn.Linear(1, 1))
        {}
    """
    own = dict(story.named_buffers(recurse=False))
    return {name: own[name] for name in ("temperature", "prior_temperature") if name in own}
