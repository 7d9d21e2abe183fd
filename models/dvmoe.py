"""A mixture of experts gated by a discrete mixture variational autoencoder (paper §7)."""

from collections.abc import Sequence
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import nn

from pyro_moe.distributions import (
    MAX_LOG_ODDS,
    Mixture,
    MultivariateNormal,
    RelaxedOneHotCategorical,
)

from .dmvae import DMVAE
from .parts.experts import ALL_COLUMNS, Predictor
from .parts.targets import observe_target, posterior_logits
from .story import WithExperts


class DVMoE(WithExperts, DMVAE):
    r"""A DMVAE of x, and experts of y whose gate is the DMVAE's encoder of c.

    .. math:: c \sim \mathrm{Cat}(\pi), \quad z \mid c = k \sim N(\mu_k, \Sigma_k), \quad
              x \mid z \sim p(x \mid f(z)), \quad y \mid x \sim \sum_k g_k(x)\, p_k(y \mid x)

    .. math:: q(z, c = k \mid x, y) \propto N(z \mid \tilde\mu(x), \tilde\sigma^2(x))\;
              g_k(x)\, p_k(y \mid x)

    The marginal ELBO is the paper's bound (§7) on log p(y|x) + log p(x),

    .. math:: L = \log \sum_k g_k(x)\, p_k(y \mid x)
              + E_{q(z)} \Big[ \log \frac{p(x \mid z)}{q(z)}
              + \sum_k q(c = k) \log \frac{p(c = k)\, p(z \mid c = k)}{q(c = k)} \Big]

    except for q(c). The paper takes q(c|x) = g(x). Here q(c|x, y) depends on y, too, which also
    gives a valid bound. Consider a row whose x lies in another cluster than the one that y
    indicates. With the paper's q(c), the terms of x, which has many columns, dominate the fit of
    the gate, which then contradicts y. With q(c|x, y), the code z moves to the cluster that y
    indicates, and the gate can learn this assignment. If y is missing, q(c) = g(x), and the bound
    is that of the paper and of DMVAE.

    As the paper notes, L is not a bound on the joint density of a model in which c generates both
    x and y. The gate of p(y|x) is the encoder, not the posterior of c given x.

    Args:
        x_dim: D, columns of x.
        y_dim: M, columns of y, or the number of classes.
        num_components: K.
        z_dim: L, length of z.
        experts: A family of affine experts, ``"normal"``, ``"categorical"``, ``"student-t"``,
            ``"bernoulli"`` or ``"poisson"``; or modules, see `MixtureOfExperts`.
        context: What the experts are a function of: ``"x"``, or ``"z"`` for E[z|x].
        predictor: What the linear predictors of affine experts of x are made of, see `Predictor`;
            or one for each family of a list.
        **options: Further arguments of `DMVAE`: ``likelihood``, ``covariance``, ``weights``,
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
        experts: str | nn.Module | Sequence[nn.Module] | Sequence[str] = "normal",
        context: str = "x",
        predictor: Predictor | Sequence[Predictor] = ALL_COLUMNS,
        **options: Any,
    ) -> None:
        super().__init__(x_dim, z_dim, num_components, **options)
        self.take_experts(experts, context, y_dim, predictor)

    def forward(self, x: torch.Tensor) -> dist.Distribution:
        """The distribution of y given x, shape (N, D), with the assignment summed out."""
        return Mixture(self.gate(x).logits, self.expert_distributions(x))

    def model(self, x: torch.Tensor, y: torch.Tensor | None = None) -> None:
        """The generative story of the rows x, shape (N, D), and y, shape (N,) or (N, M)."""
        pyro.module("dvmoe", self)
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
            x = pyro.sample("x", self.decoder(z), obs=x)
            # Assumption: y | x ~ Σ_k g_k(x) p_k(y | x), for the family of p_k see `experts`. The
            # gate selects the expert, not the c of x. For one c of both x and y use
            # choose(c, self.expert_distributions(x))
            observe_target(Mixture(self.gate(x).logits, self.expert_distributions(x)), y)

    def guide(self, x: torch.Tensor, y: torch.Tensor | None = None) -> None:
        """The variational posterior: z given x, and c given x and, if it is known, y."""
        pyro.module("dvmoe", self)
        with pyro.plate("data", len(x)):
            # c = k | x, y ~ Categorical ∝ g_k(x) p_k(y | x)
            logits = self.gate(x).logits
            if y is not None:
                logits = posterior_logits(logits, self.expert_distributions(x), y)
            pyro.sample(
                "c",
                RelaxedOneHotCategorical(
                    self.temperature, logits=logits, max_log_odds=MAX_LOG_ODDS
                ),
            )
            # z | x ~ Normal(μ(x), σ²(x))
            pyro.sample("z", self.encoder(x))
