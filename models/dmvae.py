"""The discrete mixture variational autoencoder (paper §6)."""

from typing import Any

import pyro
import torch
from torch import nn

from pyro_moe.distributions import (
    MAX_LOG_ODDS,
    PRIOR_TEMPERATURE,
    TEMPERATURE,
    MultivariateNormal,
    RelaxedOneHotCategorical,
)

from .parts.conditionals import CategoricalConditional
from .parts.mixture import GaussianMixture
from .parts.networks import MLP
from .vae import VAE


class DMVAE(VAE):
    r"""A Gaussian mixture in a latent space, with a separate encoder of the assignment.

    .. math:: c \sim \mathrm{Cat}(\pi), \quad z \mid c = k \sim N(\mu_k, \Sigma_k), \quad
              x \mid z \sim p(x \mid f(z))

    .. math:: q(z, c \mid x) = N(z \mid \tilde\mu(x), \tilde\sigma^2(x))\; \mathrm{Cat}(c \mid g(x))

    Args:
        x_dim: D, columns of x.
        z_dim: L, length of z.
        num_components: K.
        covariance: Σ_k ``"full"``, ``"diagonal"`` or ``"tied"``.
        weights: π ``"uniform"`` (as in the paper) or ``"learned"``.
        gate: A network from x to ``num_components`` logits, instead of an MLP. Gate and encoder
            share no layers, because features that reconstruct x would dominate those that
            separate the clusters.
        **options: Further arguments of `VAE`: ``likelihood``, ``common_scale``, ``hidden`` (also
            for the gate), ``encoder`` and ``decoder``.

    Raises:
        ValueError: If a choice is none of those named.

    Example:
        >>> story = DMVAE(x_dim=2, z_dim=2, num_components=5)
        >>> story.gate(torch.zeros(7, 2)).probs.shape
        torch.Size([7, 5])
    """

    start = "autoencoder"

    def __init__(
        self,
        x_dim: int,
        z_dim: int,
        num_components: int,
        *,
        covariance: str = "full",
        weights: str = "uniform",
        gate: nn.Module | None = None,
        **options: Any,
    ) -> None:
        super().__init__(x_dim, z_dim, **options)
        self.num_components = num_components
        self.prior = GaussianMixture(z_dim, num_components, covariance=covariance, weights=weights)
        self.gate = CategoricalConditional(
            nn.Sequential(self.units, gate or MLP(x_dim, self.hidden, num_components))
        )
        self.temperature = nn.Buffer(torch.tensor(TEMPERATURE))
        self.prior_temperature = nn.Buffer(torch.tensor(PRIOR_TEMPERATURE))

    def model(self, x: torch.Tensor) -> None:
        """The generative story of the rows x, shape (N, D)."""
        pyro.module("dmvae", self)
        prior = self.prior
        with pyro.plate("data", len(x)):
            # Assumption: c ~ Categorical(π), with π learned or uniform, see `weights`
            c = pyro.sample(
                "c", RelaxedOneHotCategorical(self.prior_temperature, logits=prior.logits)
            )
            # Assumption: z | c = k ~ Normal(μ_k, Σ_k), for the form of Σ_k see `covariance`
            z = pyro.sample("z", MultivariateNormal(c @ prior.loc, scale_tril=prior.cholesky(c)))
            # Assumption: x | z ~ Normal(f(z), σ²), or another family, see `likelihood`. For heavy
            # tails use StudentT(3.0, p.mean, p.stddev).to_event(1) with p = self.decoder(z)
            pyro.sample("x", self.decoder(z), obs=x)

    def guide(self, x: torch.Tensor) -> None:
        """The variational posterior: z and c independent given the rows x, shape (N, D)."""
        pyro.module("dmvae", self)
        with pyro.plate("data", len(x)):
            # c | x ~ Categorical(g(x))
            logits = self.gate(x).logits
            pyro.sample(
                "c",
                RelaxedOneHotCategorical(
                    self.temperature, logits=logits, max_log_odds=MAX_LOG_ODDS
                ),
            )
            # z | x ~ Normal(μ(x), σ²(x))
            pyro.sample("z", self.encoder(x))
