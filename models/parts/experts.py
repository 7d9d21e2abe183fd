"""Experts: K conditional distributions of the target, evaluated in parallel.

A module of experts maps a context to a distribution of batch shape (N, K). The story chooses the
context: the features x or the latent mean E[z|x].
"""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import pyro.distributions as dist
import torch
from torch import nn

from pyro_moe.distributions import (
    MultivariateNormal,
    Normal,
    Poisson,
    Stacked,
    StudentT,
    rounded,
    rounding_error,
)

from ..m_steps.blocks import weighted_products
from ..m_steps.lbfgs import minimize_in_place
from ..m_steps.newton import MAX_SIZE, glm_newton, softmax_newton
from .networks import AffineMaps, Standardize
from .targets import known_rows, precise_log_likelihoods

COVARIANCES = ("scalar", "diagonal", "full")
MIN_SCALE = 1e-3
NEWTON_STEPS = 5


class Experts(nn.Module):
    r"""A module from a context to K distributions of y, with an M-step by L-BFGS.

    .. math:: \max \sum_{nk} r_{nk} \log p_k(y_n \mid x_n) - \frac{\lambda}{2} |W|^2

    with W the weights of the experts' maps. The penalty corresponds to the prior N(0, 1/λ) in
    standard units. Without it the weights would grow without bound if classes are separable. The
    step increases the objective without always reaching its maximum, which gives generalized EM.

    Attributes:
        ridge: λ, see `inference.prior`.
    """

    evaluated_once = True
    ridge: float = 1e-3
    is_gate = False

    def maximize(
        self, context: torch.Tensor, y: torch.Tensor, weights: torch.Tensor, *, iterations: int = 50
    ) -> None:
        """Increase the penalized weighted likelihood, from the current parameters.

        Args:
            context: Inputs of the experts, shape (N, C).
            y: Targets, shape (N,) or (N, M). Rows with NaN are left out.
            weights: Responsibilities r, shape (N, K).
            iterations: Maximum number of L-BFGS iterations.
        """
        y, context, weights = known_rows(y, context, weights)
        weights = weights.double()
        learned = [p for p in self.parameters() if p.requires_grad]

        def loss() -> torch.Tensor:
            likelihood = (weights * precise_log_likelihoods(self(context), y)).sum()
            return (0.5 * self.ridge * self.squared_weights() - likelihood) / len(y)

        minimize_in_place(loss, learned, iterations=iterations)

    def squared_weights(self) -> torch.Tensor:
        """The sum of squares of all learned weights."""
        named = self.named_parameters()
        maps = [p for name, p in named if p.requires_grad and name.endswith("weight")]
        return sum((p.square().sum() for p in maps), torch.tensor(0.0))


class GeneralizedLinear(Experts):
    """Experts with a concave log-likelihood of affine maps, with an M-step by Newton's method.

    For classes the prior is N(0, 25), because classes may be separable.
    """

    network: nn.Module

    def newton_step(
        self, inputs: torch.Tensor, y: torch.Tensor, weights: torch.Tensor, start: torch.Tensor
    ) -> torch.Tensor:
        """Increase the penalized likelihood of the experts.

        Args:
            inputs: Inputs of the maps with a column of ones, shape (N, C + 1).
            y: Targets, shape (N,) or (N, M).
            weights: Responsibilities, shape (N, K).
            start: Coefficients of the maps, shape (K, P, C + 1).

        Returns:
            New coefficients, shape (K, P, C + 1).
        """
        raise NotImplementedError

    def ridges(self, inputs: torch.Tensor) -> torch.Tensor:
        """λ of each coefficient, shape (C + 1,). The intercept has almost none."""
        return torch.cat(
            [inputs.new_full((inputs.shape[1] - 1,), self.ridge), inputs.new_ones(1) * 1e-8]
        )

    def maximize(
        self, context: torch.Tensor, y: torch.Tensor, weights: torch.Tensor, **step: Any
    ) -> None:
        """Increase the penalized weighted likelihood, from the current parameters.

        Small affine maps take Newton steps. Other networks take the step of `Experts`.

        Args:
            context: Inputs of the experts, shape (N, C).
            y: Targets, shape (N,) or (N, M). Rows with NaN are left out.
            weights: Responsibilities r, shape (N, K).
            **step: Arguments of the step of `Experts`.
        """
        maps = self.network
        if not isinstance(maps, AffineMaps) or maps.weight[0].numel() > MAX_SIZE:
            super().maximize(context, y, weights, **step)
            return
        y, context, weights = known_rows(y, context, weights)
        inputs, weights = maps.inputs(context), weights.double()
        with torch.no_grad():
            start = maps.coefficients.double()
            found = self.newton_step(inputs, y, weights, start)
            used = (weights > 1e-12).any(0)[:, None, None]  # the others stay as they are
            coefficients = torch.where(used, found, start)
            maps.weight.copy_(coefficients[..., :-1])
            maps.bias.copy_(coefficients[..., -1])


