"""Experts: K conditional distributions of the target, evaluated in parallel.

A module of experts maps a context to a distribution of batch shape (N, K). The story chooses the
context: the features x or the latent mean E[z|x].
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import pyro.distributions as dist
import torch
from torch import nn

from pyro_moe.distributions import (
    Binomial,
    Joint,
    MultivariateNormal,
    Normal,
    Poisson,
    Stacked,
    StudentT,
    rounded,
    rounding_error,
)
from pyro_moe.processes import Processes

from ..m_steps.blocks import Derived, number_of, some_rows, total, totals, weighted_products
from ..m_steps.lbfgs import minimize_in_place
from ..m_steps.newton import MAX_SIZE, TOLERANCE, glm_newton, softmax_newton
from ..m_steps.student_t import StudentTMaps, student_t_step
from .networks import AffineMaps, PartlySharedMaps, Standardize
from .targets import known_rows, precise_log_likelihoods

COVARIANCES = ("scalar", "diagonal", "full")
MIN_SCALE = 1e-3
NEWTON_STEPS = 5
STUDENT_T_STEPS = 2


class Experts(nn.Module):
    r"""A module from a context to K distributions of y, with an M-step by L-BFGS.

    .. math:: \max \sum_{nk} r_{nk} \log p_k(y_n \mid x_n) - \frac{\lambda}{2} |W|^2

    with W the weights of the experts' maps. The penalty corresponds to the prior N(0, 1/λ) in
    standard units. Without it the weights would grow without bound if classes are separable. The
    step increases the objective without always reaching its maximum, which gives generalized EM.

    Attributes:
        ridge: λ, see `inference.prior`.
        offset_column: The number of a column of the context that is added to every map, in the
            units of the linear predictor, such as the logarithm of an exposure; or None.
    """

    evaluated_once = True
    ridge: float = 1e-3
    role = "experts"
    offset_column: int | None = None

    def offsets(self, context: torch.Tensor) -> torch.Tensor:
        """The offset of each row, in double precision, shape (N,); a zero if there is none."""
        if self.offset_column is None:
            return context.new_zeros((), dtype=torch.float64)
        return context[..., self.offset_column].double()

    @property
    def has_intercept(self) -> bool:
        """Whether the maps have an intercept, so that a constant may be added to them."""
        return bool(getattr(getattr(self, "network", None), "intercept", True))

    def linear_predictor(self, width: int) -> torch.Tensor:
        """The slopes and intercepts of affine maps, in the units of the data: (K, P, D + 1).

        Args:
            width: The number of columns of the context.

        Raises:
            ValueError: If the maps are not affine.
        """
        maps: Any = getattr(self, "network", None)
        if not hasattr(maps, "in_units"):
            raise ValueError(f"expected affine maps; got {type(maps).__name__}")
        return maps.in_units(width).double()

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

        number, share = number_of(y), 0.5 / Processes.sharing().size

        def loss() -> torch.Tensor:
            likelihood = (weights * precise_log_likelihoods(self(context), y)).sum()
            return (share * self.ridge * self.squared_weights() - likelihood) / number

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
        self,
        inputs: torch.Tensor,
        y: torch.Tensor,
        weights: torch.Tensor,
        start: torch.Tensor,
        context: torch.Tensor,
    ) -> torch.Tensor:
        """Increase the penalized likelihood of the experts.

        Args:
            inputs: Inputs of the maps with a column of ones, shape (N, C + 1).
            y: Targets, shape (N,) or (N, M).
            weights: Responsibilities, shape (N, K).
            start: Coefficients of the maps, shape (K, P, C + 1).
            context: The rows that the inputs are of, shape (N, D).

        Returns:
            New coefficients, shape (K, P, C + 1).
        """
        raise NotImplementedError

    def ridges(self, inputs: torch.Tensor) -> torch.Tensor:
        """λ of each coefficient, shape (C + 1,). The intercept has almost none."""
        some = inputs[:1]
        return torch.cat([some.new_full((some.shape[1] - 1,), self.ridge), some.new_ones(1) * 1e-8])

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
        maps: Any = self.network
        small = isinstance(maps, AffineMaps) and maps.weight[0].numel() <= MAX_SIZE
        if not small and not isinstance(maps, PartlySharedMaps):
            super().maximize(context, y, weights, **step)
            return
        y, context, weights = known_rows(y, context, weights)
        weights = weights.double()
        if isinstance(maps, PartlySharedMaps):
            inputs, number = maps.inputs(context), weights.shape[1]
            start = maps.coefficients.detach().double()
            many = y.repeat(number, *(1 for _ in y.shape[1:]))
            rows = context.repeat(number, 1)
            each = weights.T.reshape(-1, 1)  # one problem, of the rows of all experts
            maps.take(self.newton_step(inputs, many, each, start.unsqueeze(0), rows)[0])
            return
        with torch.no_grad():
            start = maps.coefficients.double()
            blocks: Any = Derived(maps.inputs, context)
            found = self.newton_step(blocks, y, weights, start, context)
            many = total(lambda r: (r > 1e-12).double().sum(0), weights)
            used = (many > 0)[:, None, None]  # the others stay as they are
            coefficients = torch.where(used, found, start)
            maps.weight.copy_(coefficients[..., :-1])
            maps.bias.copy_(coefficients[..., -1])


class LocationScale(Experts):
    """Experts whose maps are the center of a family, in units of the target, with a scale."""

    network: nn.Module
    units: Standardize
    log_scale: nn.Parameter

    def linear_predictor(self, width: int) -> torch.Tensor:
        """The slopes and intercepts of affine maps, see `Experts`."""
        return in_units_of(self.units, super().linear_predictor(width))

    def in_units(self, context: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Targets less the offsets, in standard units and double precision, shape (N, M)."""
        offset = self.offsets(context)[..., None]
        return self.units(y.reshape(len(y), -1).double() - offset)

    def squared_weights(self) -> torch.Tensor:
        """Zero for affine maps, whose least squares have no ridge to speak of."""
        affine = isinstance(self.network, AffineMaps)
        return self.log_scale.new_zeros(()) if affine else super().squared_weights()


