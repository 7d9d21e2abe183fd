"""Variational deep embedding (paper §3)."""

from collections.abc import Sequence

import pyro
import torch
from torch import nn

from .parts.conditionals import NormalConditional, likelihood_of
from .parts.mixture import GaussianMixture
from .parts.networks import MLP, Standardize


class VaDE(nn.Module):
    r"""A mixture of Gaussians in a latent space, whose assignment follows from z by Bayes' rule.

    .. math:: c \sim \mathrm{Cat}(\pi), \quad z \mid c = k \sim N(\mu_k, \Sigma_k), \quad
              x \mid z \sim p(x \mid f(z))

    .. math:: q(z, c \mid x) = N(z \mid \tilde\mu(x), \tilde\sigma^2(x))\; p(c \mid z)

    The paper (§3), after Jiang et al. (2017), calls q(c|x) = p(c|ẑ) an approximation with one
    sample ẑ. As a guide in which ``c`` depends on ``z`` it is exact: the divergence of q(c|z)
    from p(c|z) is zero, and the marginal ELBO is that of a VAE whose prior is the mixture.

    Args:
        x_dim: D, columns of x.
        z_dim: L, length of z.
        num_components: K.
        likelihood: p(x|z): ``"normal"``, ``"bernoulli"`` (x in {0, 1}) or
            ``"continuous-bernoulli"`` (x in [0, 1], such as gray pixels).
        covariance: Σ_k ``"full"``, ``"diagonal"`` or ``"tied"``.
        weights: π ``"learned"`` (as in the paper) or ``"uniform"``.
        common_scale: Whether the columns of x share one unit and, under a normal likelihood,
            one learned scale, as the pixels of an image do.
        hidden: Widths of the hidden layers of the encoder; the decoder's in reverse.
        encoder: A network from x to ``2 * z_dim`` numbers, instead of an MLP.
        decoder: A network from z to ``x_dim`` numbers, instead of an MLP.

    Raises:
        ValueError: If a choice is none of those named.

    Example:
        >>> story = VaDE(x_dim=2, z_dim=2, num_components=5)
        >>> story.prior.responsibilities(torch.zeros(7, 2)).probs.shape
        torch.Size([7, 5])
    """

    def __init__(
        self,
        x_dim: int,
        z_dim: int,
        num_components: int,
        *,
        likelihood: str = "normal",
        covariance: str = "full",
        weights: str = "learned",
        common_scale: bool = False,
        hidden: Sequence[int] = (128, 128),
        encoder: nn.Module | None = None,
        decoder: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.x_dim, self.z_dim, self.num_components = x_dim, z_dim, num_components
        self.likelihood = likelihood
        self.units = Standardize(x_dim, common=common_scale)
        self.prior = GaussianMixture(z_dim, num_components, covariance=covariance, weights=weights)
        self.decoder = likelihood_of(
            likelihood, decoder or MLP(z_dim, hidden[::-1], x_dim), self.units
        )
        self.encoder = NormalConditional(
            nn.Sequential(self.units, encoder or MLP(x_dim, hidden, 2 * z_dim))
        )

    def adapt(self, x: torch.Tensor) -> None:
        """Take the units of the rows x, shape (N, D), under a normal likelihood."""
        if self.likelihood == "normal":
            self.units.adapt(x)

    def model(self, x: torch.Tensor) -> None:
        """The generative story of the rows x, shape (N, D)."""
        pyro.module("vade", self)
        with pyro.plate("data", len(x)):
            c = pyro.sample("c", self.prior.assignment())
            z = pyro.sample("z", self.prior.component(c))
            pyro.sample("x", self.decoder(z), obs=x)

    def guide(self, x: torch.Tensor) -> None:
        """The variational posterior: z from the rows x, shape (N, D), and c from z."""
        pyro.module("vade", self)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", self.encoder(x))
            pyro.sample("c", self.prior.responsibilities(z))
