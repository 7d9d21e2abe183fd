"""The Gaussian mixture over x, or over the latent z of clustering stories."""

import pyro.distributions as dist
import torch
from torch import nn

from pyro_moe.distributions import (
    MultivariateNormal,
    Normal,
    in_double,
    one_hot_of,
    rows_are_incomplete,
)

from ..m_steps.blocks import Derived, some_rows, total
from ..m_steps.completion import marginal_log_prob
from ..m_steps.moments import distant_rows, mean_and_variance, shrunk, weighted_moments
from .networks import Standardize, filled

COVARIANCES = ("full", "diagonal", "tied")
WEIGHTS = ("uniform", "learned")


class GaussianMixture(nn.Module):
    r"""A mixture of K normals with learned means and covariances.

    .. math:: c \sim \mathrm{Cat}(\pi), \quad z \mid c = k \sim N(\mu_k, \Sigma_k),
              \quad \Sigma_k = L_k L_k^\top

    Args:
        dim: Length of z.
        num_components: K.
        covariance: ``"full"`` (a lower-triangular L_k for each component, paper
            Algorithm 1), ``"diagonal"``, or ``"tied"`` (one full L for all).
        weights: ``"uniform"`` (paper §6) or ``"learned"`` π.
        shrinkage: λ, from 0 to 1, the weight of a diagonal target in the estimates Σ_k of
            `maximize`. Choose λ > 0 if a component may have fewer rows than z has columns.
        common_scale: Whether the columns of z share one unit. The target then is the mean of
            their variances times I. Otherwise it is the diagonal matrix of their variances.
        units: A module that standardizes z by m and s, shared by the story. The parameters then
            are those of (z - m) / s. None for m = 0, s = 1.

    Raises:
        ValueError: If ``covariance`` or ``weights`` is none of these, or K < 1.

    Example:
        >>> mixture = GaussianMixture(2, 3)
        >>> mixture.responsibilities(torch.zeros(5, 2)).probs.shape
        torch.Size([5, 3])
    """

    logits: torch.Tensor

    def __init__(
        self,
        dim: int,
        num_components: int,
        *,
        covariance: str = "full",
        weights: str = "uniform",
        shrinkage: float = 0.0,
        common_scale: bool = False,
        units: Standardize | None = None,
    ) -> None:
        super().__init__()
        if num_components < 1:
            raise ValueError(f"expected num_components of at least 1; got {num_components}")
        if covariance not in COVARIANCES:
            raise ValueError(f"expected covariance in {COVARIANCES}; got {covariance!r}")
        if weights not in WEIGHTS:
            raise ValueError(f"expected weights in {WEIGHTS}; got {weights!r}")
        self.dim, self.num_components = dim, num_components
        self.covariance, self.weights = covariance, weights
        self.shrinkage, self.common_scale = shrinkage, common_scale
        self.units = units
        if weights == "learned":
            self.logits = nn.Parameter(torch.empty(num_components))
        else:
            self.register_buffer("logits", torch.empty(num_components))
        self.loc = nn.Parameter(torch.empty(num_components, dim))
        num_scales = 1 if covariance == "tied" else num_components
        self.log_scale = nn.Parameter(torch.empty(num_scales, dim))
        if covariance != "diagonal":
            # L_k = diag(s_k) (I + strictly lower triangle) needs no constraint
            self.correlation = nn.Parameter(torch.empty(*self.log_scale.shape, dim))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set equal weights, standard normal means and unit covariances."""
        nn.init.zeros_(self.logits)
        nn.init.normal_(self.loc)
        nn.init.zeros_(self.log_scale)
        if self.covariance != "diagonal":
            nn.init.zeros_(self.correlation)

    def num_free_parameters(self) -> int:
        """The number of weights but one, of means and of variances and covariances."""
        below = 0 if self.covariance == "diagonal" else self.dim * (self.dim - 1) // 2
        weights = self.num_components - 1 if self.weights == "learned" else 0
        each = self.log_scale.shape[0] * (self.dim + below)
        return weights + self.loc.numel() + each

    @property
    def scale_tril(self) -> torch.Tensor:
        """The Cholesky factors L_k, shape (K, L, L), or (1, L, L) when tied."""
        scale = self.log_scale.exp()
        if self.covariance == "diagonal":
            return torch.diag_embed(scale)
        eye = torch.eye(self.dim, dtype=scale.dtype, device=scale.device)
        return scale.unsqueeze(-1) * (self.correlation.tril(-1) + eye)

    @property
    def normals(self) -> dist.Distribution:
        """The K normals N(μ_k, Σ_k) in the units of z, batch shape (K,)."""
        loc = self.loc if self.units is None else self.units.inverse(self.loc)
        unit = torch.ones_like(self.loc[0]) if self.units is None else self.units.scale
        if self.covariance == "diagonal":
            return Normal(loc, unit * self.log_scale.exp()).to_event(1)
        return MultivariateNormal(loc, scale_tril=unit.unsqueeze(-1) * self.scale_tril)

    def cholesky(self, c: torch.Tensor) -> torch.Tensor:
        r"""The Cholesky factor of Σ_c for one-hot c, interpolated for relaxed ones.

        .. math:: L(c) = \sum_k c_k L_k

        It is lower triangular with a positive diagonal and therefore a valid Cholesky factor. As
        c becomes one-hot, N(c @ μ, L(c) L(c)^T) converges to p(z|c), which the paper (§7, note)
        requires.

        Args:
            c: One-hot or relaxed assignments, shape (..., K).

        Returns:
            Shape (..., L, L).
        """
        if self.covariance == "tied":
            return self.scale_tril[0]
        return torch.einsum("...k,kij->...ij", c, self.scale_tril)

    def responsibilities(self, z: torch.Tensor) -> dist.Distribution:
        r"""The posterior p(c|z) by Bayes' rule.

        .. math:: p(c = k \mid z) = \mathrm{softmax}_k [\log \pi_k + \log N(z \mid \mu_k, \Sigma_k)]

        Args:
            z: Points, shape (..., L).
        """
        by_component = self._log_joint(z).movedim(-1, 0)  # as it lies in memory
        logits = by_component.log_softmax(0).to(z.dtype)  # rounded last
        return one_hot_of(logits.movedim(0, -1))

    def log_joint(self, z: torch.Tensor) -> torch.Tensor:
        """Log p(z, c=k) for each k, shape (..., K)."""
        return self._log_joint(z).to(z.dtype)

    def _log_joint(self, z: torch.Tensor) -> torch.Tensor:
        normals, log_weights = in_double(self.normals), self.logits.double().log_softmax(-1)
        if rows_are_incomplete():
            return log_weights + marginal_log_prob(normals, z)
        return log_weights + normals.log_prob(z.double().unsqueeze(-2))

    @torch.no_grad()
    def spread_over(self, x: torch.Tensor) -> None:
        """Set means to distant rows of x (k-means++), and Σ_k to the covariance of all rows.

        Args:
            x: Points, shape (N, L), at least K of them.
        """
        (some,) = some_rows(x)
        some = filled(some)
        equal = some.new_full((1, 1), 1.0 / self.num_components, dtype=torch.float64)
        self.maximize(x if len(x) > len(some) else some, equal.expand(len(x), self.num_components))
        u = some if self.units is None else self.units(some)
        self.loc.copy_(u[distant_rows(u, self.num_components)])

    def maximize(self, z: torch.Tensor, responsibilities: torch.Tensor) -> None:
        r"""Set the parameters to their estimates from weighted points, the M-step of EM.

        .. math:: \pi_k \propto N_k = \sum_n r_{nk}, \quad
                  \mu_k = \frac{1}{N_k} \sum_n r_{nk} z_n, \quad
                  \Sigma_k = (1 - \lambda) S_k + \lambda T + \epsilon

        with S_k the weighted covariances, see `weighted_moments`, and T the target of the
        shrinkage λ, see `shrunk`. The diagonal matrix ε is a millionth of the variance of each
        column. It keeps Σ_k nonsingular when a component contracts to a point. A component with
        zero weight takes the moments of all points. Uniform π is not updated. With units, z is
        standardized first.

        Args:
            z: Points, shape (N, L).
            responsibilities: r, shape (N, K).
        """
        z, r = z.double(), responsibilities.double()
        counts = total(lambda part: part.sum(0), r)
        mean, variance = mean_and_variance(z, Derived(lambda part: part.sum(-1, keepdim=True), r))
        if self.units is not None:
            mean, variance = self.units(mean), self.units.slope.square() * variance
        if not (counts > 0).all():
            r = torch.where(counts > 0, r, torch.ones_like(r))
        loc, covariance = weighted_moments(z, r, self.units)
        if self.covariance == "tied":
            covariance = torch.einsum("k,kij->ij", counts / counts.sum(), covariance).unsqueeze(0)
        if self.covariance == "diagonal":
            covariance = torch.diag_embed(covariance.diagonal(dim1=-2, dim2=-1))
        covariance = shrunk(covariance, variance, self.shrinkage, common=self.common_scale)
        rounding = torch.finfo(torch.float32).eps  # of the points, which may be far from zero
        ridge = 1e-6 * variance + (rounding * mean) ** 2
        ridge = torch.where(ridge > 0, ridge, rounding**2)  # for columns of zeros
        self._take(counts, loc, torch.linalg.cholesky(covariance + ridge.diag_embed()))

    @torch.no_grad()
    def _take(self, counts: torch.Tensor, loc: torch.Tensor, scale_tril: torch.Tensor) -> None:
        """Set the parameters to π ∝ counts (K,), means (K, L) and Cholesky factors."""
        scale = scale_tril.diagonal(dim1=-2, dim2=-1)
        self.loc.copy_(loc)
        self.log_scale.copy_(scale.log())
        if self.covariance != "diagonal":
            self.correlation.copy_((scale_tril / scale.unsqueeze(-1)).tril(-1))
        if self.weights == "learned":
            self.logits.copy_(counts.clamp_min(torch.finfo(torch.float32).tiny).log())