class NormalExperts(LocationScale):
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
        shared_scale: Whether all experts have the same Γ.
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
        shared_scale: bool = False,
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
        number = 1 if shared_scale else num_components
        self.log_scale = nn.Parameter(torch.empty(number, width))
        if covariance == "full":
            # L_k = diag(s_k) (I + strictly lower triangle), Γ_k = L_k L_k^T
            self.correlation = nn.Parameter(torch.empty(number, y_dim, y_dim))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set all scales to ``initial_scale`` and all correlations to zero."""
        nn.init.constant_(self.log_scale, math.log(self.initial_scale))
        if self.covariance == "full":
            nn.init.zeros_(self.correlation)

    def adapt(self, x: torch.Tensor, y: torch.Tensor) -> None:
        """Set the units and the lower limit of the scales from training targets y, (N, M)."""
        self.units.adapt(y - self.offsets(x)[..., None].to(y))
        if not self.has_intercept:
            self.units.loc.zero_()
        self.floor.copy_((rounding_error(y) / self.units.scale).clamp_min(self.min_scale))

    def forward(self, context: torch.Tensor) -> dist.Distribution:
        """The K distributions of y given a context, event shape ``(M,)``."""
        loc = (
            self.units.inverse(self.network(context).double())
            + self.offsets(context)[..., None, None]
        )
        scale = self.scales()
        if self.covariance != "full":
            return rounded(Normal(loc, scale), self.log_scale.dtype).to_event(1)
        eye = torch.eye(loc.shape[-1], dtype=loc.dtype, device=loc.device)
        scale_tril = scale.unsqueeze(-1) * (self.correlation.tril(-1) + eye)
        return rounded(MultivariateNormal(loc, scale_tril=scale_tril), self.log_scale.dtype)

    def num_free_parameters(self) -> int:
        """The number of coefficients, scales and correlations."""
        number = sum(p.numel() for p in self.parameters() if p.requires_grad)
        if self.covariance != "full":
            return number
        experts, size, _ = self.correlation.shape
        return number - experts * size * (size + 1) // 2

    def covariances(self) -> torch.Tensor:
        """The covariances of y in its units, shape (K, M, M) or (1, M, M)."""
        scale = self.scales() * torch.ones_like(self.units.scale)
        if self.covariance != "full":
            return scale.square().diag_embed()
        eye = torch.eye(scale.shape[-1], dtype=scale.dtype, device=scale.device)
        scale_tril = scale.unsqueeze(-1) * (self.correlation.tril(-1) + eye)
        return scale_tril @ scale_tril.mT

    def scales(self) -> torch.Tensor:
        """The scales of Γ_k in the units of y, shape (K, M); if it is full, of its factor."""
        floor = self.floor if self.covariance != "scalar" else self.floor.amax(-1, keepdim=True)
        return self.units.scale * (floor + self.log_scale.double().exp())

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
        maps: Any = self.network
        shared = isinstance(maps, PartlySharedMaps) and self.covariance != "full"
        if not isinstance(maps, AffineMaps) and not shared:
            super().maximize(context, y, weights, **step)
            return
        weights = of_some_row(weights)
        targets = Derived(self.in_units, context, y)
        if shared:
            variance = (self.scales() / self.units.scale).detach().double().square()
            residuals = maps.least_squares(context, targets, weights, variance)
        else:
            residuals = maps.least_squares(context, targets, weights)

        def products(e: torch.Tensor, r: torch.Tensor) -> tuple[torch.Tensor, ...]:
            each, r = e.permute(1, 2, 0), r.double()
            return weighted_products(each, each, r), r.sum(0)

        with torch.no_grad():
            covariance, counts = totals(products, residuals, weights)
            covariance = covariance / counts.clamp_min(1e-12).reshape(-1, 1, 1)
            if len(self.log_scale) < len(counts):  # one for all experts
                shares = counts / counts.sum()
                covariance = torch.einsum("k,kij->ij", shares, covariance).unsqueeze(0)
            self._take(covariance)

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


class StudentTExperts(LocationScale):
    r"""Experts with heavy tails, for targets with outliers.

    .. math:: p_k(y \mid x) = \prod_m \mathrm{t}_{\nu_k}
              \Big( \frac{y_m - m_m}{s_m} \,\Big|\, f_k(x)_m, \sigma_{km} \Big) \frac{1}{s_m},
              \quad \nu_k > \tfrac12

    with the units m, s of the target. They are computed from its median and quartiles, which are
    robust to outliers. Of ν of at most 2 the variance is infinite, and of at most 1 the mean that
    is reported is the center.

    Args:
        network: Maps a context to ``(..., K, M)``.
        num_components: K.
        y_dim: M.

    Attributes:
        least_df: The lower end of ν.

    Example:
        >>> experts = StudentTExperts(AffineMaps(2, 5, 3), num_components=5, y_dim=3)
        >>> experts(torch.zeros(7, 2)).batch_shape
        torch.Size([7, 5])
    """

    least_df = 0.5

    def __init__(self, network: nn.Module, num_components: int, y_dim: int) -> None:
        super().__init__()
        self.network, self.units = network, Standardize(y_dim, robust=True)
        self.log_scale = nn.Parameter(torch.empty(num_components, y_dim))
        self.log_excess_df = nn.Parameter(torch.empty(num_components, 1))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set all scales to one and ν to 6."""
        nn.init.zeros_(self.log_scale)
        nn.init.constant_(self.log_excess_df, math.log(6.0 - self.least_df))

    def adapt(self, x: torch.Tensor, y: torch.Tensor) -> None:
        """Set the units from training targets y, shape (N, M)."""
        self.units.adapt(y - self.offsets(x)[..., None].to(y))
        if not self.has_intercept:
            self.units.loc.zero_()

    def scales(self) -> torch.Tensor:
        """The scales σ in the units of y, shape (K, M)."""
        return self.units.scale * (MIN_SCALE + self.log_scale.double().exp())

    def degrees_of_freedom(self) -> torch.Tensor:
        """The degrees of freedom ν, shape (K, 1)."""
        excess = self.log_excess_df.double().clamp(-10.0, 10.0)  # beyond, none differ
        return self.least_df + excess.exp()

    def forward(self, context: torch.Tensor) -> dist.Distribution:
        """The K distributions of y given a context, event shape ``(M,)``."""
        loc = (
            self.units.inverse(self.network(context).double())
            + self.offsets(context)[..., None, None]
        )
        scale = self.scales()
        df = self.degrees_of_freedom()
        return rounded(StudentT(df, loc, scale), self.log_excess_df.dtype).to_event(1)

    def maximize(
        self, context: torch.Tensor, y: torch.Tensor, weights: torch.Tensor, **step: Any
    ) -> None:
        """Increase the weighted likelihood, from the current parameters.

        Affine maps take steps of reweighted least squares, see `student_t_step`. Other networks
        take the step of `Experts`.

        Args:
            context: Inputs of the experts, shape (N, C).
            y: Targets, shape (N,) or (N, M). Rows with NaN are left out.
            weights: Responsibilities r, shape (N, K). An expert with zero weight in all rows is
                fitted to all rows.
            **step: Arguments of the step of `Experts`.
        """
        maps: Any = self.network
        if not isinstance(maps, AffineMaps):
            super().maximize(context, y, weights, **step)
            return
        y, context, weights = known_rows(y, context, weights)
        weights = of_some_row(weights)
        u, targets = Derived(maps.features, context), Derived(self.in_units, context, y)
        with torch.no_grad():
            found = StudentTMaps(
                maps.coefficients.double(),
                (self.scales() / self.units.scale).double(),
                self.log_excess_df.double(),
            )
            for _ in range(STUDENT_T_STEPS):
                found = student_t_step(
                    u,
                    targets,
                    weights,
                    found,
                    least_df=self.least_df,
                    least_scale=1.001 * MIN_SCALE,
                    intercept=maps.intercept,
                )
            maps.weight.copy_(found.coefficients[..., :-1])
            maps.bias.copy_(found.coefficients[..., -1])
            self.log_scale.copy_((found.scale - MIN_SCALE).log())
            self.log_excess_df.copy_(found.log_excess_df)


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
    prior_scale = 2.5 / math.sqrt(2.0)  # of log-odds, in the posterior of a fit

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, context: torch.Tensor) -> dist.Distribution:
        """The K distributions of the class 0, …, M-1 given a context, event shape ``()``."""
        return dist.Categorical(logits=self.network(context))

    def newton_step(
        self,
        inputs: torch.Tensor,
        y: torch.Tensor,
        weights: torch.Tensor,
        start: torch.Tensor,
        context: torch.Tensor,
    ) -> torch.Tensor:
        """Increase the penalized likelihood of the experts, see `GeneralizedLinear`."""

        def shares(r: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            one_hot = nn.functional.one_hot(y.reshape(-1).long(), start.shape[1]).double()
            return r.unsqueeze(-1) * one_hot.unsqueeze(1)

        targets = Derived(shares, weights, y)
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
    prior_scale = 2.5  # of log-odds, in the posterior of a fit

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, context: torch.Tensor) -> dist.Distribution:
        """The K distributions of y given a context, event shape ``(M,)``."""
        return dist.Bernoulli(logits=self.logits(context)).to_event(1)

    def logits(self, context: torch.Tensor) -> torch.Tensor:
        """The logits (N, K, M), with the offset."""
        logits = self.network(context)
        if self.offset_column is None:
            return logits
        return logits + self.offsets(context)[..., None, None].to(logits)

    def trials(self, context: torch.Tensor) -> torch.Tensor:
        """The number of trials of each row, shape (N,) or ()."""
        return context.new_ones(())

    def newton_step(
        self,
        inputs: torch.Tensor,
        y: torch.Tensor,
        weights: torch.Tensor,
        start: torch.Tensor,
        context: torch.Tensor,
    ) -> torch.Tensor:
        """Increase the penalized likelihood of the experts, see `GeneralizedLinear`."""
        offset, trials = self.offsets(context)[..., None], self.trials(context)[..., None]

        def derivatives(value: torch.Tensor, logit: torch.Tensor) -> tuple[torch.Tensor, ...]:
            logit = logit + offset
            p = logit.sigmoid()
            log_p = value * logit - trials * nn.functional.softplus(logit)
            return log_p, value - trials * p, -trials * p * (1.0 - p)

        return by_column(self, derivatives, inputs, y, weights, start)


