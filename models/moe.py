"""Mixtures of experts with a conditional gate: softmax, neural or hierarchical (paper §4)."""

import copy
import math
from collections.abc import Sequence
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import nn

from pyro_moe.distributions import (
    MAX_LOG_ODDS,
    PRIOR_TEMPERATURE,
    TEMPERATURE,
    Mixture,
    RelaxedOneHotCategorical,
    choose,
)

from .parts.conditionals import CategoricalConditional
from .parts.experts import ALL_COLUMNS, Predictor, adapt_experts, experts_of
from .parts.gates import SoftmaxGate
from .parts.networks import MLP, Columns, Standardize
from .parts.side_by_side import SideBySide, stands_alone
from .parts.targets import log_likelihoods, observe_target, posterior_logits


class MixtureOfExperts(nn.Module):
    r"""A mixture of experts with any gate and any experts.

    .. math:: c \mid x \sim \mathrm{Cat}(g(x)), \quad y \mid x, c = k \sim p_k(y \mid x), \quad
              p(y \mid x) = \sum_k g_k(x)\, p_k(y \mid x)

    .. math:: q(c = k \mid x, y) = \frac{g_k(x)\, p_k(y \mid x)}{\sum_j g_j(x)\, p_j(y \mid x)}

    The guide is the exact posterior. The marginal ELBO is therefore the log-likelihood of y given
    x. If y is missing, the guide is the gate. The module maps x to the distribution of y, so that
    it can itself be an expert of another mixture.

    Args:
        gate: Maps x, shape (N, D), to a one-hot distribution over K components.
        experts: Maps x to a distribution of batch shape (N, K); or K modules, each from x to a
            distribution of batch shape (N,). The modules are called with x in the data's units.
            Begin them with ``units`` to standardize x.
        units: The standardization of x that gate and experts share. It is set from the training
            rows.

    Example:
        >>> gate = CategoricalConditional(nn.Linear(2, 5))
        >>> moe = MixtureOfExperts(gate, experts_of("normal", 2, num_components=5, y_dim=1))
        >>> moe(torch.zeros(7, 2)).mean.shape
        torch.Size([7, 1])
    """

    def __init__(
        self,
        gate: nn.Module,
        experts: nn.Module | Sequence[nn.Module],
        *,
        units: Standardize | None = None,
    ) -> None:
        super().__init__()
        self.gate: Any = gate
        self.experts: Any = experts_of(experts)
        self.units = units
        self.temperature = nn.Buffer(torch.tensor(TEMPERATURE))
        self.prior_temperature = nn.Buffer(torch.tensor(PRIOR_TEMPERATURE))

    def forward(self, x: torch.Tensor) -> dist.Distribution:
        """The distribution of y given x, shape (N, D), with the assignment summed out."""
        return Mixture(self.gate(x).logits, self.experts(x))

    def adapt(self, x: torch.Tensor, y: torch.Tensor | None = None) -> None:
        """Set the units from training rows x, shape (N, D), and y, shape (N,) or (N, M)."""
        if self.units is not None:
            self.units.adapt(x)
        adapt_experts(self.experts, x, y)

    def m_step(
        self,
        responsibilities: torch.Tensor,
        points: torch.Tensor,
        x: torch.Tensor,
        y: torch.Tensor | None = None,
        *,
        sizes: torch.Tensor | None = None,
    ) -> None:
        r"""Update the gate and the experts by the M-step.

        .. math:: \max \sum_{nk} r_{nk}
                  \left[ \frac{\log g_k(x_n)}{W_n} + \log p_k(y_n \mid x_n) \right]

        A gate without a method ``maximize`` is not updated.

        Args:
            responsibilities: r, shape (N, K).
            points: Not used; the gate is a function of x.
            x: Rows, shape (N, D).
            y: Targets, shape (N,) or (N, M), or None.
            sizes: W, shape (N,), the number of rows that share the assignment c of each row; one
                if None.
        """
        if hasattr(self.gate, "maximize"):
            # without groups the responsibilities may be on disk, and are not copied
            shares = responsibilities if sizes is None else responsibilities / sizes.unsqueeze(-1)
            self.gate.maximize(x, shares)
        if y is not None:
            self.experts.maximize(x, y, responsibilities)

    def target_log_likelihoods(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Log p_k(y|x), shape (N, K); zero in rows where y is missing."""
        return log_likelihoods(self.experts(x), y)

    def log_joint(self, x: torch.Tensor, y: torch.Tensor | None = None) -> torch.Tensor:
        """Log p(y, c=k|x) of each row, shape (N, K)."""
        log_gate = self.gate(x).logits
        return log_gate if y is None else log_gate + log_likelihoods(self.experts(x), y)

    def side_by_side(self, others: Sequence["MixtureOfExperts"]) -> SideBySide | None:
        """This and other copies as one story of EM, or None if their M-steps are not separate."""
        if not stands_alone(self.gate, self.experts):
            return None
        return SideBySide([self, *others])

    def model(self, x: torch.Tensor, y: torch.Tensor | None = None) -> None:
        """The generative story of the targets y, shape (N,) or (N, M), given x, shape (N, D)."""
        pyro.module("moe", self)
        with pyro.plate("data", len(x)):
            # Assumption: c | x ~ Categorical(g(x)), the gate
            c = pyro.sample(
                "c",
                RelaxedOneHotCategorical(self.prior_temperature, logits=self.gate(x).logits),
            )
            # Assumption: y | x, c = k ~ p_k(y | x), for the family see `experts`
            observe_target(choose(c, self.experts(x)), y)

    def guide(self, x: torch.Tensor, y: torch.Tensor | None = None) -> None:
        """The exact posterior of c given x and, if it is known, y."""
        pyro.module("moe", self)
        with pyro.plate("data", len(x)):
            # p(c = k | x, y) ∝ g_k(x) p_k(y | x), by Bayes' rule
            logits = self.gate(x).logits
            if y is not None:
                logits = posterior_logits(logits, self.experts(x), y)
            pyro.sample(
                "c",
                RelaxedOneHotCategorical(
                    self.temperature, logits=logits, max_log_odds=MAX_LOG_ODDS
                ),
            )


class ME(MixtureOfExperts):
    r"""The classical mixture of experts with a softmax gate.

    .. math:: g_k(x) = \mathrm{softmax}_k (\langle w_k, x \rangle + b_k)

    It is fitted by EM (``loss="em"``) or by gradients. The gate's M-step of EM is iterative
    (Jordan and Jacobs, 1994).

    Args:
        x_dim: D, columns of x.
        y_dim: M, columns of y, or the number of classes.
        num_components: K.
        experts: A family of affine experts, ``"normal"``, ``"categorical"``, ``"student-t"``,
            ``"bernoulli"`` or ``"poisson"``; names of families, one for each column of y; or
            modules, see `MixtureOfExperts`.
        common_scale: Whether the columns of x share one unit, as the pixels of an image do.
        predictor: What the linear predictors of affine experts are made of: columns, an offset,
            shared coefficients, see `Predictor`; or one for each family of a list.
        gate_columns: The numbers of the columns that the gate reads; all if None. If there are
            none, ``()``, the gate is constant: a finite mixture of regressions.
        gate_intercept: Whether the gate has intercepts.

    Raises:
        ValueError: If ``experts`` is none of these.

    Example:
        >>> ME(x_dim=2, y_dim=1, num_components=5)(torch.zeros(7, 2)).mean.shape
        torch.Size([7, 1])
        >>> constant = ME(x_dim=2, y_dim=1, num_components=5, gate_columns=())
        >>> constant.gate(torch.randn(7, 2)).probs.unique(dim=0).shape
        torch.Size([1, 5])
    """

    def __init__(
        self,
        x_dim: int,
        y_dim: int,
        num_components: int,
        *,
        experts: str | nn.Module | Sequence[nn.Module] | Sequence[str] = "normal",
        common_scale: bool = False,
        predictor: Predictor | Sequence[Predictor] = ALL_COLUMNS,
        gate_columns: Sequence[int] | None = None,
        gate_intercept: bool = True,
    ) -> None:
        units = Standardize(x_dim, common=common_scale)
        gate = SoftmaxGate(
            x_dim, num_components, units=units, columns=gate_columns, intercept=gate_intercept
        )
        found = experts_of(experts, x_dim, num_components, y_dim, units=units, predictor=predictor)
        super().__init__(gate, found, units=units)
        self.x_dim, self.y_dim, self.num_components = x_dim, y_dim, num_components
        self.options: dict[str, Any] = {
            "experts": experts,
            "common_scale": common_scale,
            "predictor": predictor,
            "gate_columns": gate_columns,
            "gate_intercept": gate_intercept,
        }

    def resized(self, num_components: int) -> "ME":
        """A mixture of experts of the same kind with another number of components."""
        return ME(self.x_dim, self.y_dim, num_components, **copy.deepcopy(self.options))


class DeepMoE(MixtureOfExperts):
    r"""A mixture of experts with a neural gate (paper §8.2).

    .. math:: g_k(x) = \mathrm{softmax}_k\, f(x)

    Args:
        x_dim: D, columns of x.
        y_dim: M, columns of y, or the number of classes.
        num_components: K.
        experts: A family of affine experts, ``"normal"``, ``"categorical"``, ``"student-t"``,
            ``"bernoulli"`` or ``"poisson"``; or modules, see `MixtureOfExperts`.
        common_scale: Whether the columns of x share one unit, as the pixels of an image do.
        hidden: Widths of the gate's hidden layers.
        gate: A network from x to ``num_components`` logits, instead of an MLP.
        predictor: What the linear predictors of affine experts are made of, see `Predictor`; or one
            for each family of a list.
        gate_columns: The numbers of the columns that the gate reads; all if None.

    Raises:
        ValueError: If ``experts`` is none of these.

    Example:
        >>> DeepMoE(x_dim=2, y_dim=1, num_components=5)(torch.zeros(7, 2)).mean.shape
        torch.Size([7, 1])
    """

    start = "autoencoder"

    def __init__(
        self,
        x_dim: int,
        y_dim: int,
        num_components: int,
        *,
        experts: str | nn.Module | Sequence[nn.Module] | Sequence[str] = "normal",
        common_scale: bool = False,
        hidden: Sequence[int] = (128, 128),
        gate: nn.Module | None = None,
        predictor: Predictor | Sequence[Predictor] = ALL_COLUMNS,
        gate_columns: Sequence[int] | None = None,
    ) -> None:
        units = Standardize(x_dim, common=common_scale)
        width = x_dim if gate_columns is None else len(gate_columns)
        chosen = [] if gate_columns is None else [Columns(gate_columns)]
        network = nn.Sequential(units, *chosen, gate or MLP(width, hidden, num_components))
        super().__init__(
            CategoricalConditional(network),
            experts_of(experts, x_dim, num_components, y_dim, units=units, predictor=predictor),
            units=units,
        )
        self.x_dim, self.y_dim, self.num_components = x_dim, y_dim, num_components
        self.options: dict[str, Any] = {
            "experts": experts,
            "common_scale": common_scale,
            "predictor": predictor,
            "gate_columns": gate_columns,
        }

    def shallow(self) -> ME:
        """A mixture of the same experts with a softmax gate."""
        return ME(self.x_dim, self.y_dim, self.num_components, **copy.deepcopy(self.options))


class HierarchicalME(MixtureOfExperts):
    r"""A tree of softmax gates: a mixture of experts whose experts are mixtures of experts.

    .. math:: p(y \mid x) = \sum_i g_i(x) \sum_j g_{j \mid i}(x)\, p_{ij}(y \mid x)

    The site ``c`` is the branch at the root. The lower branches are summed out within its experts
    (Jordan and Jacobs, 1994).

    Args:
        x_dim: D, columns of x.
        y_dim: M, columns of y, or the number of classes.
        num_components: Number of branches at each level from the root, two numbers or more.
        experts: A family of affine experts at the leaves.
        common_scale: Whether the columns of x share one unit, as the pixels of an image do.
        predictor: What the linear predictors of affine experts are made of, see `Predictor`; or one
            for each family of a list.
        gate_columns: The numbers of the columns that the gates read; all if None.

    Raises:
        ValueError: If there are fewer than two levels, or ``experts`` is none of the families.

    Example:
        >>> HierarchicalME(x_dim=2, y_dim=1, num_components=(2, 3))(torch.zeros(7, 2)).mean.shape
        torch.Size([7, 1])
    """

    def __init__(
        self,
        x_dim: int,
        y_dim: int,
        num_components: Sequence[int] = (2, 2),
        *,
        experts: str | Sequence[str] = "normal",
        common_scale: bool = False,
        predictor: Predictor | Sequence[Predictor] = ALL_COLUMNS,
        gate_columns: Sequence[int] | None = None,
    ) -> None:
        if not isinstance(num_components, Sequence) or len(num_components) < 2:
            raise ValueError(f"expected two levels or more; got num_components={num_components}")
        units = Standardize(x_dim, common=common_scale)

        def level(branches: Sequence[int]) -> MixtureOfExperts:
            if len(branches) == 1:
                below = experts_of(
                    experts, x_dim, branches[0], y_dim, units=units, predictor=predictor
                )
            else:
                below = experts_of([level(branches[1:]) for _ in range(branches[0])])
            gate = SoftmaxGate(x_dim, branches[0], units=units, columns=gate_columns)
            return MixtureOfExperts(gate, below)

        root = level(num_components)
        super().__init__(root.gate, root.experts, units=units)
        self.x_dim, self.y_dim, self.num_components = x_dim, y_dim, tuple(num_components)
        self.options: dict[str, Any] = {
            "experts": experts,
            "common_scale": common_scale,
            "predictor": predictor,
            "gate_columns": gate_columns,
        }

    def shallow(self) -> ME:
        """A mixture of the experts at the leaves with one softmax gate."""
        number = math.prod(self.num_components)
        return ME(self.x_dim, self.y_dim, number, **copy.deepcopy(self.options))
