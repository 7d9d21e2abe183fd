"""A variational autoencoder, to be edited.

    z ~ N(0, I),  x | z ~ N(f(z), σ²);  q(z | x) = N(μ(x), σ²(x))

`pyro-moe fit FILE --data table.csv` makes a `Story`, whose arguments it fills by name, and fits
its model and guide. Every line may be changed; ASSUMPTION marks those that say something of the
data. What is fixed are names: Story, model, guide, the plate "data", and the sites z, x.
"""

import math
from collections.abc import Sequence

import pyro
import pyro.distributions as dist
import torch
from torch import nn

from pyro_moe import models


class Story(nn.Module):
    """The parts of the story, its model and its guide.

    Args:
        x_dim: D, columns of x.
        z_dim: L, length of z.
        common_scale: Whether the columns of x share one unit, as the pixels of an image do.
        hidden: Widths of the hidden layers of the encoder; the decoder's in reverse.
    """

    def __init__(
        self, x_dim: int, z_dim: int, common_scale: bool, hidden: Sequence[int] = (128, 128)
    ) -> None:
        super().__init__()
        self.z_dim = z_dim
        # m and s, the units of x, are taken from the data in `adapt`.
        self.units = models.Standardize(x_dim, common=common_scale)
        # f, from z to x in standard units. Images: models.ConvolutionalDecoder(z_dim, (1, 8, 8)).
        self.decoder = models.MLP(z_dim, hidden[::-1], x_dim)
        # σ of x around f(z), in standard units: small, so that training starts at an autoencoder.
        self.log_scale = nn.Parameter(torch.full_like(self.units.scale, math.log(0.1)))
        # q(z | x): mean and log-scale by a network of x. Images: models.ConvolutionalEncoder.
        self.encoder = models.NormalConditional(
            nn.Sequential(self.units, models.MLP(x_dim, hidden, 2 * z_dim))
        )

    def model(self, x: torch.Tensor) -> None:
        """How rows x, shape (N, D), come about."""
        pyro.module("story", self)
        with pyro.plate("data", len(x)):
            # z ~ N(0, I)
            # ASSUMPTION: one group. Several: see the story vade.
            z = pyro.sample("z", dist.Normal(x.new_zeros(self.z_dim), 1.0).to_event(1))
            # x | z ~ N(m + s f(z), (s σ)²)
            # ASSUMPTION: x is normal given z. Heavy tails: dist.StudentT(3.0, loc, scale); values
            # that are 0 or 1: dist.Bernoulli(logits=self.decoder(z)); gray ones between:
            # dist.ContinuousBernoulli(logits=self.decoder(z)).
            loc = self.units.inverse(self.decoder(z))
            scale = self.units.scale * self.log_scale.exp()
            pyro.sample("x", dist.Normal(loc, scale).to_event(1), obs=x)

    def guide(self, x: torch.Tensor) -> None:
        """What rows x, shape (N, D), say of z."""
        pyro.module("story", self)
        with pyro.plate("data", len(x)):
            # q(z | x) = N(μ(x), σ²(x))
            pyro.sample("z", self.encoder(x))

    def adapt(self, x: torch.Tensor) -> None:
        """What fit does first: take the units of the rows."""
        self.units.adapt(x)