class BinomialExperts(BernoulliExperts):
    r"""Experts of M counts of successes in a known number of trials.

    .. math:: p_k(y \mid x) = \prod_m \mathrm{Bin}(y_m \mid n, \mathrm{logit} = f_k(x)_m)

    Args:
        network: Maps a context to logits ``(..., K, M)``.
        trials_column: The number of the context's column with n.

    Example:
        >>> BinomialExperts(AffineMaps(1, 5, 1, columns=[0]), 1)(torch.ones(7, 2)).batch_shape
        torch.Size([7, 5])
    """

    def __init__(self, network: nn.Module, trials_column: int) -> None:
        super().__init__(network)
        self.trials_column = trials_column

    def forward(self, context: torch.Tensor) -> dist.Distribution:
        """The K distributions of y given a context, event shape ``(M,)``."""
        logits = self.logits(context)
        trials = self.trials(context)[..., None, None].to(logits).expand(logits.shape)
        return Binomial(total_count=trials, logits=logits).to_event(1)

    def trials(self, context: torch.Tensor) -> torch.Tensor:
        """The number of trials of each row, shape (N,)."""
        return context[..., self.trials_column].double()


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

    def linear_predictor(self, width: int) -> torch.Tensor:
        """The slopes and intercepts of the log-rate, see `Experts`."""
        coefficients = super().linear_predictor(width)
        shift = torch.zeros_like(coefficients)
        shift[..., -1] = self.offset.double()
        return coefficients + shift

    def adapt(self, x: torch.Tensor, y: torch.Tensor) -> None:
        """Set a from the counts y, shape (N, M), and from their exposures."""
        exposure = self.offsets(x).exp().mean()
        mean = (y.mean(0) / exposure).clamp_min(1e-3)
        self.offset.copy_(mean.log() if self.has_intercept else torch.zeros_like(mean))

    def forward(self, context: torch.Tensor) -> dist.Distribution:
        """The K distributions of y given a context, event shape ``(M,)``."""
        offset = self.offset.double()
        log_rate = (offset + self.network(context)).clamp_min(-20.0)
        log_rate = torch.minimum(log_rate, offset + 20.0) + self.offsets(context)[..., None, None]
        rate = log_rate.exp()
        return rounded(Poisson(rate), self.offset.dtype).to_event(1)

    def newton_step(
        self,
        inputs: torch.Tensor,
        y: torch.Tensor,
        weights: torch.Tensor,
        start: torch.Tensor,
        context: torch.Tensor,
    ) -> torch.Tensor:
        """Increase the penalized likelihood of the experts, see `GeneralizedLinear`."""
        mean = self.offset.double().exp()  # the unit of counts, and so of likelihoods
        scaled = y.reshape(len(y), -1).double() / mean
        offset = self.offsets(context)[..., None]

        def derivatives(value: torch.Tensor, logit: torch.Tensor) -> tuple[torch.Tensor, ...]:
            rate = logit.clamp(max=20.0).add(offset).exp()
            return value * logit - rate, value - rate, -rate

        return by_column(self, derivatives, inputs, scaled, weights, start, unit=mean)


