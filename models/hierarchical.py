"""Stories with a second layer of assignments: groups of components (paper §9)."""

from typing import Any

import pyro
import torch

from pyro_moe.distributions import (
    MAX_LOG_ODDS,
    Mixture,
    MultivariateNormal,
    RelaxedOneHotCategorical,
)

from .dmvae import DMVAE
from .dvmoe import DVMoE
from .parts.groups import MAX_PRIOR_LOG_ODDS, GroupedMixture
from .parts.targets import observe_target, posterior_logits


class HierarchicalDMVAE(DMVAE):
    r"""A DMVAE whose clusters are in groups.

    .. math:: c_1 \sim \mathrm{Cat}(\rho), \quad c \mid c_1 = g \sim \mathrm{Cat}(\rho_g), \quad
              z \mid c = k \sim N(\mu_k, \Sigma_k), \quad x \mid z \sim p(x \mid f(z))

    .. math:: W^{-1/2} \mu_k \mid \text{group } g \sim N(m_g, s^2 I), \quad
              W = \sum_k \pi_k \Sigma_k

    .. math:: q(z, c, c_1 \mid x) = N(z \mid \tilde\mu(x), \tilde\sigma^2(x))\;
              \mathrm{Cat}(c \mid g(x))\; p(c_1 \mid c)

    The site ``c`` is the cluster, as in a DMVAE, and ``c1`` its group. A group is a set of clusters
    whose centers in the latent space are near each other, compared with their own spread, see
    `GroupedMixture`. In the guide p(c_1|c) is exact, because z depends on c alone. The bound of
    each row is therefore that of the DMVAE with the same clusters. The guide draws c_1 first, as
    the model does, so that the KL divergence of one layer given the one above it is known. The
    prior of the centers is an observed site ``centers`` outside the plate of rows. With one group
    the story is a DMVAE with a normal prior of its centers.

    Args:
        x_dim: D, columns of x.
        z_dim: L, length of z.
        num_components: K, the number of clusters.
        num_groups: G, at most K.
        **options: Further arguments of `DMVAE`: ``covariance``, ``weights``, ``gate``,
            ``likelihood``, ``common_scale``, ``hidden``, ``encoder`` and ``decoder``.

    Raises:
        ValueError: If there are more groups than clusters, or a choice is none of those named.

    Example:
        >>> story = HierarchicalDMVAE(x_dim=2, z_dim=2, num_components=5, num_groups=2)
        >>> story.prior.log_memberships().exp().sum(-1).round()
        tensor([1., 1., 1., 1., 1.])
    """

    prior: GroupedMixture

    def __init__(
        self, x_dim: int, z_dim: int, num_components: int, *, num_groups: int = 2, **options: Any
    ) -> None:
        super().__init__(x_dim, z_dim, num_components, **options)
        self.num_groups = num_groups
        self.prior = GroupedMixture.like(self.prior, num_groups)

    def model(self, x: torch.Tensor) -> None:
        """The generative story of the rows x, shape (N, D)."""
        pyro.module("hierarchical_dmvae", self)
        prior = self.prior
        group_logits, logits = prior.layer_logits()
        with pyro.plate("components", self.num_components):
            # Assumption: W^(-1/2) μ_k ~ Normal(m_g, s²) for one of the groups g
            pyro.sample("centers", prior.center_distribution(), obs=prior.centers())
        with pyro.plate("data", len(x)):
            # Assumption: c1 ~ Categorical(ρ), the group
            c1 = pyro.sample(
                "c1", RelaxedOneHotCategorical(self.prior_temperature, logits=group_logits)
            )
            # Assumption: c | c1 = g ~ Categorical(ρ_g), the cluster
            c = pyro.sample(
                "c",
                RelaxedOneHotCategorical(
                    self.prior_temperature,
                    logits=c1 @ logits,
                    max_log_odds=MAX_PRIOR_LOG_ODDS,
                ),
            )
            # Assumption: z | c = k ~ Normal(μ_k, Σ_k), for the form of Σ_k see `covariance`
            z = pyro.sample("z", MultivariateNormal(c @ prior.loc, scale_tril=prior.cholesky(c)))
            # Assumption: x | z ~ Normal(f(z), σ²), or another family, see `likelihood`. For heavy
            # tails use StudentT(3.0, p.mean, p.stddev).to_event(1) with p = self.decoder(z)
            pyro.sample("x", self.decoder(z), obs=x)

    def guide(self, x: torch.Tensor) -> None:
        """The variational posterior: c1, then c, and z given the rows x, shape (N, D)."""
        pyro.module("hierarchical_dmvae", self)
        with pyro.plate("data", len(x)):
            # c1 = g | x ~ Categorical(Σ_k g_k(x) p(c1 = g | c = k))
            logits = self.gate(x).logits
            memberships = self.prior.log_memberships().mT  # log p(c1 = g | c = k), (G, K)
            c1 = pyro.sample(
                "c1",
                RelaxedOneHotCategorical(
                    self.temperature,
                    logits=(logits.unsqueeze(-2) + memberships).logsumexp(-1),
                    max_log_odds=MAX_LOG_ODDS,
                ),
            )
            # c = k | c1 = g, x ~ Categorical ∝ g_k(x) p(c1 = g | c = k)
            pyro.sample(
                "c",
                RelaxedOneHotCategorical(
                    self.temperature,
                    logits=logits + c1 @ memberships,
                    max_log_odds=MAX_LOG_ODDS,
                ),
            )
            # z | x ~ Normal(μ(x), σ²(x))
            pyro.sample("z", self.encoder(x))


