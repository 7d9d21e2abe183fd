"""What experts of all families have in common."""

from functools import partial
from typing import Any

import torch
from torch import nn

from pyro_moe.processes import Processes

from ...m_steps.blocks import Derived, number_of, some_rows, total
from ...m_steps.lbfgs import minimize_in_place
from ...m_steps.newton import MAX_SIZE, TOLERANCE, glm_newton
from ..networks import AffineMaps, PartlySharedMaps, Standardize
from ..targets import known_rows, precise_log_likelihoods

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


def adapt_experts(experts: Any, x: torch.Tensor, y: torch.Tensor | None) -> None:
    """Set the units of experts that have them from rows x, (N, D), with a known y, (N, M).

    Of more than 65,536 rows a random choice is used.
    """
    if y is None or not hasattr(experts, "adapt"):
        return
    known, x = known_rows(*some_rows(y, x))
    experts.adapt(x, known.reshape(len(known), -1).to(x.dtype))
