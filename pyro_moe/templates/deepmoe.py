"""A mixture of experts with a neural gate, to be edited.

    c | x ~ Cat(g(x)),  y | x, c = k ~ p_k(y | x) = N(y | W_k x + b_k, Γ_k)
    q(c = k | x, y) ∝ g_k(x) p_k(y | x)
    g_k(x) = softmax_k f(x)

`pyro-moe fit FILE --data table.csv --target price` makes a `Story`, whose arguments it fills by
name, and fits its model and guide. Every line may be changed; ASSUMPTION marks those that say
something of the data. What is fixed are names: Story, model, guide, the plate "data", and the
sites c (one-hot), y.
"""

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
        common_scale: Whether the columns of x share one unit, as the pixels of an image do.
        hidden: Widths of the hidden layers of the gate.
    """

    start = "autoencoder"  # of training; "random", "tsne" and "umap" are others

    def __init__(
        self,
        x_dim: int,
        y_dim: int,
        num_components: int,
        common_scale: bool,
        hidden: Sequence[int] = (128, 128),
    ) -> None:
        super().__init__()
        # m and s, the units of x, are taken from the data in `adapt`.
        self.units = models.Standardize(x_dim, common=common_scale)
        # ASSUMPTION: borders between regimes have any shape that this network can draw.
        self.gate = models.CategoricalConditional(
            nn.Sequential(self.units, models.MLP(x_dim, hidden, num_components))
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
            # c | x ~ Cat(g(x))
            # ASSUMPTION: there is no story of x, so that rows without y teach nothing, and which
            # rows are unlike the others is not known. With one: see gmmmoe and dvmoe.
            c = pyro.sample("c", self.gate(x))
            # y | x, c = k ~ p_k(y | x)
            # The site y: pyro.sample("y", ..., obs=y), but for rows whose y is missing.
            models.observe_target(models.choose(c, self.experts(x)), y)

    def guide(self, x: torch.Tensor, y: torch.Tensor | None = None) -> None:
        """What rows x, shape (N, D), and y, shape (N,) or (N, M), say of c."""
        pyro.module("story", self)
        with pyro.plate("data", len(x)):
            # q(c = k | x, y) ∝ g_k(x) p_k(y | x), which is exact; without y, the gate
            logits = self.gate(x).logits
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
        """What a start, or EM, does with responsibilities (N, K) and rows."""
        if y is not None:
            self.experts.maximize(x, y, weights)

    def target_log_likelihoods(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Log p_k(y | x), shape (N, K); zero where y is missing."""
        return models.log_likelihoods(self.experts(x), y)
