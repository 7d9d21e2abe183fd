"""Experts: K conditional distributions of the target, computed side by side.

A module of experts maps a context to a distribution of batch shape (N, K). Which context, the
features or a latent mean, is the story's affair.
"""

import math
from collections.abc import Sequence
from typing import Any

import pyro.distributions as dist
import torch
from torch import nn

from pyro_moe.distributions.mixture import Stacked

from ..m_steps.lbfgs import minimize_in_place
from .networks import AffineMaps, Standardize
from .targets import known_rows, log_likelihoods

COVARIANCES = ("scalar", "diagonal", "full")
MIN_SCALE = 1e-3


class Experts(nn.Module):
    r"""A module from a context to K distributions of y, whose M-step is by gradients.

    .. math:: \max \sum_{nk} r_{nk} \log p_k(y_n \mid x_n) - \frac{|W|^2}{2 s^2}

    with W the weights of the experts' maps, and s in standard units: where classes can be
    separated, these weights would grow without end but for s. EM with such a step is generalized
    EM: the penalized likelihood rises, not always to the step's maximum.
    """

    evaluated_once = True

    def maximize(
        self,
        context: torch.Tensor,
        y: torch.Tensor,
        weights: torch.Tensor,
        *,
        iterations: int = 50,
        prior_scale: float = 5.0,
    ) -> None:
        """Raise the weighted likelihood from where the experts are: EM's M-step.

        Args:
            context: What the experts see, shape (N, C).
            y: Targets, shape (N,) or (N, M); rows with NaN are left out.
            weights: Responsibilities r, shape (N, K).
            iterations: L-BFGS iterations at the most.
            prior_scale: s, in standard units.
        """
        y, context, weights = known_rows(y, context, weights)
        weights = weights.to(context)
        named = {name: p for name, p in self.named_parameters() if p.requires_grad}
        maps = [p for name, p in named.items() if name.endswith("weight")]

        def loss() -> torch.Tensor:
            likelihood = (weights * log_likelihoods(self(context), y)).sum()
            penalty = sum(p.square().sum() for p in maps) / (2 * prior_scale**2)
            return (penalty - likelihood) / len(y)

        minimize_in_place(loss, named.values(), iterations=iterations)


