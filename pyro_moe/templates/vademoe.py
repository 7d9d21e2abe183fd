"""A mixture of experts gated by variational deep embedding, to be edited.

    c ~ Cat(π),  z | c = k ~ N(μ_k, Σ_k),  x | z ~ N(f(z), σ²)
    y | x, c = k ~ p_k(y | x) = N(y | W_k x + b_k, Γ_k)
    q(z, c = k | x, y) ∝ N(z | μ(x), σ²(x)) p(c = k | z) p_k(y | x)

`pyro-moe fit FILE --data table.csv --target price` makes a `Story`, whose arguments it fills by
name, and fits its model and guide. Every line may be changed; ASSUMPTION marks those that say
something of the data. What is fixed are names: Story, model, guide, the plate "data", and the
sites c (one-hot), z, x, y.
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
        y_dim: M, columns of y. Named ``num_classes`` instead, it is the number of classes.
        num_components: K.
        z_dim: L, length of z.
        common_scale: Whether the columns of x share one unit, as the pixels of an image do.
        hidden: Widths of the hidden layers of the encoder; the decoder's in reverse.
    """

    start = "autoencoder"  # of training; "random", "tsne" and "umap" are others

    def __init__(
        self,
        x_dim: int,
        y_dim: int,
        num_components: int,
        z_dim: int,
        common_scale: bool,
        hidden: Sequence[int] = (128, 128),
    ) -> None:
        super().__init__()
        # m and s, the units of x, are taken from the data in `adapt`.
        self.units = models.Standardize(x_dim, common=common_scale)
        # ASSUMPTION: components of z are normal, with Σ_k "full" ("diagonal", "tied") and π
        # "learned" ("uniform").
        self.prior = models.GaussianMixture(
            z_dim, num_components, covariance="full", weights="learned"
        )
        # f, from z to x in standard units. Images: models.ConvolutionalDecoder(z_dim, (1, 8, 8)).
        self.decoder = models.MLP(z_dim, hidden[::-1], x_dim)
        # σ of x around f(z), in standard units: small, so that training starts at an autoencoder.
        self.log_scale = nn.Parameter(torch.full_like(self.units.scale, math.log(0.1)))
        # q(z | x): mean and log-scale by a network of x. Images: models.ConvolutionalEncoder.
        self.encoder = models.NormalConditional(
            nn.Sequential(self.units, models.MLP(x_dim, hidden, 2 * z_dim))
        )
        # ASSUMPTION: experts are affine in x. Any network from x to (N, K, M) will do.
        maps = models.AffineMaps(x_dim, num_components, y_dim, units=self.units)
        # ASSUMPTION: y is normal around them, each column by itself. For outliers:
        # models.StudentTExperts(maps, num_components, y_dim); counts: models.PoissonExperts(maps,
        # y_dim); yes or no: models.BernoulliExperts(maps); classes:
        # models.CategoricalExperts(maps), with num_classes for y_dim in all of this file.
        self.experts = models.NormalExperts(maps, num_components, y_dim)

    def model(self, x: torch.Tensor, y: torch.Tensor | None = None) -> None:
        """How rows x, shape (N, D), and y, shape (N,) or (N, M), come about."""
        pyro.module("story", self)
        with pyro.plate("data", len(x)):
            # c ~ Cat(π)
            c = pyro.sample("c", self.prior.assignment())
            # z | c = k ~ N(μ_k, Σ_k)
            z = pyro.sample("z", self.prior.component(c))
            # x | z ~ N(m + s f(z), (s σ)²)
            # ASSUMPTION: x is normal given z. Heavy tails: dist.StudentT(3.0, loc, scale); values
            # that are 0 or 1: dist.Bernoulli(logits=self.decoder(z)); gray ones between:
            # dist.ContinuousBernoulli(logits=self.decoder(z)).
            loc = self.units.inverse(self.decoder(z))
            scale = self.units.scale * self.log_scale.exp()
            x = pyro.sample("x", dist.Normal(loc, scale).to_event(1), obs=x)
            # y | x, c = k ~ p_k(y | x)
            # The site y: pyro.sample("y", ..., obs=y), but for rows whose y is missing.
            models.observe_target(models.choose(c, self.experts(x)), y)

    def guide(self, x: torch.Tensor, y: torch.Tensor | None = None) -> None:
        """What rows x, shape (N, D), and y, shape (N,) or (N, M), say of c and z."""
        pyro.module("story", self)
        with pyro.plate("data", len(x)):
            # q(z | x) = N(μ(x), σ²(x))
            z = pyro.sample("z", self.encoder(x))
            # q(c = k | z, x, y) ∝ π_k N(z | μ_k, Σ_k) p_k(y | x), which is exact
            logits = self.prior.log_joint(z)
            if y is not None:
                logits = logits + self.target_log_likelihoods(x, y)
            pyro.sample("c", dist.OneHotCategorical(logits=logits))

    def adapt(self, x: torch.Tensor, y: torch.Tensor | None = None) -> None:
        """What fit does first: take the units of the rows."""
        self.units.adapt(x)
        models.experts.adapt_experts(self.experts, x, y)

    def m_step(
        self,
        weights: torch.Tensor,
        points: torch.Tensor,
        x: torch.Tensor,
        y: torch.Tensor | None = None,
    ) -> None:
        """What a start, or EM, does with responsibilities (N, K) and codes ``points``."""
        self.prior.maximize(points, weights)
        if y is not None:
            self.experts.maximize(x, y, weights)

    def target_log_likelihoods(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Log p_k(y | x), shape (N, K); zero where y is missing."""
        return models.log_likelihoods(self.experts(x), y)