class NormalExperts(Experts):
    r"""Normal experts, the regression model of the paper (§4.1).

    .. math:: p_k(y \mid x) = N(y \mid m + s f_k(x),\; s \Gamma_k s)

    with the units m, s of the target, and s as a diagonal matrix. Γ_k is scalar, diagonal or
    full. Its scales have a lower limit, because the likelihood is unbounded if an expert fits its
    rows exactly. If the values of a target are rounded to a grid of step h, the limit is at least
    h / √12, the standard deviation of the error of rounding.

    Args:
        network: Maps a context to ``(..., K, M)``, such as `AffineMaps`.
        num_components: K.
        y_dim: M.
        covariance: Γ_k ``"scalar"``, ``"diagonal"`` or ``"full"``.
        initial_scale: Initial scales of Γ_k, in standard deviations of the target.
        min_scale: Lower limit of the scales, in the same unit. For almost noise-free targets with
            many inputs a larger value is advisable: gradient steps otherwise are much longer than
            the noise scale.

    Raises:
        ValueError: If ``covariance`` is none of these.

    Example:
        >>> experts = NormalExperts(AffineMaps(2, 5, 3), num_components=5, y_dim=3)
        >>> experts(torch.zeros(7, 2)).batch_shape, experts(torch.zeros(7, 2)).event_shape
        (torch.Size([7, 5]), torch.Size([3]))
    """

    floor: torch.Tensor

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
        self.floor = nn.Buffer(torch.full((y_dim,), min_scale))
        width = 1 if covariance == "scalar" else y_dim
        self.log_scale = nn.Parameter(torch.empty(num_components, width))
        if covariance == "full":
            # L_k = diag(s_k) (I + strictly lower triangle), Γ_k = L_k L_k^T
            self.correlation = nn.Parameter(torch.empty(num_components, y_dim, y_dim))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set all scales to ``initial_scale`` and all correlations to zero."""
        nn.init.constant_(self.log_scale, math.log(self.initial_scale))
        if self.covariance == "full":
            nn.init.zeros_(self.correlation)

    def adapt(self, x: torch.Tensor, y: torch.Tensor) -> None:
        """Set the units and the lower limit of the scales from training targets y, (N, M)."""
        self.units.adapt(y)
        self.floor.copy_((rounding_error(y) / self.units.scale).clamp_min(self.min_scale))

    def forward(self, context: torch.Tensor) -> dist.Distribution:
        """The K distributions of y given a context, event shape ``(M,)``."""
        loc = self.units.inverse(self.network(context).double())
        floor = self.floor if self.covariance != "scalar" else self.floor.amax(-1, keepdim=True)
        scale = self.units.scale * (floor + self.log_scale.double().exp())
        if self.covariance != "full":
            return rounded(Normal(loc, scale), self.log_scale.dtype).to_event(1)
        eye = torch.eye(loc.shape[-1], dtype=loc.dtype, device=loc.device)
        scale_tril = scale.unsqueeze(-1) * (self.correlation.tril(-1) + eye)
        return rounded(MultivariateNormal(loc, scale_tril=scale_tril), self.log_scale.dtype)

    def maximize(
        self, context: torch.Tensor, y: torch.Tensor, weights: torch.Tensor, **step: Any
    ) -> None:
        r"""Set the experts to the maximum-likelihood estimates from weighted rows.

        Affine maps have a closed form: weighted least squares, and Γ_k from the weighted
        residuals. Other networks take the step of `Experts`.

        Args:
            context: Inputs of the experts, shape (N, C).
            y: Targets, shape (N,) or (N, M). Rows with NaN are left out.
            weights: Responsibilities r, shape (N, K). An expert with zero weight in all rows is
                fitted to all rows.
            **step: Arguments of the step of `Experts`.
        """
        y, context, weights = known_rows(y, context, weights)
        if not isinstance(self.network, AffineMaps):
            super().maximize(context, y, weights, **step)
            return
        counts = weights.sum(0)
        if not (counts > 0).all():
            weights = torch.where(counts > 0, weights, torch.ones_like(weights))
        targets = self.units(y.reshape(len(y), -1).double())
        residuals = self.network.least_squares(context, targets, weights).permute(1, 2, 0)
        products = weighted_products(residuals, residuals, weights.double())
        covariance = products / weights.double().sum(0).clamp_min(1e-12).reshape(-1, 1, 1)
        with torch.no_grad():
            self._take(covariance)

    def squared_weights(self) -> torch.Tensor:
        """Zero for affine maps, whose least squares have no ridge to speak of."""
        affine = isinstance(self.network, AffineMaps)
        return self.log_scale.new_zeros(()) if affine else super().squared_weights()

    def _take(self, covariance: torch.Tensor) -> None:
        """Set Γ_k from covariances (K, M, M)."""
        variance = covariance.diagonal(dim1=-2, dim2=-1)
        if self.covariance == "scalar":
            variance = variance.mean(-1, keepdim=True)
        floor = self.floor.double()
        if self.covariance == "full":
            least = floor.square() * torch.ones_like(variance)
            tril = torch.linalg.cholesky(covariance + least.diag_embed())
            scale = tril.diagonal(dim1=-2, dim2=-1)
            self.correlation.copy_((tril / scale.unsqueeze(-1)).tril(-1))
        else:
            scale = variance.sqrt()
        if self.covariance == "scalar":
            floor = floor.amax(-1, keepdim=True)
        self.log_scale.copy_((scale - floor).clamp_min(1e-3 * floor).log())


class StudentTExperts(Experts):
    r"""Experts with heavy tails, for targets with outliers.

    .. math:: p_k(y \mid x) = \prod_m \mathrm{t}_{\nu_k}
              \Big( \frac{y_m - m_m}{s_m} \,\Big|\, f_k(x)_m, \sigma_{km} \Big) \frac{1}{s_m},
              \quad \nu_k > 2

    with the units m, s of the target. They are computed from its median and quartiles, which are
    robust to outliers.

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
        """Set all scales to one and ν to 6."""
        nn.init.zeros_(self.log_scale)
        nn.init.constant_(self.log_df, math.log(4.0))

    def adapt(self, x: torch.Tensor, y: torch.Tensor) -> None:
        """Set the units from training targets y, shape (N, M)."""
        self.units.adapt(y)

    def forward(self, context: torch.Tensor) -> dist.Distribution:
        """The K distributions of y given a context, event shape ``(M,)``."""
        loc = self.units.inverse(self.network(context).double())
        scale = self.units.scale * (MIN_SCALE + self.log_scale.double().exp())
        df = 2.0 + self.log_df.double().clamp(-10.0, 10.0).exp()  # large values differ little
        return rounded(StudentT(df, loc, scale), self.log_df.dtype).to_event(1)


