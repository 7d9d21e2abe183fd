"""A mixture of normals over x, to be edited.

    c ~ Cat(π),  x | c = k ~ N(μ_k, Σ_k);  q(c | x) = p(c | x)

`pyro-moe fit FILE --data table.csv --loss em` makes a `Story`, whose arguments it fills by name,
and fits its model and guide. Every line may be changed; ASSUMPTION marks those that say something
of the data. What is fixed are names: Story, model, guide, the plate "data", and the sites c
(one-hot), x.
"""

import pyro
import pyro.distributions as dist
import torch
from torch import nn

from pyro_moe import models


class Story(nn.Module):
    """The parts of the story, its model and its guide.

    Args:
        x_dim: D, columns of x.
        num_components: K.
    """

    def __init__(self, x_dim: int, num_components: int) -> None:
        super().__init__()
        # ASSUMPTION: components of x are normal, with Σ_k "full" ("diagonal", "tied") and π
        # "learned" ("uniform").
        self.mixture = models.GaussianMixture(
            x_dim, num_components, covariance="full", weights="learned"
        )

    def model(self, x: torch.Tensor) -> None:
        """How rows x, shape (N, D), come about."""
        pyro.module("story", self)
        with pyro.plate("data", len(x)):
            # c ~ Cat(π)
            c = pyro.sample("c", self.mixture.assignment())
            # x | c = k ~ N(μ_k, Σ_k)
            # ASSUMPTION: tails are thin. Heavy ones, column by column, with m = self.mixture:
            # dist.StudentT(3.0, c @ m.loc, c @ m.log_scale.exp()).to_event(1). The guide is no
            # longer exact then, but what is maximized is still a lower bound.
            pyro.sample("x", self.mixture.component(c), obs=x)

    def guide(self, x: torch.Tensor) -> None:
        """What rows x, shape (N, D), say of c."""
        pyro.module("story", self)
        with pyro.plate("data", len(x)):
            # q(c = k | x) ∝ π_k N(x | μ_k, Σ_k), which is exact
            pyro.sample("c", dist.OneHotCategorical(logits=self.mixture.log_joint(x)))

    def adapt(self, x: torch.Tensor) -> None:
        """What fit does first: put the means at distant rows."""
        self.mixture.spread_over(x)