def of_some_row(weights: torch.Tensor) -> torch.Tensor:
    """Weights (N, K), all one for an expert that has zero weight in all rows."""
    counts = total(lambda r: r.double().sum(0), weights)
    return weights if (counts > 0).all() else weights.where(counts > 0, torch.ones_like(weights))


def by_column(
    experts: GeneralizedLinear,
    derivatives: Any,
    inputs: torch.Tensor,
    y: torch.Tensor,
    weights: torch.Tensor,
    start: torch.Tensor,
    *,
    unit: torch.Tensor | None = None,
) -> torch.Tensor:
    """The step of `GeneralizedLinear` for independent columns of y: K M Newton problems.

    Their likelihoods may be in units of the columns, shape (M,).
    """
    columns, number = y.reshape(len(y), -1).double(), weights.shape[1]
    unit = columns.new_ones(columns.shape[1]) if unit is None else unit
    found = glm_newton(
        inputs[:],
        partial(derivatives, columns.repeat(1, number)),
        weights.repeat_interleave(columns.shape[1], 1),
        start.flatten(0, 1),
        ridge=experts.ridges(inputs) / unit.repeat(number).unsqueeze(-1),
        steps=NEWTON_STEPS,
        tolerance=TOLERANCE / max(1.0, unit.max().item()),
    )
    return found.view_as(start)


