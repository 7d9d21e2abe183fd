"""A mixture of experts gated by variational deep embedding (paper §5)."""

from collections.abc import Sequence
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import nn

from .parts.experts import CONTEXTS, adapt_experts, experts_of
from .parts.targets import choose, log_likelihoods, observe_target
from .vade import VaDE


class VaDEMoE(nn.Module):
    r"""VaDE for x, and an expert for y in each of its components.

    .. math:: c \sim \mathrm{Cat}(\pi), \quad z \mid c = k \sim N(\mu_k, \Sigma_k), \quad
              x \mid z \sim p(x \mid f(z)), \quad y \mid x, c = k \sim p_k(y \mid x)

    .. math:: q(z, c = k \mid x, y) = N(z \mid \tilde\mu(x), \tilde\sigma^2(x))\;
              \frac{p(c = k \mid z)\, p_k(y \mid x)}{\sum_j p(c = j \mid z)\, p_j(y \mid x)},
              \quad g_k(x) = E_{q(z \mid x)}\, p(c = k \mid z)

    The paper (§5) takes q(c|x, y) = p(c|z), which leaves the gate's mean of log p_k(y|x) in the
    bound. Given z the posterior of c is known exactly also where y is known, and is the guide
    here: the bound is higher by the divergence between the two.

    Args:
        x_dim: D, columns of x.
        y_dim: M, columns of y, or the number of classes.
        num_components: K.
        z_dim: L, length of z.
        likelihood: p(x|z): ``"normal"``, ``"bernoulli"`` (x in {0, 1}) or
            ``"continuous-bernoulli"`` (x in [0, 1], such as gray pixels).
        experts: A family of affine experts, ``"normal"``, ``"categorical"``, ``"student-t"``,
            ``"bernoulli"`` or ``"poisson"``; or modules, see `MixtureOfExperts`.
        context: What the experts see: ``"x"``, or ``"z"``, the mean of z given x.
        covariance: Σ_k ``"full"``, ``"diagonal"`` or ``"tied"``.
        weights: π ``"learned"`` or ``"uniform"``.
        common_scale: Whether the columns of x share one unit, as the pixels of an image do.
        hidden: Widths of the hidden layers of the encoder; the decoder's in reverse.
        encoder: A network from x to ``2 * z_dim`` numbers, instead of an MLP.
        decoder: A network from z to ``x_dim`` numbers, instead of an MLP.

    Raises:
        ValueError: If a choice is none of those named.

    Example:
        >>> story = VaDEMoE(x_dim=2, y_dim=1, num_components=5, z_dim=2)
        >>> story.experts(torch.zeros(7, 2)).batch_shape
        torch.Size([7, 5])
    """

    start = "autoencoder"

    def __init__(
        self,
        x_dim: int,
        y_dim: int,
        num_components: int,
        z_dim: int,
        *,
        likelihood: str = "normal",
        experts: str | nn.Module | Sequence[nn.Module] = "normal",
        context: str = "x",
        covariance: str = "full",
        weights: str = "learned",
        common_scale: bool = False,
        hidden: Sequence[int] = (128, 128),
        encoder: nn.Module | None = None,
        decoder: nn.Module | None = None,
    ) -> None:
        super().__init__()
        if context not in CONTEXTS:
            raise ValueError(f"expected context in {CONTEXTS}; got {context!r}")
        self.x_dim, self.y_dim, self.num_components = x_dim, y_dim, num_components
        self.context = context
        self.vade = VaDE(
            x_dim,
            z_dim,
            num_components,
            likelihood=likelihood,
            covariance=covariance,
            weights=weights,
            common_scale=common_scale,
            hidden=hidden,
            encoder=encoder,
            decoder=decoder,
        )
        sees, units = (x_dim, self.vade.units) if context == "x" else (z_dim, None)
        self.experts: Any = experts_of(experts, sees, num_components, y_dim, units=units)

    def adapt(self, x: torch.Tensor, y: torch.Tensor | None = None) -> None:
        """Take the units of the rows x, shape (N, D), and y, shape (N,) or (N, M)."""
        self.vade.adapt(x)
        adapt_experts(self.experts, x, y)

    def m_step(
        self,
        weights: torch.Tensor,
        points: torch.Tensor,
        x: torch.Tensor,
        y: torch.Tensor | None = None,
    ) -> None:
        """The likeliest mixture of the codes ``points`` and experts given weights (N, K)."""
        self.vade.prior.maximize(points, weights)
        if y is not None:
            self.experts.maximize(x if self.context == "x" else points, y, weights)

    def expert_distributions(self, x: torch.Tensor) -> dist.Distribution:
        """The K distributions of y given x, shape (N, D)."""
        return self.experts(x if self.context == "x" else self.vade.encoder(x).mean)

    def target_log_likelihoods(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Log p_k(y|x) of each row under each expert, shape (N, K); zero where y is missing."""
        return log_likelihoods(self.expert_distributions(x), y)

    def model(self, x: torch.Tensor, y: torch.Tensor | None = None) -> None:
        """The generative story of the rows x, shape (N, D), and y, shape (N,) or (N, M)."""
        pyro.module("vade_moe", self)
        with pyro.plate("data", len(x)):
            c = pyro.sample("c", self.vade.prior.assignment())
            z = pyro.sample("z", self.vade.prior.component(c))
            x = pyro.sample("x", self.vade.decoder(z), obs=x)
            observe_target(choose(c, self.expert_distributions(x)), y)

    def guide(self, x: torch.Tensor, y: torch.Tensor | None = None) -> None:
        """The variational posterior: z from x, and c from z and, where it is known, y."""
        pyro.module("vade_moe", self)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", self.vade.encoder(x))
            logits = self.vade.prior.log_joint(z)
            if y is not None:
                logits = logits + self.target_log_likelihoods(x, y)
            pyro.sample("c", dist.OneHotCategorical(logits=logits))
