"""A mixture of experts gated by a discrete mixture variational autoencoder (paper §7)."""

from collections.abc import Sequence
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import nn

from pyro_moe.distributions.mixture import Mixture

from .dmvae import DMVAE
from .parts.experts import CONTEXTS, adapt_experts, experts_of
from .parts.targets import log_likelihoods, observe_target


class DVMoE(nn.Module):
    r"""DMVAE for x, and experts for y under the gate that is its encoder of c.

    .. math:: c \sim \mathrm{Cat}(\pi), \quad z \mid c = k \sim N(\mu_k, \Sigma_k), \quad
              x \mid z \sim p(x \mid f(z)), \quad y \mid x \sim \sum_k g_k(x)\, p_k(y \mid x)

    .. math:: q(z, c = k \mid x, y) \propto N(z \mid \tilde\mu(x), \tilde\sigma^2(x))\;
              g_k(x)\, p_k(y \mid x)

    The marginal ELBO is the paper's bound (§7) on log p(y|x) + log p(x),

    .. math:: L = \log \sum_k g_k(x)\, p_k(y \mid x)
              + E_{q(z)} \Big[ \log \frac{p(x \mid z)}{q(z)}
              + \sum_k q(c = k) \log \frac{p(c = k)\, p(z \mid c = k)}{q(c = k)} \Big]

    but for q(c), for which the paper takes g(x). Any q will do in a bound, and the one here knows
    y as well. With the paper's, a row that lies in the wrong cluster of x is a tug of war
    between y and the many columns of x, which the gate settles far from what y says; here it is
    the code z that moves to the cluster which y names, and the gate is free to learn it.
    Without y, q(c) is g(x), and the bound the paper's and DMVAE's.

    As the paper says of it, L is no bound on the joint density of one story in which c makes
    both x and y: its p(y|x) has the encoder for a gate, and not the posterior of c given x.

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
        weights: π ``"uniform"`` (as in the paper) or ``"learned"``.
        common_scale: Whether the columns of x share one unit, as the pixels of an image do.
        hidden: Widths of the hidden layers of encoder and gate; the decoder's in reverse.
        encoder: A network from x to ``2 * z_dim`` numbers, instead of an MLP.
        decoder: A network from z to ``x_dim`` numbers, instead of an MLP.
        gate: A network from x to ``num_components`` logits, instead of an MLP.

    Raises:
        ValueError: If a choice is none of those named.

    Example:
        >>> story = DVMoE(x_dim=2, y_dim=1, num_components=5, z_dim=2)
        >>> story(torch.zeros(7, 2)).mean.shape
        torch.Size([7, 1])
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
        weights: str = "uniform",
        common_scale: bool = False,
        hidden: Sequence[int] = (128, 128),
        encoder: nn.Module | None = None,
        decoder: nn.Module | None = None,
        gate: nn.Module | None = None,
    ) -> None:
        super().__init__()
        if context not in CONTEXTS:
            raise ValueError(f"expected context in {CONTEXTS}; got {context!r}")
        self.x_dim, self.y_dim, self.num_components = x_dim, y_dim, num_components
        self.context = context
        self.dmvae = DMVAE(
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
            gate=gate,
        )
        sees, units = (x_dim, self.dmvae.units) if context == "x" else (z_dim, None)
        self.experts: Any = experts_of(experts, sees, num_components, y_dim, units=units)

    def adapt(self, x: torch.Tensor, y: torch.Tensor | None = None) -> None:
        """Take the units of the rows x, shape (N, D), and y, shape (N,) or (N, M)."""
        self.dmvae.adapt(x)
        adapt_experts(self.experts, x, y)

    def m_step(
        self,
        weights: torch.Tensor,
        points: torch.Tensor,
        x: torch.Tensor,
        y: torch.Tensor | None = None,
    ) -> None:
        """The likeliest mixture of the codes ``points`` and experts given weights (N, K)."""
        self.dmvae.prior.maximize(points, weights)
        if y is not None:
            self.experts.maximize(x if self.context == "x" else points, y, weights)

    def forward(self, x: torch.Tensor) -> dist.Distribution:
        """The distribution of y given x, shape (N, D), the assignment summed out."""
        return Mixture(self.dmvae.gate(x).logits, self.expert_distributions(x))

    def expert_distributions(self, x: torch.Tensor) -> dist.Distribution:
        """The K distributions of y given x, shape (N, D)."""
        return self.experts(x if self.context == "x" else self.dmvae.encoder(x).mean)

    def target_log_likelihoods(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Log p_k(y|x) of each row under each expert, shape (N, K); zero where y is missing."""
        return log_likelihoods(self.expert_distributions(x), y)

    def model(self, x: torch.Tensor, y: torch.Tensor | None = None) -> None:
        """The generative story of the rows x, shape (N, D), and y, shape (N,) or (N, M)."""
        pyro.module("dvmoe", self)
        with pyro.plate("data", len(x)):
            c = pyro.sample("c", self.dmvae.prior.assignment())
            z = pyro.sample("z", self.dmvae.prior.component(c))
            x = pyro.sample("x", self.dmvae.decoder(z), obs=x)
            observe_target(self(x), y)

    def guide(self, x: torch.Tensor, y: torch.Tensor | None = None) -> None:
        """The variational posterior: z from x, and c from x and, where it is known, y."""
        pyro.module("dvmoe", self)
        with pyro.plate("data", len(x)):
            logits = self.dmvae.gate(x).logits
            if y is not None:
                logits = logits + self.target_log_likelihoods(x, y)
            pyro.sample("c", dist.OneHotCategorical(logits=logits))
            pyro.sample("z", self.dmvae.encoder(x))
