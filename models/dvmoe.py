"""A mixture of experts gated by a discrete mixture variational autoencoder (paper §7)."""

from collections.abc import Sequence
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import MultivariateNormal
from torch import nn

from pyro_moe.distributions import MAX_LOG_ODDS, Mixture, RelaxedOneHotCategorical

from .dmvae import DMVAE
from .parts.targets import observe_target
from .story import WithExperts


class DVMoE(WithExperts, DMVAE):
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
        experts: A family of affine experts, ``"normal"``, ``"categorical"``, ``"student-t"``,
            ``"bernoulli"`` or ``"poisson"``; or modules, see `MixtureOfExperts`.
        context: What the experts see: ``"x"``, or ``"z"``, the mean of z given x.
        **options: What else `DMVAE` takes: ``likelihood``, ``covariance``, ``weights``,
            ``common_scale``, ``hidden``, ``encoder``, ``decoder`` and ``gate``.

    Raises:
        ValueError: If a choice is none of those named.

    Example:
        >>> story = DVMoE(x_dim=2, y_dim=1, num_components=5, z_dim=2)
        >>> story(torch.zeros(7, 2)).mean.shape
        torch.Size([7, 1])
    """

    def __init__(
        self,
        x_dim: int,
        y_dim: int,
        num_components: int,
        z_dim: int,
        *,
        experts: str | nn.Module | Sequence[nn.Module] = "normal",
        context: str = "x",
        **options: Any,
    ) -> None:
        super().__init__(x_dim, z_dim, num_components, **options)
        self.take_experts(experts, context, y_dim)

    def forward(self, x: torch.Tensor) -> dist.Distribution:
        """The distribution of y given x, shape (N, D), the assignment summed out."""
        return Mixture(self.gate(x).logits, self.expert_distributions(x))

    def model(self, x: torch.Tensor, y: torch.Tensor | None = None) -> None:
        """The generative story of the rows x, shape (N, D), and y, shape (N,) or (N, M)."""
        pyro.module("dvmoe", self)
        prior = self.prior
        with pyro.plate("data", len(x)):
            # Assumption: c ~ Categorical(π), learned or uniform as `weights` says
            c = pyro.sample(
                "c", RelaxedOneHotCategorical(self.prior_temperature, logits=prior.logits)
            )
            # Assumption: z | c = k ~ Normal(μ_k, Σ_k), Σ_k of the form that `covariance` says
            z = pyro.sample("z", MultivariateNormal(c @ prior.loc, scale_tril=prior.cholesky(c)))
            # Assumption: x | z ~ Normal(f(z), σ²), or of the family that `likelihood` says. With
            # heavy tails: StudentT(3.0, p.mean, p.stddev).to_event(1) for p = self.decoder(z)
            x = pyro.sample("x", self.decoder(z), obs=x)
            # Assumption: y | x ~ Σ_k g_k(x) p_k(y | x), of the family that `experts` says. The gate
            # decides, not the c of x. One c for both: choose(c, self.expert_distributions(x))
            observe_target(Mixture(self.gate(x).logits, self.expert_distributions(x)), y)

    def guide(self, x: torch.Tensor, y: torch.Tensor | None = None) -> None:
        """The variational posterior: z from x, and c from x and, where it is known, y."""
        pyro.module("dvmoe", self)
        with pyro.plate("data", len(x)):
            # c = k | x, y ~ Categorical ∝ g_k(x) p_k(y | x)
            logits = self.gate(x).logits
            if y is not None:
                logits = logits + self.target_log_likelihoods(x, y)
            pyro.sample(
                "c",
                RelaxedOneHotCategorical(
                    self.temperature, logits=logits, max_log_odds=MAX_LOG_ODDS
                ),
            )
            # z | x ~ Normal(μ(x), σ²(x))
            pyro.sample("z", self.encoder(x))
