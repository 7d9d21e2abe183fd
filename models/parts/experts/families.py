"""Experts by the name of their family, and what their linear predictors are made of."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from ..networks import AffineMaps, PartlySharedMaps
from .base import Experts
from .binary import BernoulliExperts, BinomialExperts
from .categorical import CategoricalExperts
from .joint import JointExperts, StackedExperts
from .normal import NormalExperts
from .poisson import PoissonExperts
from .student_t import StudentTExperts

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
        shrinkage: How many rows the prior of the slopes of normal experts counts as, by which the
            columns together explain the variance of y. Use 1 for many columns that some experts'
            rows hardly determine, such as pixels.
    """

    columns: Sequence[int] | None = None
    intercept: bool = True
    offset_column: int | None = None
    trials_column: int | None = None
    shared: Sequence[int] = ()
    shared_intercept: bool = False
    shared_scale: bool = False
    shrinkage: float = 0.0

    def maps(
        self, width: int, num_components: int, out_features: int, units: nn.Module | None
    ) -> nn.Module:
        """The affine maps of K experts of a context of a width."""
        columns = range(width) if self.columns is None else self.columns
        if self.shared or self.shared_intercept:
            if self.shrinkage:
                raise ValueError("expected no shrinkage of shared coefficients; got some")
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
            shrinkage=self.shrinkage,
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
        >>> import torch
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
    if predictor.shrinkage:
        raise ValueError(f"expected normal experts for shrinkage; got {experts!r}")
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