class NormalExperts(Experts):
    r"""Normal experts: what the paper (§4.1) calls the regression model.

    .. math:: p_k(y \mid x) = N(y \mid m + s f_k(x),\; s \Gamma_k s)

    with the target's units m, s. Γ_k is scalar, diagonal or full; its scales have a floor, so
    that no likelihood is won by a spike on a few rows.

    Args:
        network: Maps a context to ``(..., K, M)``, such as `AffineMaps`.
        num_components: K.
        y_dim: M.
        covariance: Γ_k ``"scalar"``, ``"diagonal"`` or ``"full"``.
        initial_scale: Γ_k's scale at the start, in the target's standard deviations.
        min_scale: The floor, likewise. Where there is hardly any noise and inputs are many, a
            higher one keeps gradient steps from being far longer than the noise.

    Raises:
        ValueError: If ``covariance`` is none of these.

    Example:
        >>> experts = NormalExperts(AffineMaps(2, 5, 3), num_components=5, y_dim=3)
        >>> experts(torch.zeros(7, 2)).batch_shape, experts(torch.zeros(7, 2)).event_shape
        (torch.Size([7, 5]), torch.Size([3]))
    """

    def __init__(
        self,
        network: nn.Module,
        num_components: int,
        y_dim: int,
        *,
        covariance: str = "diagonal",
        initial_scale: float = 1.0,
        min_scale: float = MIN_SCALE,
    ) -> None:
        super().__init__()
        if covariance not in COVARIANCES:
            raise ValueError(f"expected covariance in {COVARIANCES}; got {covariance!r}")
        self.network, self.covariance = network, covariance
        self.initial_scale, self.min_scale = initial_scale, min_scale
        self.units = Standardize(y_dim)
        width = 1 if covariance == "scalar" else y_dim
        self.log_scale = nn.Parameter(torch.empty(num_components, width))
        if covariance == "full":
            # L_k = diag(s_k) (I + strictly lower triangle), Γ_k = L_k L_k^T
            self.correlation = nn.Parameter(torch.empty(num_components, y_dim, y_dim))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Start from ``initial_scale`` and no correlation."""
        nn.init.constant_(self.log_scale, math.log(self.initial_scale))
        if self.covariance == "full":
            nn.init.zeros_(self.correlation)

    def adapt(self, x: torch.Tensor, y: torch.Tensor) -> None:
        """Take the units of the targets y, shape (N, M)."""
        self.units.adapt(y)

    def forward(self, context: torch.Tensor) -> dist.Distribution:
        """The K distributions of y given a context, event shape ``(M,)``."""
        loc = self.units.inverse(self.network(context))
        scale = self.units.scale * (self.min_scale + self.log_scale.exp())
        if self.covariance != "full":
            return dist.Normal(loc, scale).to_event(1)
        eye = torch.eye(loc.shape[-1], dtype=loc.dtype, device=loc.device)
        scale_tril = scale.unsqueeze(-1) * (self.correlation.tril(-1) + eye)
        return dist.MultivariateNormal(loc, scale_tril=scale_tril)

    def maximize(
        self, context: torch.Tensor, y: torch.Tensor, weights: torch.Tensor, **step: Any
    ) -> None:
        r"""Set the experts to the likeliest ones of weighted rows: EM's M-step.

        In closed form for affine maps (weighted least squares, then Γ_k from the residuals),
        by gradients for other networks.

        Args:
            context: What the experts see, shape (N, C).
            y: Targets, shape (N,) or (N, M); rows with NaN are left out.
            weights: Responsibilities r, shape (N, K); an expert without any takes all rows.
            **step: What the step by gradients takes, see `Experts`.
        """
        y, context, weights = known_rows(y, context, weights)
        if not isinstance(self.network, AffineMaps):
            super().maximize(context, y, weights, **step)
            return
        weights = torch.where(weights.sum(0) > 0, weights, torch.ones_like(weights))
        targets = self.units(y.reshape(len(y), -1).to(self.units.loc))
        residuals = self.network.least_squares(context, targets, weights)
        share = weights.double() / weights.double().sum(0).clamp_min(1e-12)
        covariance = torch.einsum("nk,nki,nkj->kij", share, residuals, residuals)
        with torch.no_grad():
            self._take(covariance)

    def _take(self, covariance: torch.Tensor) -> None:
        """Set Γ_k from covariances (K, M, M)."""
        variance = covariance.diagonal(dim1=-2, dim2=-1)
        if self.covariance == "scalar":
            variance = variance.mean(-1, keepdim=True)
        if self.covariance == "full":
            floor = self.min_scale**2 * torch.ones_like(variance)
            tril = torch.linalg.cholesky(covariance + floor.diag_embed())
            scale = tril.diagonal(dim1=-2, dim2=-1)
            self.correlation.copy_((tril / scale.unsqueeze(-1)).tril(-1))
        else:
            scale = variance.sqrt()
        self.log_scale.copy_((scale - self.min_scale).clamp_min(1e-3 * self.min_scale).log())


class StudentTExperts(Experts):
    r"""Experts with heavy tails, for targets with outliers.

    .. math:: p_k(y \mid x) = \prod_m \mathrm{t}_{\nu_k}
              \Big( \frac{y_m - m_m}{s_m} \,\Big|\, f_k(x)_m, \sigma_{km} \Big) \frac{1}{s_m},
              \quad \nu_k > 2

    with the target's units m, s by its median and quartiles, which wild values do not spoil.

    Args:
        network: Maps a context to ``(..., K, M)``.
        num_components: K.
        y_dim: M.

    Example:
        >>> experts = StudentTExperts(AffineMaps(2, 5, 3), num_components=5, y_dim=3)
        >>> experts(torch.zeros(7, 2)).batch_shape
        torch.Size([7, 5])
    """

    def __init__(self, network: nn.Module, num_components: int, y_dim: int) -> None:
        super().__init__()
        self.network, self.units = network, Standardize(y_dim, robust=True)
        self.log_scale = nn.Parameter(torch.empty(num_components, y_dim))
        self.log_df = nn.Parameter(torch.empty(num_components, 1))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Start from a scale of one and ν = 6."""
        nn.init.zeros_(self.log_scale)
        nn.init.constant_(self.log_df, math.log(4.0))

    def adapt(self, x: torch.Tensor, y: torch.Tensor) -> None:
        """Take the units of the targets y, shape (N, M)."""
        self.units.adapt(y)

    def forward(self, context: torch.Tensor) -> dist.Distribution:
        """The K distributions of y given a context, event shape ``(M,)``."""
        loc = self.units.inverse(self.network(context))
        scale = self.units.scale * (MIN_SCALE + self.log_scale.exp())
        df = 2.0 + self.log_df.clamp(-10.0, 10.0).exp()  # where it hardly matters, not to infinity
        return dist.StudentT(df, loc, scale).to_event(1)


class CategoricalExperts(Experts):
    r"""Experts on classes: the paper's (§4.2) classification model.

    .. math:: p_k(y = l \mid x) = \mathrm{softmax}_l\, f_k(x)

    Args:
        network: Maps a context to logits ``(..., K, M)`` of M classes.

    Example:
        >>> CategoricalExperts(AffineMaps(2, 5, 3))(torch.zeros(7, 2)).probs.shape
        torch.Size([7, 5, 3])
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, context: torch.Tensor) -> dist.Distribution:
        """The K distributions of the class 0, …, M-1 given a context, event shape ``()``."""
        return dist.Categorical(logits=self.network(context))


class BernoulliExperts(Experts):
    r"""Experts on M answers of yes (1) or no (0).

    .. math:: p_k(y \mid x) = \prod_m \mathrm{Ber}(y_m \mid \mathrm{logit} = f_k(x)_m)

    Args:
        network: Maps a context to logits ``(..., K, M)``.

    Example:
        >>> BernoulliExperts(AffineMaps(2, 5, 1))(torch.zeros(7, 2)).batch_shape
        torch.Size([7, 5])
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, context: torch.Tensor) -> dist.Distribution:
        """The K distributions of y given a context, event shape ``(M,)``."""
        return dist.Bernoulli(logits=self.network(context)).to_event(1)


