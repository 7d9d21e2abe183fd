"""Variational deep embedding (paper §3)."""

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

from .parts.mixture import GaussianMixture
from .vae import VAE


class VaDE(VAE):
    r"""A Gaussian mixture in a latent space. The posterior of c given z is by Bayes' rule.

    .. math:: c \sim \mathrm{Cat}(\pi), \quad z \mid c = k \sim N(\mu_k, \Sigma_k), \quad
              x \mid z \sim p(x \mid f(z))

    .. math:: q(z, c \mid x) = N(z \mid \tilde\mu(x), \tilde\sigma^2(x))\; p(c \mid z)

    The paper (§3), following Jiang et al. (2017), describes q(c|x) = p(c|ẑ) as an approximation
    with one sample ẑ. Here ``c`` depends on ``z`` in the guide, and q(c|z) = p(c|z) is exact. The
    marginal ELBO is therefore that of a VAE whose prior is the mixture.

    Args:
        x_dim: D, columns of x.
        z_dim: L, length of z.
        num_components: K.
        covariance: Σ_k ``"full"``, ``"diagonal"`` or ``"tied"``.
        weights: π ``"learned"`` (as in the paper) or ``"uniform"``.
        **options: Further arguments of `VAE`: ``likelihood``, ``common_scale``, ``hidden``,
            ``encoder`` and ``decoder``.

    Raises:
        ValueError: If a choice is none of those named.

    Example:
        >>> story = VaDE(x_dim=2, z_dim=2, num_components=5)
        >>> story.prior.responsibilities(torch.zeros(7, 2)).probs.shape
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
        weights: str = "learned",
        **options: Any,
    ) -> None:
        super().__init__(x_dim, z_dim, **options)
        self.num_components = num_components
        self.prior = GaussianMixture(z_dim, num_components, covariance=covariance, weights=weights)
        self.temperature = nn.Buffer(torch.tensor(TEMPERATURE))
        self.prior_temperature = nn.Buffer(torch.tensor(PRIOR_TEMPERATURE))

    def model(self, x: torch.Tensor) -> None:
        """The generative story of the rows x, shape (N, D)."""
        pyro.module("vade", self)
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
        """The variational posterior: z given the rows x, shape (N, D), and c given z."""
        pyro.module("vade", self)
        with pyro.plate("data", len(x)):
            # z | x ~ Normal(μ(x), σ²(x))
            z = pyro.sample("z", self.encoder(x))
            # c | z ~ Categorical(p(c | z)), by Bayes' rule
            logits = self.prior.responsibilities(z).logits
            pyro.sample(
                "c",
                RelaxedOneHotCategorical(
                    self.temperature, logits=logits, max_log_odds=MAX_LOG_ODDS
                ),
            )
