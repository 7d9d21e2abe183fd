"""The variational autoencoder (paper §2.3)."""

from collections.abc import Sequence

import pyro
import torch
from torch import nn

from pyro_moe.distributions import Normal

from .parts.conditionals import NormalConditional, likelihood_of, outputs_of
from .parts.networks import MLP, Standardize


class VAE(nn.Module):
    r"""A variational autoencoder with a standard normal prior, and without components.

    .. math:: z \sim N(0, I), \quad x \mid z \sim p(x \mid f(z)), \quad
              q(z \mid x) = N(z \mid \tilde\mu(x), \tilde\sigma^2(x))

    Args:
        x_dim: D, columns of x.
        z_dim: L, length of z.
        likelihood: p(x|z): ``"normal"``, ``"normal-heteroscedastic"`` (with a variance that
            depends on z), ``"bernoulli"`` (x in {0, 1}) or ``"continuous-bernoulli"`` (x in
            [0, 1], such as gray pixels).
        common_scale: Whether the columns of x share one unit and, under a normal likelihood,
            one learned scale, as the pixels of an image do.
        hidden: Widths of the hidden layers of the encoder. The decoder has them in reverse order.
        encoder: A network from x to ``2 * z_dim`` numbers, instead of an MLP.
        decoder: A network from z to ``x_dim`` numbers, instead of an MLP; to ``2 * x_dim`` under
            ``"normal-heteroscedastic"``.

    Raises:
        ValueError: If the likelihood is none of those named.

    Example:
        >>> VAE(x_dim=3, z_dim=2).encoder(torch.zeros(7, 3)).event_shape
        torch.Size([2])
    """

    def __init__(
        self,
        x_dim: int,
        z_dim: int,
        *,
        likelihood: str = "normal",
        common_scale: bool = False,
        hidden: Sequence[int] = (128, 128),
        encoder: nn.Module | None = None,
        decoder: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.x_dim, self.z_dim = x_dim, z_dim
        self.likelihood, self.hidden = likelihood, tuple(hidden)
        self.units = Standardize(x_dim, common=common_scale)
        network = decoder or MLP(z_dim, hidden[::-1], outputs_of(likelihood) * x_dim)
        self.decoder = likelihood_of(likelihood, network, self.units)
        self.encoder = NormalConditional(
            nn.Sequential(self.units, encoder or MLP(x_dim, hidden, 2 * z_dim))
        )

    def adapt(self, x: torch.Tensor) -> None:
        """Set the units from training rows x, shape (N, D), if the likelihood is normal."""
        if self.likelihood.startswith("normal"):
            self.units.adapt(x)

    @property
    def missing_features(self) -> bool:
        """Whether x may lack entries: the encoder reads their means, the bound leaves them out."""
        return True

    def model(self, x: torch.Tensor) -> None:
        """The generative story of the rows x, shape (N, D)."""
        pyro.module("vae", self)
        with pyro.plate("data", len(x)):
            # Assumption: z ~ Normal(0, I), without clusters
            z = pyro.sample("z", Normal(x.new_zeros(self.z_dim), 1.0).to_event(1))
            # Assumption: x | z ~ Normal(f(z), σ²), or another family, see `likelihood`. For heavy
            # tails use StudentT(3.0, p.mean, p.stddev).to_event(1) with p = self.decoder(z)
            pyro.sample("x", self.decoder(z), obs=x)

    def guide(self, x: torch.Tensor) -> None:
        """The variational posterior of z given the rows x, shape (N, D)."""
        pyro.module("vae", self)
        with pyro.plate("data", len(x)):
            # z | x ~ Normal(μ(x), σ²(x))
            pyro.sample("z", self.encoder(x))
