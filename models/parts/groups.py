"""A Gaussian mixture whose components are in groups."""

import numpy as np
import torch

from pyro_moe.distributions import (
    MAX_LOG_ODDS,
    PRIOR_TEMPERATURE,
    TEMPERATURE,
    Mixture,
    Normal,
)

from .mixture import GaussianMixture

# Log-odds of -b in q give the same relaxed values as those of -b τ_p/τ in p. With larger ones in p,
# components that a group excludes would count against rows that are sure of theirs.
MAX_PRIOR_LOG_ODDS = MAX_LOG_ODDS * PRIOR_TEMPERATURE / TEMPERATURE
MIN_SCALE = 0.5
ITERATIONS = 50


class GroupedMixture(GaussianMixture):
    r"""A mixture of K normals whose means are near the centers of G groups.

    .. math:: W^{-1/2} \mu_k \mid \text{group } g \sim N(m_g, s^2 I), \quad
              W = \sum_k \pi_k \Sigma_k

    .. math:: p(c_1 = g \mid c = k) = \mathrm{softmax}_g \log N(W^{-1/2} \mu_k \mid m_g, s^2 I)

    .. math:: c_1 \sim \mathrm{Cat}(\rho), \quad c \mid c_1 = g \sim \mathrm{Cat}(\rho_g), \quad
              \rho_g \rho_{gk} = \pi_k\, p(c_1 = g \mid c = k), \quad z \mid c = k \sim
              N(\mu_k, \Sigma_k)

    A component has one of G equally probable groups, which is summed out: its mean is a draw from a
    mixture over groups, and the group of a row is that of its component. Distances are measured in
    units of the components' own spread W. They are the same in all linear coordinates of z, which
    a story with an encoder and a decoder could choose freely. In these units s is at least 0.5.

    The rows alone do not identify c_1, because every ρ with the same sums over groups gives the
    same p(z). The prior of the means identifies it. It has K terms, next to N of the rows.

    Args:
        dim: Length of z.
        num_components: K.
        num_groups: G.
        covariance: See `GaussianMixture`.
        weights: π, see `GaussianMixture`.

    Raises:
        ValueError: If there are fewer components than groups, or as in `GaussianMixture`.

    Example:
        >>> mixture = GroupedMixture(2, 5, num_groups=2)
        >>> mixture.log_memberships().shape
        torch.Size([5, 2])
    """

    def __init__(
        self,
        dim: int,
        num_components: int,
        *,
        num_groups: int,
        covariance: str = "full",
        weights: str = "uniform",
    ) -> None:
        if not 1 <= num_groups <= num_components:
            raise ValueError(
                f"expected num_groups from 1 to num_components={num_components}; got {num_groups}"
            )
        self.num_groups = num_groups
        super().__init__(dim, num_components, covariance=covariance, weights=weights)

    @classmethod
    def like(cls, mixture: GaussianMixture, num_groups: int) -> "GroupedMixture":
        """A mixture of the same sizes and kinds, whose components are in groups."""
        return cls(
            mixture.dim,
            mixture.num_components,
            num_groups=num_groups,
            covariance=mixture.covariance,
            weights=mixture.weights,
        )

    def reset_parameters(self) -> None:
        """Set the components as in `GaussianMixture`, and standard normal centers of groups."""
        super().reset_parameters()
        if not hasattr(self, "group_loc"):
            self.group_loc = torch.nn.Parameter(torch.empty(self.num_groups, self.dim))
            self.group_log_scale = torch.nn.Parameter(torch.empty(()))
        torch.nn.init.normal_(self.group_loc)
        torch.nn.init.zeros_(self.group_log_scale)

    def num_free_parameters(self) -> int:
        """The number of those of the components, of the groups' centers, and s."""
        return super().num_free_parameters() + self.group_loc.numel() + 1

    def centers(self) -> torch.Tensor:
        """The means in units of the components' spread, W^(-1/2) μ_k, shape (K, L)."""
        factors = self.scale_tril
        weights = self.logits.softmax(-1) if len(factors) > 1 else factors.new_ones(1)
        spread = torch.einsum("k,kij,klj->il", weights, factors, factors)
        factor = torch.linalg.cholesky(spread)
        return torch.linalg.solve_triangular(factor, self.loc.mT, upper=False).mT

    @property
    def group_scale(self) -> torch.Tensor:
        """The standard deviation s of centers within a group."""
        return (MIN_SCALE**2 + (2.0 * self.group_log_scale).exp()).sqrt()

    def center_distribution(self) -> Mixture:
        """The distribution of the center of a component, a mixture over groups."""
        logits = self.group_loc.new_zeros(self.num_groups)
        return Mixture(logits, Normal(self.group_loc, self.group_scale).to_event(1))

    def log_memberships(self) -> torch.Tensor:
        """Log p(c_1 = g | c = k), shape (K, G), without gradients.

        Where z depends on c alone, the bound of a row does not depend on them, because guide and
        model have the same. Only a relaxed bound does, which grows as the groups merge.
        """
        groups = Normal(self.group_loc, self.group_scale).to_event(1)
        return groups.log_prob(self.centers().unsqueeze(-2)).log_softmax(-1).detach()

    def layer_logits(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Log p(c_1 = g), shape (G,), and log p(c = k | c_1 = g), shape (G, K)."""
        joint = (self.logits.log_softmax(-1).unsqueeze(-1) + self.log_memberships()).mT
        of_groups = joint.logsumexp(-1)
        return of_groups, joint - of_groups.unsqueeze(-1)

    def maximize(self, z: torch.Tensor, responsibilities: torch.Tensor) -> None:
        """Set the components as in `GaussianMixture.maximize`, and find their groups.

        Args:
            z: Points, shape (N, L).
            responsibilities: r, shape (N, K).
        """
        super().maximize(z, responsibilities)
        self.find_groups()

    @torch.no_grad()
    def find_groups(self) -> None:
        r"""Set m_g and s to maximize the density of the centers, by EM.

        It starts from the clusters of Ward's method, which merges those groups whose union has the
        least sum of squares.
        """
        points = self.centers().double()
        r = _ward(points, self.num_groups)
        for _ in range(ITERATIONS):
            loc = (r.mT @ points) / r.sum(0).unsqueeze(-1)
            squares = (points.unsqueeze(1) - loc).square()
            variance = (r * squares.sum(-1)).sum() / points.numel()
            self.group_loc.copy_(loc)
            self.group_log_scale.copy_((variance - MIN_SCALE**2).clamp_min(1e-2).log() / 2)
            r = self.log_memberships().double().exp() + 1e-12


def _ward(points: torch.Tensor, number: int) -> torch.Tensor:
    """Assignments (K, G) of points (K, L) to the groups of Ward's method."""
    labels = np.zeros(len(points), dtype=int)
    if number > 1:
        from scipy.cluster.hierarchy import fcluster, linkage

        merged = linkage(points.cpu().numpy(), "ward")
        labels = fcluster(merged, number, "maxclust") - 1
    one_hot = torch.eye(number, dtype=points.dtype, device=points.device)
    return one_hot[torch.as_tensor(labels, device=points.device)]
