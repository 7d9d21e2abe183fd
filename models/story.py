"""Experts and M-step of stories that model both x and y."""

import copy
from collections.abc import Sequence
from typing import Any

import pyro.distributions as dist
import torch
from torch import nn

from .moe import ME
from .parts.experts import ALL_COLUMNS, CONTEXTS, Predictor, adapt_experts, experts_of
from .parts.targets import log_likelihoods


class WithExperts(nn.Module):
    r"""A mixin that adds experts of y to a story of x.

    .. math:: y \mid x, c = k \sim p_k(y \mid u), \quad u = x \text{ or } u = E_q[z \mid x]

    The story must have ``units``, ``encoder``, ``prior`` and ``adapt``. The mixin implements the
    protocols ``Adaptive``, ``MStep`` and ``TargetLikelihoods`` of `inference.protocols`.

    Attributes:
        experts: The module of experts.
        context: What the experts are a function of: ``"x"``, or ``"z"`` for E[z|x].
    """

    experts: Any
    family: Any
    context: str = "x"
    predictor: Predictor | Sequence[Predictor] = ALL_COLUMNS

    def take_experts(
        self,
        experts: str | nn.Module | Sequence[nn.Module] | Sequence[str],
        context: str,
        y_dim: int,
        predictor: Predictor | Sequence[Predictor] = ALL_COLUMNS,
    ) -> None:
        """Set the experts.

        Args:
            experts: The name of a family of affine experts, or modules, see `experts_of`.
            context: ``"x"`` or ``"z"``.
            y_dim: M, columns of y or number of classes.
            predictor: What the linear predictors of experts of x are made of, see `Predictor`.

        Raises:
            ValueError: If ``context`` or ``experts`` is none of the choices, or if experts of z
                have a predictor.
        """
        if context not in CONTEXTS:
            raise ValueError(f"expected context in {CONTEXTS}; got {context!r}")
        if context == "z" and predictor != ALL_COLUMNS:
            raise ValueError("expected context='x' for experts with columns; got 'z'")
        story: Any = self
        self.context, story.y_dim, self.family = context, y_dim, experts
        self.predictor = predictor
        width, units = (story.x_dim, story.units) if context == "x" else (story.z_dim, None)
        self.experts = experts_of(
            experts, width, story.num_components, y_dim, units=units, predictor=predictor
        )

    def shallow(self) -> ME:
        """A mixture of experts of the same family that are functions of x, with a softmax gate."""
        story: Any = self
        family = copy.deepcopy(self.family) if self.context == "x" else "normal"
        common_scale = len(story.units.scale) < story.x_dim
        options: Any = {"experts": family, "common_scale": common_scale}
        options["predictor"] = self.predictor
        return ME(story.x_dim, story.y_dim, story.num_components, **options)

    def adapt(self, x: torch.Tensor, y: torch.Tensor | None = None) -> None:
        """Set the units from training rows x, shape (N, D), and y, shape (N,) or (N, M)."""
        super().adapt(x)  # type: ignore[misc]
        adapt_experts(self.experts, x, y)

    @property
    def missing_features(self) -> bool:
        """Whether x may lack entries, as it may if experts are functions of E[z|x]."""
        return self.context == "z"

    def expert_distributions(self, x: torch.Tensor) -> dist.Distribution:
        """The experts' distributions of y given x, shape (N, D), batch shape (N, K)."""
        story: Any = self
        return self.experts(x if self.context == "x" else story.encoder(x).mean)

    def target_log_likelihoods(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Log p_k(y|x), shape (N, K); zero in rows where y is missing."""
        return log_likelihoods(self.expert_distributions(x), y)

    def m_step(
        self,
        responsibilities: torch.Tensor,
        points: torch.Tensor,
        x: torch.Tensor,
        y: torch.Tensor | None = None,
    ) -> None:
        r"""Update the mixture over the codes and the experts by the M-step.

        .. math:: \max \sum_{nk} r_{nk} [\log p(z_n, c_n = k) + \log p_k(y_n \mid u_n)]

        Args:
            responsibilities: r, shape (N, K).
            points: The codes z_n = E[z|x_n], shape (N, L).
            x: Rows, shape (N, D).
            y: Targets, shape (N,) or (N, M), or None.
        """
        story: Any = self
        story.prior.maximize(points, responsibilities)
        if y is not None:
            self.experts.maximize(x if self.context == "x" else points, y, responsibilities)
