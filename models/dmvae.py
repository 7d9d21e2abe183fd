"""The discrete mixture variational autoencoder (paper §6)."""

from collections.abc import Sequence

import pyro
import torch
from torch import nn

from .parts.conditionals import CategoricalConditional, NormalConditional, likelihood_of
from .parts.mixture import GaussianMixture
from .parts.networks import MLP, Standardize


class DMVAE(nn.Module):
    r"""A mixture of Gaussians in a latent space, with an encoder of its own for the assignment.

    .. math:: c \sim \mathrm{Cat}(\pi), \quad z \mid c = k \sim N(\mu_k, \Sigma_k), \quad
              x \mid z \sim p(x \mid f(z))

    .. math:: q(z, c \mid x) = N(z \mid \tilde\mu(x), \tilde\sigma^2(x))\; \mathrm{Cat}(c \mid g(x))

    Args:
        x_dim: D, columns of x.
        z_dim: L, length of z.
        num_components: K.
        likelihood: p(x|z): ``"normal"``, ``"bernoulli"`` (x in {0, 1}) or
            ``"continuous-bernoulli"`` (x in [0, 1], such as gray pixels).
        covariance: Σ_k ``"full"``, ``"diagonal"`` or ``"tied"``.
        weights: π ``"uniform"`` (as in the paper) or ``"learned"``.
        common_scale: Whether the columns of x share one unit and, under a normal likelihood,
            one learned scale, as the pixels of an image do.
        hidden: Widths of the hidden layers of encoder and gate; the decoder's in reverse.
        encoder: A network from x to ``2 * z_dim`` numbers, instead of an MLP.
        decoder: A network from z to ``x_dim`` numbers, instead of an MLP.
        gate: A network from x to ``num_components`` logits, instead of an MLP. It shares
            nothing with the encoder: what reconstructs x would drown what tells clusters apart.

    Raises:
        ValueError: If a choice is none of those named.

    Example:
        >>> story = DMVAE(x_dim=2, z_dim=2, num_components=5)
        >>> story.gate(torch.zeros(7, 2)).probs.shape
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
        weights: str = "uniform",
        common_scale: bool = False,
        hidden: Sequence[int] = (128, 128),
        encoder: nn.Module | None = None,
        decoder: nn.Module | None = None,
        gate: nn.Module | None = None,
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
        self.gate = CategoricalConditional(
            nn.Sequential(self.units, gate or MLP(x_dim, hidden, num_components))
        )

    def adapt(self, x: torch.Tensor) -> None:
        """Take the units of the rows x, shape (N, D), under a normal likelihood."""
        if self.likelihood == "normal":
            self.units.adapt(x)

    def model(self, x: torch.Tensor) -> None:
        """The generative story of the rows x, shape (N, D)."""
        pyro.module("dmvae", self)
        with pyro.plate("data", len(x)):
            c = pyro.sample("c", self.prior.assignment())
            z = pyro.sample("z", self.prior.component(c))
            pyro.sample("x", self.decoder(z), obs=x)

    def guide(self, x: torch.Tensor) -> None:
        """The variational posterior: z and c independent given the rows x, shape (N, D)."""
        pyro.module("dmvae", self)
        with pyro.plate("data", len(x)):
            pyro.sample("c", self.gate(x))
            pyro.sample("z", self.encoder(x))
