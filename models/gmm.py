"""The Gaussian mixture (paper §2.2)."""

from typing import Any

import pyro
import torch
from torch import nn

from pyro_moe.distributions import (
    MAX_LOG_ODDS,
    PRIOR_TEMPERATURE,
    TEMPERATURE,
    RelaxedOneHotCategorical,
    choose,
    in_double,
)

from .m_steps.completion import completed
from .parts.mixture import GaussianMixture
from .parts.networks import Standardize


class GMM(nn.Module):
    r"""A Gaussian mixture over x, fitted by EM (``loss="em"``) or by gradients.

    .. math:: c \sim \mathrm{Cat}(\pi), \quad x \mid c = k \sim N(\mu_k, \Sigma_k), \quad
              q(c \mid x) = p(c \mid x)

    The guide is the exact posterior. The marginal ELBO is therefore the log-likelihood. The paper
    (§2.2) writes Σ_k^{-1} for the covariance in one place; the covariance is Σ_k.

    Args:
        x_dim: D, columns of x.
        num_components: K.
        covariance: Σ_k ``"full"``, ``"diagonal"`` or ``"tied"``.
        weights: π ``"learned"`` or ``"uniform"``.

    Raises:
        ValueError: If a choice is none of those named.

    Example:
        >>> story = GMM(x_dim=2, num_components=3)
        >>> story.mixture.responsibilities(torch.zeros(7, 2)).probs.shape
        torch.Size([7, 3])
    """

    def __init__(
        self,
        x_dim: int,
        num_components: int,
        *,
        covariance: str = "full",
        weights: str = "learned",
    ) -> None:
        super().__init__()
        self.x_dim, self.num_components = x_dim, num_components
        self.units = Standardize(x_dim)
        self.mixture = GaussianMixture(
            x_dim, num_components, covariance=covariance, weights=weights, units=self.units
        )
        self.temperature = nn.Buffer(torch.tensor(TEMPERATURE))
        self.prior_temperature = nn.Buffer(torch.tensor(PRIOR_TEMPERATURE))

    def adapt(self, x: torch.Tensor) -> None:
        """Set the units from rows x, (N, D), means at distant rows, and Σ_k at the covariance."""
        self.units.adapt(x)
        self.mixture.spread_over(x)

    @property
    def missing_features(self) -> bool:
        """Whether x may lack entries, see `protocols.TakesIncomplete`."""
        return True

    def completed(self, responsibilities: torch.Tensor, x: torch.Tensor) -> tuple[Any, ...]:
        """Weights (R, K) and rows (R, D) without gaps, see `m_steps.completion.completed`."""
        rows, weights, _ = completed(in_double(self.mixture.normals), x, responsibilities)
        return weights, rows

    def log_joint(self, x: torch.Tensor) -> torch.Tensor:
        """Log p(x, c=k) of each row, shape (N, K)."""
        return self.mixture.log_joint(x)

    def model(self, x: torch.Tensor) -> None:
        """The generative story of the rows x, shape (N, D)."""
        pyro.module("gmm", self)
        with pyro.plate("data", len(x)):
            # Assumption: c ~ Categorical(π), with π learned or uniform, see `weights`
            c = pyro.sample(
                "c", RelaxedOneHotCategorical(self.prior_temperature, logits=self.mixture.logits)
            )
            # Assumption: x | c = k ~ Normal(μ_k, Σ_k), for the form of Σ_k see `covariance`. For
            # heavy tails use StudentT(3.0, c @ p.mean, c @ p.stddev).to_event(1) with
            # p = self.mixture.normals
            pyro.sample("x", choose(c, self.mixture.normals), obs=x)

    def guide(self, x: torch.Tensor) -> None:
        """The exact posterior of c given the rows x, shape (N, D)."""
        pyro.module("gmm", self)
        with pyro.plate("data", len(x)):
            # c | x ~ Categorical(p(c | x)), by Bayes' rule
            logits = self.mixture.responsibilities(x).logits
            pyro.sample(
                "c",
                RelaxedOneHotCategorical(
                    self.temperature, logits=logits, max_log_odds=MAX_LOG_ODDS
                ),
            )