class HierarchicalDVMoE(DVMoE):
    r"""A `HierarchicalDMVAE` of x, and experts of y at its clusters.

    .. math:: y \mid x \sim \sum_k g_k(x)\, p_k(y \mid x)

    .. math:: q(z, c = k, c_1 = g \mid x, y) \propto N(z \mid \tilde\mu(x), \tilde\sigma^2(x))\;
              g_k(x)\, p_k(y \mid x)\; p(c_1 = g \mid c = k)

    The gate of a group is the sum of those of its clusters,
    :math:`\sum_k g_k(x)\, p(c_1 = g \mid c = k)`. For the terms of y see `DVMoE`.

    Args:
        x_dim: D, columns of x.
        y_dim: M, columns of y, or the number of classes.
        num_components: K, the number of clusters and experts.
        z_dim: L, length of z.
        num_groups: G, at most K.
        **options: Further arguments of `DVMoE`: ``experts``, ``context``, ``predictor``, and those
            of `DMVAE`.

    Raises:
        ValueError: If there are more groups than clusters, or a choice is none of those named.

    Example:
        >>> story = HierarchicalDVMoE(x_dim=2, y_dim=1, num_components=5, z_dim=2, num_groups=2)
        >>> story(torch.zeros(7, 2)).mean.shape
        torch.Size([7, 1])
    """

    prior: GroupedMixture

    def __init__(
        self,
        x_dim: int,
        y_dim: int,
        num_components: int,
        z_dim: int,
        *,
        num_groups: int = 2,
        **options: Any,
    ) -> None:
        super().__init__(x_dim, y_dim, num_components, z_dim, **options)
        self.num_groups = num_groups
        self.prior = GroupedMixture.like(self.prior, num_groups)

    def model(self, x: torch.Tensor, y: torch.Tensor | None = None) -> None:
        """The generative story of the rows x, shape (N, D), and y, shape (N,) or (N, M)."""
        pyro.module("hierarchical_dvmoe", self)
        prior = self.prior
        group_logits, logits = prior.layer_logits()
        with pyro.plate("components", self.num_components):
            # Assumption: W^(-1/2) μ_k ~ Normal(m_g, s²) for one of the groups g
            pyro.sample("centers", prior.center_distribution(), obs=prior.centers())
        with pyro.plate("data", len(x)):
            # Assumption: c1 ~ Categorical(ρ), the group
            c1 = pyro.sample(
                "c1", RelaxedOneHotCategorical(self.prior_temperature, logits=group_logits)
            )
            # Assumption: c | c1 = g ~ Categorical(ρ_g), the cluster
            c = pyro.sample(
                "c",
                RelaxedOneHotCategorical(
                    self.prior_temperature,
                    logits=c1 @ logits,
                    max_log_odds=MAX_PRIOR_LOG_ODDS,
                ),
            )
            # Assumption: z | c = k ~ Normal(μ_k, Σ_k), for the form of Σ_k see `covariance`
            z = pyro.sample("z", MultivariateNormal(c @ prior.loc, scale_tril=prior.cholesky(c)))
            # Assumption: x | z ~ Normal(f(z), σ²), or another family, see `likelihood`. For heavy
            # tails use StudentT(3.0, p.mean, p.stddev).to_event(1) with p = self.decoder(z)
            x = pyro.sample("x", self.decoder(z), obs=x)
            # Assumption: y | x ~ Σ_k g_k(x) p_k(y | x), for the family of p_k see `experts`
            observe_target(Mixture(self.gate(x).logits, self.expert_distributions(x)), y)

    def guide(self, x: torch.Tensor, y: torch.Tensor | None = None) -> None:
        """The variational posterior: z given x, and c1, then c, given x and, if it is known, y."""
        pyro.module("hierarchical_dvmoe", self)
        with pyro.plate("data", len(x)):
            # c1 = g | x, y ~ Categorical ∝ Σ_k g_k(x) p_k(y | x) p(c1 = g | c = k)
            logits = self.gate(x).logits
            if y is not None:
                logits = posterior_logits(logits, self.expert_distributions(x), y)
            memberships = self.prior.log_memberships().mT  # log p(c1 = g | c = k), (G, K)
            c1 = pyro.sample(
                "c1",
                RelaxedOneHotCategorical(
                    self.temperature,
                    logits=(logits.unsqueeze(-2) + memberships).logsumexp(-1),
                    max_log_odds=MAX_LOG_ODDS,
                ),
            )
            # c = k | c1 = g, x, y ~ Categorical ∝ g_k(x) p_k(y | x) p(c1 = g | c = k)
            pyro.sample(
                "c",
                RelaxedOneHotCategorical(
                    self.temperature,
                    logits=logits + c1 @ memberships,
                    max_log_odds=MAX_LOG_ODDS,
                ),
            )
            # z | x ~ Normal(μ(x), σ²(x))
            pyro.sample("z", self.encoder(x))