def in_units_of(units: Standardize, coefficients: torch.Tensor) -> torch.Tensor:
    """Slopes and intercepts (K, P, D + 1) of standardized targets, in the units of the targets."""
    coefficients = coefficients * units.scale.double().unsqueeze(-1)
    shift = torch.zeros_like(coefficients)
    shift[..., -1] = units.loc.double()
    return coefficients + shift


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


class JointExperts(nn.Module):
    r"""Experts of several targets, each of a family of its own.

    .. math:: p_k(y \mid x) = \prod_m p_{km}(y_m \mid x)

    Args:
        parts: Experts of one column of y each, with the same number of components.

    Example:
        >>> parts = [experts_of(family, 2, 5, 1) for family in ("normal", "poisson")]
        >>> JointExperts(parts)(torch.zeros(7, 2)).mean.shape
        torch.Size([7, 5, 2])
    """

    evaluated_once = True

    def __init__(self, parts: Sequence[nn.Module]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)

    def adapt(self, x: torch.Tensor, y: torch.Tensor) -> None:
        """Set the units of each part from training rows x, shape (N, D), and y, (N, M)."""
        for part, column in zip(self.parts, y.split(1, -1), strict=True):
            adapt_experts(part, x, column)

    def forward(self, context: torch.Tensor) -> dist.Distribution:
        """The K distributions of y given a context, event shape ``(M,)``."""
        return Joint([part(context) for part in self.parts])

    def maximize(
        self, context: torch.Tensor, y: torch.Tensor, weights: torch.Tensor, **step: Any
    ) -> None:
        """Update each part by its M-step, see there."""
        y, context, weights = known_rows(y, context, weights)
        for part, column in zip(self.parts, y.split(1, -1), strict=True):
            part_of: Any = part
            part_of.maximize(context, column, weights, **step)

    def linear_predictor(self, width: int) -> torch.Tensor:
        """The slopes and intercepts of all targets, see `Experts`."""
        parts: Any = self.parts
        return torch.cat([part.linear_predictor(width) for part in parts], 1)