class CategoricalExperts(GeneralizedLinear):
    r"""Categorical experts, the classification model of the paper (§4.2).

    .. math:: p_k(y = l \mid x) = \mathrm{softmax}_l\, f_k(x)

    Args:
        network: Maps a context to logits ``(..., K, M)`` of M classes.

    Example:
        >>> CategoricalExperts(AffineMaps(2, 5, 3))(torch.zeros(7, 2)).probs.shape
        torch.Size([7, 5, 3])
    """

    ridge = 0.04

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, context: torch.Tensor) -> dist.Distribution:
        """The K distributions of the class 0, …, M-1 given a context, event shape ``()``."""
        return dist.Categorical(logits=self.network(context))

    def newton_step(
        self, inputs: torch.Tensor, y: torch.Tensor, weights: torch.Tensor, start: torch.Tensor
    ) -> torch.Tensor:
        """Increase the penalized likelihood of the experts, see `GeneralizedLinear`."""
        one_hot = nn.functional.one_hot(y.reshape(-1).long(), start.shape[1]).double()
        targets = weights.unsqueeze(-1) * one_hot.unsqueeze(1)
        return softmax_newton(inputs, targets, start, ridge=self.ridges(inputs), steps=NEWTON_STEPS)


class BernoulliExperts(GeneralizedLinear):
    r"""Experts of M binary targets.

    .. math:: p_k(y \mid x) = \prod_m \mathrm{Ber}(y_m \mid \mathrm{logit} = f_k(x)_m)

    Args:
        network: Maps a context to logits ``(..., K, M)``.

    Example:
        >>> BernoulliExperts(AffineMaps(2, 5, 1))(torch.zeros(7, 2)).batch_shape
        torch.Size([7, 5])
    """

    ridge = 0.04

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, context: torch.Tensor) -> dist.Distribution:
        """The K distributions of y given a context, event shape ``(M,)``."""
        return dist.Bernoulli(logits=self.network(context)).to_event(1)

    def newton_step(
        self, inputs: torch.Tensor, y: torch.Tensor, weights: torch.Tensor, start: torch.Tensor
    ) -> torch.Tensor:
        """Increase the penalized likelihood of the experts, see `GeneralizedLinear`."""

        def derivatives(value: torch.Tensor, logit: torch.Tensor) -> tuple[torch.Tensor, ...]:
            p = logit.sigmoid()
            log_p = value * logit - nn.functional.softplus(logit)
            return log_p, value - p, -p * (1.0 - p)

        return by_column(self, derivatives, inputs, y, weights, start)


