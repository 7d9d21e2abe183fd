"""A mixture of experts gated by a Gaussian mixture over x (paper §8.2)."""

from collections.abc import Sequence
from typing import Any

import pyro
import torch
from torch import nn

from pyro_moe.distributions import (
    MAX_LOG_ODDS,
    PRIOR_TEMPERATURE,
    TEMPERATURE,
    MultivariateNormal,
    RelaxedOneHotCategorical,
    choose,
    in_double,
    rounded,
    rows_are_incomplete,
)

from .m_steps.completion import completed, conditionals, covariance_of
from .parts.experts import ALL_COLUMNS, NormalExperts, Predictor, adapt_experts, experts_of
from .parts.mixture import GaussianMixture
from .parts.networks import Standardize
from .parts.targets import log_likelihoods, observe_target, posterior_logits


class GMMMoE(nn.Module):
    r"""A mixture of experts whose gate is the posterior of a Gaussian mixture over x.

    .. math:: c \sim \mathrm{Cat}(\pi), \quad x \mid c = k \sim N(\mu_k, \Sigma_k), \quad
              y \mid x, c = k \sim p_k(y \mid x)

    .. math:: g_k(x) = p(c = k \mid x) \propto \pi_k N(x \mid \mu_k, \Sigma_k)

    It is fitted by EM (``loss="em"``) or by gradients. The joint density of x and y is maximized,
    rather than that of y given x. All M-steps of the gate are then in closed form (Xu, Jordan
    and Hinton, 1994). The paper reports instability in many dimensions. This implementation, in
    log space and with shrinkage of the covariances, runs with 784 columns.

    Args:
        x_dim: D, columns of x.
        y_dim: M, columns of y, or the number of classes.
        num_components: K.
        experts: A family of affine experts, ``"normal"``, ``"categorical"``, ``"student-t"``,
            ``"bernoulli"`` or ``"poisson"``; or modules, see `MixtureOfExperts`.
        covariance: Σ_k ``"full"``, ``"diagonal"`` or ``"tied"``.
        weights: π ``"learned"`` or ``"uniform"``.
        common_scale: Whether the columns of x share one unit, as the pixels of an image do.
        shrinkage: λ, the weight of a diagonal target in Σ_k, see `GaussianMixture`.
        predictor: What the linear predictors of affine experts are made of, see `Predictor`; or one
            for each family of a list.

    Raises:
        ValueError: If a choice is none of those named.

    Example:
        >>> story = GMMMoE(x_dim=2, y_dim=1, num_components=5)
        >>> story.mixture.responsibilities(torch.zeros(7, 2)).probs.shape
        torch.Size([7, 5])
    """

    def __init__(
        self,
        x_dim: int,
        y_dim: int,
        num_components: int,
        *,
        experts: str | nn.Module | Sequence[nn.Module] | Sequence[str] = "normal",
        covariance: str = "full",
        weights: str = "learned",
        common_scale: bool = False,
        shrinkage: float = 1e-3,
        predictor: Predictor | Sequence[Predictor] = ALL_COLUMNS,
    ) -> None:
        super().__init__()
        self.x_dim, self.y_dim, self.num_components = x_dim, y_dim, num_components
        self.units = Standardize(x_dim, common=common_scale)
        self.mixture = GaussianMixture(
            x_dim,
            num_components,
            covariance=covariance,
            weights=weights,
            shrinkage=shrinkage,
            common_scale=common_scale,
            units=self.units,
        )
        self.experts: Any = experts_of(
            experts, x_dim, num_components, y_dim, units=self.units, predictor=predictor
        )
        self.temperature = nn.Buffer(torch.tensor(TEMPERATURE))
        self.prior_temperature = nn.Buffer(torch.tensor(PRIOR_TEMPERATURE))

    def adapt(self, x: torch.Tensor, y: torch.Tensor | None = None) -> None:
        """Set the units from training rows x, shape (N, D), and y, and initialize the mixture."""
        self.units.adapt(x)
        self.mixture.spread_over(x)
        adapt_experts(self.experts, x, y)

    def m_step(
        self,
        responsibilities: torch.Tensor,
        points: torch.Tensor,
        x: torch.Tensor,
        y: torch.Tensor | None = None,
    ) -> None:
        r"""Update the mixture and the experts by the M-step.

        .. math:: \max \sum_{nk} r_{nk} [\log p(x_n, c_n = k) + \log p_k(y_n \mid x_n)]

        Args:
            responsibilities: r, shape (N, K).
            points: Not used; the mixture is over x.
            x: Rows, shape (N, D).
            y: Targets, shape (N,) or (N, M), or None.
        """
        self.mixture.maximize(x, responsibilities)
        if y is not None:
            self.experts.maximize(x, y, responsibilities)

    def target_log_likelihoods(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Log p_k(y|x), shape (N, K); zero in rows where y is missing."""
        return log_likelihoods(self.expert_distributions(x), y)

    def log_joint(self, x: torch.Tensor, y: torch.Tensor | None = None) -> torch.Tensor:
        """Log p(x, y, c=k) of each row, shape (N, K)."""
        joint = self.mixture.log_joint(x)
        return joint if y is None else joint + log_likelihoods(self.expert_distributions(x), y)

    @property
    def missing_features(self) -> bool:
        """Whether x may lack entries, as it may with affine normal experts."""
        maps = getattr(self.experts, "network", None)
        return isinstance(self.experts, NormalExperts) and hasattr(maps, "in_units")

    def expert_distributions(self, x: torch.Tensor) -> Any:
        r"""The experts' distributions of y given x, shape (N, D), batch shape (N, K).

        If x lacks entries, they are given the observed ones:

        .. math:: y \mid x_o, c = k \sim N(W_k E[x \mid x_o, k] + b_k,
                  W_k \mathrm{Var}[x \mid x_o, k] W_k^\top + \Gamma_k)
        """
        if not rows_are_incomplete():
            return self.experts(x)
        slopes, intercepts, noise = self._affine()
        means, covariances = [], []
        for given, _ in conditionals(in_double(self.mixture.normals), x):
            means.append((slopes @ given.mean.unsqueeze(-1)).squeeze(-1) + intercepts)
            covariances.append(slopes @ given.covariance() @ slopes.mT + noise)
        scale_tril = torch.linalg.cholesky(torch.cat(covariances))
        return rounded(MultivariateNormal(torch.cat(means), scale_tril=scale_tril), x.dtype)

    def completed(
        self, responsibilities: torch.Tensor, x: torch.Tensor, y: torch.Tensor | None = None
    ) -> tuple[Any, ...]:
        """Weights (R, K), and rows (R, D) without gaps and their y, see `m_steps.completion`."""
        normals = in_double(self.mixture.normals)
        if y is None:
            rows, weights, _ = completed(normals, x, responsibilities)
            return weights, rows
        slopes, intercepts, noise = self._affine()
        loc, covariance = normals.mean, covariance_of(normals)
        across = slopes @ covariance
        joint = MultivariateNormal(
            torch.cat([loc, (slopes @ loc.unsqueeze(-1)).squeeze(-1) + intercepts], -1),
            torch.cat(
                [
                    torch.cat([covariance, across.mT], -1),
                    torch.cat([across, across @ slopes.mT + noise], -1),
                ],
                -2,
            ),
        )
        both = torch.cat([x.double(), y.reshape(len(y), -1).double()], -1)
        rows, weights, numbers = completed(joint, both, responsibilities)
        return weights, rows[:, : x.shape[1]].to(x), y[numbers]

    def _affine(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """W (K, M, D), b (K, M) and Γ (K, M, M) or (1, M, M) of affine normal experts."""
        maps = self.experts.linear_predictor(self.x_dim)
        return maps[..., :-1], maps[..., -1], self.experts.covariances().double()

    def model(self, x: torch.Tensor, y: torch.Tensor | None = None) -> None:
        """The generative story of the rows x, shape (N, D), and y, shape (N,) or (N, M)."""
        pyro.module("gmm_moe", self)
        with pyro.plate("data", len(x)):
            # Assumption: c ~ Categorical(π), with π learned or uniform, see `weights`
            c = pyro.sample(
                "c", RelaxedOneHotCategorical(self.prior_temperature, logits=self.mixture.logits)
            )
            # Assumption: x | c = k ~ Normal(μ_k, Σ_k), for the form of Σ_k see `covariance`. For
            # heavy tails use StudentT(3.0, c @ p.mean, c @ p.stddev).to_event(1) with
            # p = self.mixture.normals
            x = pyro.sample("x", choose(c, self.mixture.normals), obs=x)
            # Assumption: y | x, c = k ~ p_k(y | x), for the family see `experts`
            observe_target(choose(c, self.expert_distributions(x)), y)

    def guide(self, x: torch.Tensor, y: torch.Tensor | None = None) -> None:
        """The exact posterior of c given x and, if it is known, y."""
        pyro.module("gmm_moe", self)
        with pyro.plate("data", len(x)):
            # p(c = k | x, y) ∝ p(c = k | x) p_k(y | x), by Bayes' rule
            logits = self.mixture.responsibilities(x).logits
            if y is not None:
                logits = posterior_logits(logits, self.expert_distributions(x), y)
            pyro.sample(
                "c",
                RelaxedOneHotCategorical(
                    self.temperature, logits=logits, max_log_odds=MAX_LOG_ODDS
                ),
            )