CONTEXTS = ("x", "z")
FAMILIES = (
    "normal",
    "normal-scalar",
    "normal-full",
    "student-t",
    "categorical",
    "bernoulli",
    "binomial",
    "poisson",
)


@dataclass(frozen=True)
class Predictor:
    """What the linear predictors of affine experts are made of.

    Attributes:
        columns: The numbers of the columns of the context that they read; all if None.
        intercept: Whether they have intercepts.
        offset_column: A column that is added to them, see `Experts`, or None.
        trials_column: The column of the number of trials, of binomial experts.
        shared: The numbers of the columns whose coefficients are the same in all experts.
        shared_intercept: Whether the intercept is the same in all experts.
        shared_scale: Whether normal experts have the same covariance.
    """

    columns: Sequence[int] | None = None
    intercept: bool = True
    offset_column: int | None = None
    trials_column: int | None = None
    shared: Sequence[int] = ()
    shared_intercept: bool = False
    shared_scale: bool = False

    def maps(
        self, width: int, num_components: int, out_features: int, units: nn.Module | None
    ) -> nn.Module:
        """The affine maps of K experts of a context of a width."""
        columns = range(width) if self.columns is None else self.columns
        if self.shared or self.shared_intercept:
            return PartlySharedMaps(
                columns,
                self.shared,
                num_components,
                out_features,
                units=units,
                intercept=self.intercept,
                shared_intercept=self.shared_intercept,
            )
        return AffineMaps(
            len(columns),
            num_components,
            out_features,
            units=units,
            columns=self.columns,
            intercept=self.intercept,
        )


ALL_COLUMNS = Predictor()


