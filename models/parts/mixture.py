"""The Gaussian mixture: the prior of every clustering story, and a story by itself."""

import pyro.distributions as dist
import torch
from sklearn.cluster import kmeans_plusplus
from torch import nn

from .targets import choose

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
        shrinkage: λ, the share of a diagonal target in the Σ_k that `maximize` finds; more than
            none where a component may have fewer rows than z has entries.
        common_scale: Whether the columns of z share one unit: the target is then the mean of
            their variances times I, and otherwise the variance of each.

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
        if weights == "learned":
            self.logits = nn.Parameter(torch.empty(num_components))
        else:
            self.register_buffer("logits", torch.empty(num_components))
        self.loc = nn.Parameter(torch.empty(num_components, dim))
        num_scales = 1 if covariance == "tied" else num_components
        self.log_scale = nn.Parameter(torch.empty(num_scales, dim))
        if covariance != "diagonal":
            # L_k = diag(s_k) (I + strictly lower triangle): positive diagonal, no constraint
            self.correlation = nn.Parameter(torch.empty(*self.log_scale.shape, dim))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Start from equal weights, standard normal means and unit covariances."""
        nn.init.zeros_(self.logits)
        nn.init.normal_(self.loc)
        nn.init.zeros_(self.log_scale)
        if self.covariance != "diagonal":
            nn.init.zeros_(self.correlation)

    @property
    def scale_tril(self) -> torch.Tensor:
        """The Cholesky factors L_k, shape (K, L, L), or (1, L, L) when tied."""
        scale = self.log_scale.exp()
        if self.covariance == "diagonal":
            return torch.diag_embed(scale)
        eye = torch.eye(self.dim, dtype=scale.dtype, device=scale.device)
        return scale.unsqueeze(-1) * (self.correlation.tril(-1) + eye)

    def assignment(self) -> dist.Distribution:
        """p(c), a one-hot distribution over the K components."""
        return dist.OneHotCategorical(logits=self.logits)

    def component(self, c: torch.Tensor) -> dist.Distribution:
        r"""p(z|c) for one-hot c, and its continuation to the inside of the simplex.

        For relaxed c the means and the Cholesky factors are interpolated, N(Σ_k c_k μ_k, L L^T)
        with L = Σ_k c_k L_k: triangular with a positive diagonal, so always a density, and it
        tends to p(z|c) as c becomes one-hot, which is what the paper (§7, note) asks.

        Args:
            c: One-hot or relaxed assignments, shape (..., K).
        """
        loc = c @ self.loc
        if self.covariance == "diagonal":
            return dist.Normal(loc, c @ self.log_scale.exp()).to_event(1)
        if self.covariance == "tied":
            return dist.MultivariateNormal(loc, scale_tril=self.scale_tril[0])
        shared = self.num_components < min(self.dim, c.shape[:-1].numel())
        if shared and not c.requires_grad and _is_one_hot(c):
            # a Cholesky factor for every row is 10 GB for 4,096 images of 784 pixels
            return choose(c, dist.MultivariateNormal(self.loc, scale_tril=self.scale_tril))
        scale_tril = torch.einsum("...k,kij->...ij", c, self.scale_tril)
        return dist.MultivariateNormal(loc, scale_tril=scale_tril)

    def responsibilities(self, z: torch.Tensor) -> dist.Distribution:
        r"""p(c|z) by Bayes' rule, in log space.

        .. math:: p(c = k \mid z) = \mathrm{softmax}_k [\log \pi_k + \log N(z \mid \mu_k, \Sigma_k)]

        Args:
            z: Points, shape (..., L).
        """
        return dist.OneHotCategorical(logits=self.log_joint(z))

    def log_joint(self, z: torch.Tensor) -> torch.Tensor:
        """Log p(z, c=k) for each k, shape (..., K)."""
        one_hot = torch.eye(self.num_components, dtype=z.dtype, device=z.device)
        log_density = self.component(one_hot).log_prob(z.unsqueeze(-2))
        return self.logits.log_softmax(-1) + log_density

    def spread_over(self, x: torch.Tensor) -> None:
        """Start with means at distant rows of x (k-means++) and the covariance of all rows.

        Args:
            x: Points, shape (N, L), at least K of them.
        """
        seed = int(torch.randint(2**31 - 1, ()))
        _, rows = kmeans_plusplus(x.cpu().numpy(), self.num_components, random_state=seed)
        self.maximize(x, x.new_full((len(x), self.num_components), 1.0 / self.num_components))
        self.loc.copy_(x[torch.as_tensor(rows, dtype=torch.long)])

    def maximize(self, z: torch.Tensor, responsibilities: torch.Tensor) -> None:
        r"""Set the parameters to the most likely ones given weighted points: EM's M-step.

        .. math::
            \pi_k \propto N_k = \sum_n r_{nk}, \quad
            \mu_k = \frac{1}{N_k} \sum_n r_{nk} z_n, \quad
            \Sigma_k = \frac{1 - \lambda}{N_k} \sum_n r_{nk} (z_n - \mu_k)(z_n - \mu_k)^\top
            + \lambda T + \epsilon

        with T the target of shrinkage λ, and ε diagonal, a millionth of each column's variance,
        against components that shrink onto one point. A component without weight takes the
        moments of all points; uniform π stays.

        Args:
            z: Points, shape (N, L).
            responsibilities: Weights r, shape (N, K).
        """
        z, r = z.double(), responsibilities.double()
        counts = r.sum(0)
        r = torch.where(counts > 0, r, torch.ones_like(r))
        loc, covariance = _moments(z, r / r.sum(0))
        if self.covariance == "tied":
            covariance = torch.einsum("k,kij->ij", counts / counts.sum(), covariance).unsqueeze(0)
        if self.covariance == "diagonal":
            covariance = torch.diag_embed(covariance.diagonal(dim1=-2, dim2=-1))
        covariance = (1.0 - self.shrinkage) * covariance + self.shrinkage * self._target(z)
        rounding = torch.finfo(torch.float32).eps
        ridge = 1e-6 * z.var(0, correction=0) + (rounding * z.mean(0)) ** 2
        ridge = torch.where(ridge > 0, ridge, rounding**2)  # where all is zero
        scale_tril = torch.linalg.cholesky(covariance + ridge.diag_embed())
        scale = scale_tril.diagonal(dim1=-2, dim2=-1)
        with torch.no_grad():
            self.loc.copy_(loc)
            self.log_scale.copy_(scale.log())
            if self.covariance != "diagonal":
                self.correlation.copy_((scale_tril / scale.unsqueeze(-1)).tril(-1))
            if self.weights == "learned":
                self.logits.copy_(counts.clamp_min(torch.finfo(torch.float32).tiny).log())

    def _target(self, z: torch.Tensor) -> torch.Tensor:
        """The diagonal matrix towards which covariances of points z, (N, L), are shrunk."""
        variance = z.var(0, correction=0)
        average = variance.mean().expand_as(variance)
        constant = variance <= 0
        return torch.where(constant | self.common_scale, average, variance).diag_embed()


def _moments(z: torch.Tensor, shares: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Means (K, L) and covariances (K, L, L) of points z, (N, L), under shares (N, K)."""
    loc, covariance = shares.T @ z, z.new_empty(shares.shape[1], z.shape[1], z.shape[1])
    for k, share in enumerate(shares.T):
        rows = share > 0  # of many columns each row belongs to hardly more than one component
        centered = z[rows] - loc[k]
        covariance[k] = centered.mT @ (share[rows].unsqueeze(-1) * centered)
    return loc, covariance


def _is_one_hot(c: torch.Tensor) -> bool:
    return bool(((c == 0) | (c == 1)).all())
