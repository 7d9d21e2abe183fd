"""What stories of x and y share: experts, and how they learn from responsibilities."""

from collections.abc import Sequence
from typing import Any

import pyro.distributions as dist
import torch
from torch import nn

from .parts.experts import CONTEXTS, adapt_experts, experts_of
from .parts.targets import log_likelihoods


class WithExperts(nn.Module):
    r"""The experts of a story, which see x or the latent mean of z.

    .. math:: y \mid x, c = k \sim p_k(y \mid u), \quad u = x \text{ or } E_q[z \mid x]

    A mixin for stories of x: it adds to a story with ``units``, ``encoder`` and ``adapt`` what
    `inference.protocols` says a story of y may offer.
    """

    experts: Any
    context: str = "x"

    def take_experts(
        self, experts: str | nn.Module | Sequence[nn.Module], context: str, y_dim: int
    ) -> None:
        """Make the experts, by the name of their family or as given.

        Raises:
            ValueError: If ``context`` or ``experts`` is none of the choices.
        """
        if context not in CONTEXTS:
            raise ValueError(f"expected context in {CONTEXTS}; got {context!r}")
        story: Any = self
        self.context, story.y_dim = context, y_dim
        width, units = (story.x_dim, story.units) if context == "x" else (story.z_dim, None)
        self.experts = experts_of(experts, width, story.num_components, y_dim, units=units)

    def adapt(self, x: torch.Tensor, y: torch.Tensor | None = None) -> None:
        """Take the units of the rows x, shape (N, D), and y, shape (N,) or (N, M)."""
        super().adapt(x)  # type: ignore[misc]
        adapt_experts(self.experts, x, y)

    def expert_distributions(self, x: torch.Tensor) -> dist.Distribution:
        """The K distributions of y given x, shape (N, D)."""
        story: Any = self
        return self.experts(x if self.context == "x" else story.encoder(x).mean)

    def target_log_likelihoods(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Log p_k(y|x) of each row under each expert, shape (N, K); zero where y is missing."""
        return log_likelihoods(self.expert_distributions(x), y)

    def m_step(
        self,
        responsibilities: torch.Tensor,
        points: torch.Tensor,
        x: torch.Tensor,
        y: torch.Tensor | None = None,
    ) -> None:
        """The likeliest mixture of ``points`` and experts given responsibilities (N, K)."""
        story: Any = self
        story.prior.maximize(points, responsibilities)
        if y is not None:
            self.experts.maximize(x if self.context == "x" else points, y, responsibilities)