def experts_of(
    experts: str | nn.Module | Sequence[nn.Module] | Sequence[str],
    in_features: int = 0,
    num_components: int = 0,
    y_dim: int = 0,
    *,
    units: nn.Module | None = None,
    predictor: Predictor | Sequence[Predictor] = ALL_COLUMNS,
) -> nn.Module:
    """A module of affine experts by the name of its family, or the given modules as experts.

    Args:
        experts: ``"normal"`` (with diagonal Γ_k), ``"normal-scalar"``, ``"normal-full"``,
            ``"student-t"``, ``"categorical"`` (y_dim classes), ``"bernoulli"``, ``"binomial"`` or
            ``"poisson"``; a list of such names, one for each column of y; a module from a context
            to a distribution of batch shape (N, K); or K modules, each to a distribution of batch
            shape (N,).
        in_features: Length of the context. This and the following are for affine experts.
        num_components: K.
        y_dim: M, columns of y or number of classes.
        units: The units of the context, or None for a context in standard units.
        predictor: What the linear predictors are made of; one for each family of a list, or one
            for all.

    Raises:
        ValueError: If the name is none of these, if the number of modules is not K or that of
            names not M, if modules have a predictor, or if classes have an offset.

    Example:
        >>> experts_of("poisson", 2, 5, 1)(torch.zeros(7, 2)).event_shape
        torch.Size([1])
    """
    if isinstance(experts, list | tuple) and all(isinstance(each, str) for each in experts):
        each = [predictor] * y_dim if isinstance(predictor, Predictor) else list(predictor)
        if len(experts) != y_dim or len(each) != y_dim:
            raise ValueError(f"expected a family for each of {y_dim} targets; got {experts!r}")
        pairs = zip(experts, each, strict=True)
        return JointExperts(
            [
                experts_of(family, in_features, num_components, 1, units=units, predictor=one)
                for family, one in pairs
            ]
        )
    if not isinstance(experts, str):
        if predictor != ALL_COLUMNS:
            raise ValueError(f"expected a family, by name, to have columns; got {experts!r}")
        if isinstance(experts, nn.Module) and not isinstance(experts, nn.ModuleList):
            return experts
        if num_components and len(experts) != num_components:
            raise ValueError(
                f"expected an expert for each of {num_components} components; got {len(experts)}"
            )
        return StackedExperts(list(experts))  # type: ignore[arg-type]
    if num_components < 1:
        raise ValueError(f"expected num_components of at least 1; got {num_components}")
    if experts not in FAMILIES:
        raise ValueError(f"expected experts in {FAMILIES} or modules; got {experts!r}")
    if not isinstance(predictor, Predictor):
        raise ValueError(f"expected a family for each predictor; got {experts!r}")
    if experts == "categorical" and predictor.offset_column is not None:
        raise ValueError("expected no offset for experts='categorical'; got one")
    network = predictor.maps(in_features, num_components, y_dim, units)
    found = _of_family(experts, network, num_components, y_dim, predictor)
    found.offset_column = predictor.offset_column
    return found


def _of_family(
    experts: str, network: nn.Module, num_components: int, y_dim: int, predictor: Predictor
) -> Experts:
    if experts in ("normal", "normal-scalar", "normal-full"):
        covariance = experts.removeprefix("normal").removeprefix("-") or "diagonal"
        return NormalExperts(
            network,
            num_components,
            y_dim,
            covariance=covariance,
            shared_scale=predictor.shared_scale,
        )
    if predictor.shared_scale:
        raise ValueError(f"expected normal experts to share a scale; got {experts!r}")
    if experts == "student-t":
        return StudentTExperts(network, num_components, y_dim)
    if experts == "categorical":
        return CategoricalExperts(network)
    if experts == "bernoulli":
        return BernoulliExperts(network)
    if experts == "binomial":
        if predictor.trials_column is None:
            raise ValueError("expected a column of trials for experts='binomial'; got none")
        return BinomialExperts(network, predictor.trials_column)
    return PoissonExperts(network, y_dim)


def adapt_experts(experts: Any, x: torch.Tensor, y: torch.Tensor | None) -> None:
    """Set the units of experts that have them from rows x, (N, D), with a known y, (N, M).

    Of more than 65,536 rows a random choice is used.
    """
    if y is None or not hasattr(experts, "adapt"):
        return
    known, x = known_rows(*some_rows(y, x))
    experts.adapt(x, known.reshape(len(known), -1).to(x.dtype))
