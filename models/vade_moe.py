"""A mixture of experts gated by variational deep embedding (paper §5)."""

from collections.abc import Sequence
from typing import Any

import pyro
import torch
from torch import nn

from pyro_moe.distributions import (
    MAX_LOG_ODDS,
    MultivariateNormal,
    RelaxedOneHotCategorical,
    choose,
)

from .parts.experts import ALL_COLUMNS, Predictor
from .parts.targets import observe_target, posterior_logits
from .story import WithExperts
from .vade import VaDE


class VaDEMoE(WithExperts, VaDE):
    r"""A VaDE of x, and an expert of y for each of its components.

    .. math:: c \sim \mathrm{Cat}(\pi), \quad z \mid c = k \sim N(\mu_k, \Sigma_k), \quad
              x \mid z \sim p(x \mid f(z)), \quad y \mid x, c = k \sim p_k(y \mid x)

    .. math:: q(z, c = k \mid x, y) = N(z \mid \tilde\mu(x), \tilde\sigma^2(x))\;
              \frac{p(c = k \mid z)\, p_k(y \mid x)}{\sum_j p(c = j \mid z)\, p_j(y \mid x)},
              \quad g_k(x) = E_{q(z \mid x)}\, p(c = k \mid z)

    The paper (§5) takes q(c|z, x, y) = p(c|z), which gives the term Σ_k p(c=k|z) log p_k(y|x) in
    the bound. Here q(c|z, x, y) is the exact posterior of c given z, x and y, which gives
    log Σ_k p(c=k|z) p_k(y|x). This bound is higher by KL(p(c|z) ‖ p(c|z, x, y)).

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
        **options: Further arguments of `VaDE`: ``likelihood``, ``covariance``, ``weights``,
            ``common_scale``, ``hidden``, ``encoder`` and ``decoder``.

    Raises:
        ValueError: If a choice is none of those named.

    Example:
        >>> story = VaDEMoE(x_dim=2, y_dim=1, num_components=5, z_dim=2)
        >>> story.experts(torch.zeros(7, 2)).batch_shape
        torch.Size([7, 5])
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

    def model(self, x: torch.Tensor, y: torch.Tensor | None = None) -> None:
        """The generative story of the rows x, shape (N, D), and y, shape (N,) or (N, M)."""
        pyro.module("vade_moe", self)
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
            # Assumption: y | x, c = k ~ p_k(y | x), for the family see `experts`
            observe_target(choose(c, self.expert_distributions(x)), y)

    def guide(self, x: torch.Tensor, y: torch.Tensor | None = None) -> None:
        """The variational posterior: z given x, and c given z and, if it is known, y."""
        pyro.module("vade_moe", self)
        with pyro.plate("data", len(x)):
            # z | x ~ Normal(μ(x), σ²(x))
            z = pyro.sample("z", self.encoder(x))
            # p(c = k | z, x, y) ∝ p(c = k | z) p_k(y | x), by Bayes' rule
            logits = self.prior.responsibilities(z).logits
            if y is not None:
                logits = posterior_logits(logits, self.expert_distributions(x), y)
            pyro.sample(
                "c",
                RelaxedOneHotCategorical(
                    self.temperature, logits=logits, max_log_odds=MAX_LOG_ODDS
                ),
            )