class PoissonExperts(GeneralizedLinear):
    r"""Poisson experts of M counts.

    .. math:: p_k(y \mid x) = \prod_m \mathrm{Poisson}(y_m \mid \exp(a_m + f_k(x)_m))

    with a the logarithm of the mean count. The exponent is limited to the range from -20 to
    a + 20, so that the rate does not overflow far from the training data. The density is that of
    a rate in double precision: for large counts it depends on more digits than float32 has.

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
        """Set a from the counts y, shape (N, M)."""
        self.offset.copy_(y.mean(0).clamp_min(1e-3).log())

    def forward(self, context: torch.Tensor) -> dist.Distribution:
        """The K distributions of y given a context, event shape ``(M,)``."""
        offset = self.offset.double()
        log_rate = (offset + self.network(context)).clamp_min(-20.0)
        rate = torch.minimum(log_rate, offset + 20.0).exp()
        return rounded(Poisson(rate), self.offset.dtype).to_event(1)

    def newton_step(
        self, inputs: torch.Tensor, y: torch.Tensor, weights: torch.Tensor, start: torch.Tensor
    ) -> torch.Tensor:
        """Increase the penalized likelihood of the experts, see `GeneralizedLinear`."""
        scaled = y.reshape(len(y), -1).double() / self.offset.double().exp()

        def derivatives(value: torch.Tensor, logit: torch.Tensor) -> tuple[torch.Tensor, ...]:
            rate = logit.clamp(max=20.0).exp()
            return value * logit - rate, value - rate, -rate

        return by_column(self, derivatives, inputs, scaled, weights, start)


def by_column(
    experts: GeneralizedLinear,
    derivatives: Any,
    inputs: torch.Tensor,
    y: torch.Tensor,
    weights: torch.Tensor,
    start: torch.Tensor,
) -> torch.Tensor:
    """The step of `GeneralizedLinear` for independent columns of y: K M Newton problems."""
    columns, number = y.reshape(len(y), -1).double(), weights.shape[1]
    found = glm_newton(
        inputs,
        partial(derivatives, columns.repeat(1, number)),
        weights.repeat_interleave(columns.shape[1], 1),
        start.flatten(0, 1),
        ridge=experts.ridges(inputs),
        steps=NEWTON_STEPS,
    )
    return found.view_as(start)


class StackedExperts(Experts):
    """K conditional distributions of any families as one module of experts.

    Args:
        experts: K modules, each from a context to a distribution of batch shape (N,).

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
        """Set the units of each expert from training rows x, shape (N, D), and y, (N, M)."""
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
    """A module of affine experts by the name of its family, or the given modules as experts.

    Args:
        experts: ``"normal"`` (with diagonal Γ_k), ``"normal-scalar"``, ``"normal-full"``,
            ``"student-t"``, ``"categorical"`` (y_dim classes), ``"bernoulli"`` or ``"poisson"``;
            a module from a context to a distribution of batch shape (N, K); or K modules, each to
            a distribution of batch shape (N,).
        in_features: Length of the context. This and the following are for affine experts.
        num_components: K.
        y_dim: M, columns of y or number of classes.
        units: The units of the context, or None for a context in standard units.

    Raises:
        ValueError: If the name is none of these, or the number of modules is not K.

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
    """Set the units of experts that have them from rows x, (N, D), with a known y, (N, M)."""
    if y is None or not hasattr(experts, "adapt"):
        return
    known, x = known_rows(y, x)
    experts.adapt(x, known.reshape(len(known), -1).to(x.dtype))