class PoissonExperts(Experts):
    r"""Experts on M counts.

    .. math:: p_k(y \mid x) = \prod_m \mathrm{Poisson}(y_m \mid \exp(a_m + f_k(x)_m))

    with a the logarithm of the mean count. The exponent is kept below 20: far from the data the
    exponential must not overflow.

    Args:
        network: Maps a context to ``(..., K, M)``.
        y_dim: M.

    Example:
        >>> PoissonExperts(AffineMaps(2, 5, 1), y_dim=1)(torch.zeros(7, 2)).batch_shape
        torch.Size([7, 5])
    """

    offset: torch.Tensor

    def __init__(self, network: nn.Module, y_dim: int) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("offset", torch.zeros(y_dim))

    def adapt(self, x: torch.Tensor, y: torch.Tensor) -> None:
        """Take the mean of the counts y, shape (N, M)."""
        self.offset.copy_(y.mean(0).clamp_min(1e-3).log())

    def forward(self, context: torch.Tensor) -> dist.Distribution:
        """The K distributions of y given a context, event shape ``(M,)``."""
        log_rate = (self.offset + self.network(context)).clamp(-20.0, 20.0)
        return dist.Poisson(log_rate.exp()).to_event(1)


class StackedExperts(Experts):
    """K conditional distributions of any kinds as one module of experts.

    Args:
        experts: Modules from a context to a distribution of batch shape (N,).

    Example:
        >>> from .conditionals import NormalConditional
        >>> experts = StackedExperts([NormalConditional(nn.Linear(2, 6)) for _ in range(5)])
        >>> experts(torch.zeros(7, 2)).batch_shape
        torch.Size([7, 5])
    """

    def __init__(self, experts: Sequence[nn.Module]) -> None:
        super().__init__()
        self.experts = nn.ModuleList(experts)

    def adapt(self, x: torch.Tensor, y: torch.Tensor) -> None:
        """Let each expert take the units of the rows x, shape (N, D), and y, shape (N, M)."""
        for expert in self.experts:
            adapt_experts(expert, x, y)

    def forward(self, context: torch.Tensor) -> dist.Distribution:
        """The K distributions of y given a context."""
        return Stacked([expert(context) for expert in self.experts])


CONTEXTS = ("x", "z")
FAMILIES = (
    "normal",
    "normal-scalar",
    "normal-full",
    "student-t",
    "categorical",
    "bernoulli",
    "poisson",
)


def experts_of(
    experts: str | nn.Module | Sequence[nn.Module],
    in_features: int = 0,
    num_components: int = 0,
    y_dim: int = 0,
    *,
    units: nn.Module | None = None,
) -> nn.Module:
    """A module of experts by the name of its family, with affine maps, or the given one.

    Args:
        experts: ``"normal"``, whose Γ_k is diagonal, ``"normal-scalar"``, ``"normal-full"``,
            ``"student-t"``, ``"categorical"`` (y_dim classes),
            ``"bernoulli"`` or ``"poisson"``; a module from a context to a distribution of batch
            shape (N, K); or K modules to distributions of batch shape (N,).
        in_features: Length of the context; this and what follows are for a name.
        num_components: K.
        y_dim: M, the columns of y, or the number of classes.
        units: The context's units.

    Raises:
        ValueError: If the name is none of these, or there are not as many modules as components.

    Example:
        >>> experts_of("poisson", 2, 5, 1)(torch.zeros(7, 2)).event_shape
        torch.Size([1])
    """
    if isinstance(experts, nn.Module) and not isinstance(experts, nn.ModuleList):
        return experts
    if not isinstance(experts, str):
        if num_components and len(experts) != num_components:
            raise ValueError(
                f"expected an expert for each of {num_components} components; got {len(experts)}"
            )
        return StackedExperts(list(experts))
    if num_components < 1:
        raise ValueError(f"expected num_components of at least 1; got {num_components}")
    network = AffineMaps(in_features, num_components, y_dim, units=units)
    if experts in ("normal", "normal-scalar", "normal-full"):
        covariance = experts.removeprefix("normal").removeprefix("-") or "diagonal"
        return NormalExperts(network, num_components, y_dim, covariance=covariance)
    if experts == "student-t":
        return StudentTExperts(network, num_components, y_dim)
    if experts == "categorical":
        return CategoricalExperts(network)
    if experts == "bernoulli":
        return BernoulliExperts(network)
    if experts == "poisson":
        return PoissonExperts(network, y_dim)
    raise ValueError(f"expected experts in {FAMILIES} or modules; got {experts!r}")


def adapt_experts(experts: Any, x: torch.Tensor, y: torch.Tensor | None) -> None:
    """Let experts that have units take those of rows x, (N, D), and y, (N,) or (N, M), if known."""
    if y is None or not hasattr(experts, "adapt"):
        return
    known, x = known_rows(y, x)
    experts.adapt(x, known.reshape(len(known), -1).to(x.dtype))
