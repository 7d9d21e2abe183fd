"""Densities in double precision, of parameters of any precision.

A log-density is often a small difference of large terms. That of a Poisson count of a million is
the sum of terms of about 1e7, of which single precision resolves steps of one.
"""

import math
from functools import reduce
from typing import Any

import pyro.distributions as dist
import torch
from torch.distributions import Independent, MixtureSameFamily, constraints

from .joint import Joint
from .mixture import Mixture, Stacked
from .relaxed import is_of_probs, log_probabilities_of

# Constructor arguments of each family, in the parameterization without loss of precision.
PARAMETERS = {
    "Bernoulli": ("logits",),
    "Beta": ("concentration1", "concentration0"),
    "Binomial": ("total_count", "logits"),
    "Categorical": ("logits",),
    "Cauchy": ("loc", "scale"),
    "ContinuousBernoulli": ("logits",),
    "Exponential": ("rate",),
    "Gamma": ("concentration", "rate"),
    "HalfNormal": ("scale",),
    "Laplace": ("loc", "scale"),
    "LogNormal": ("loc", "scale"),
    "LowRankMultivariateNormal": ("loc", "cov_factor", "cov_diag"),
    "MultivariateNormal": ("loc", "scale_tril"),
    "NegativeBinomial": ("total_count", "logits"),
    "Normal": ("loc", "scale"),
    "Poisson": ("rate",),
    "StudentT": ("df", "loc", "scale"),
}


def parameters_of(p: Any) -> dict[str, torch.Tensor] | None:
    """The constructor arguments of a distribution, or None if its family is not supported."""
    names = PARAMETERS.get(type(p).__name__)
    if names is None:
        return None
    if isinstance(p, torch.distributions.Categorical):
        return {"logits": log_probabilities_of(p)}
    if "logits" in names and is_of_probs(p):
        names = tuple(name.replace("logits", "probs") for name in names)
    return {name: getattr(p, name) for name in names}


def _given(p: Any) -> dict[str, torch.Tensor]:
    if isinstance(p, torch.distributions.MultivariateNormal):
        # The attribute ``scale_tril`` has a copy of the factor for every row.
        return {"loc": p.loc, "scale_tril": p._unbroadcasted_scale_tril}
    return {name: torch.as_tensor(value) for name, value in (parameters_of(p) or {}).items()}


def in_double(p: Any) -> Any:
    """The distribution with its parameters in double precision.

    Args:
        p: A distribution of any shape. One whose family is not supported is returned as it is.

    Example:
        >>> rate = torch.tensor(1e6)
        >>> round(in_double(torch.distributions.Poisson(rate)).log_prob(rate.double()).item(), 6)
        -7.826694
    """
    if isinstance(p, _Double) and p.exact is not None:
        return p.exact
    if isinstance(p, Independent):
        base = in_double(p.base_dist)
        return p if base is p.base_dist else dist.Independent(base, p.reinterpreted_batch_ndims)
    if isinstance(p, Mixture):
        return p.of(in_double(p.component_distribution))
    if isinstance(p, Stacked | Joint):
        return type(p)([in_double(q) for q in p.distributions], validate_args=False)
    if isinstance(p, MixtureSameFamily):
        weights = in_double(p.mixture_distribution)
        return type(p)(weights, in_double(p.component_distribution), validate_args=False)
    given = _given(p)
    if not given or _are_double(given):
        return p
    precise = {name: value.double() for name, value in given.items()}
    return type(p)(**precise, validate_args=False)


def rounded(p: Any, dtype: torch.dtype) -> Any:
    """The distribution with parameters and samples of a type, and with the density that it has.

    Args:
        p: A distribution of this file with parameters in double precision.
        dtype: The type of a story's parameters.

    Example:
        >>> exact = Normal(torch.tensor(1e8 + 1, dtype=torch.float64), 1.0)
        >>> p = rounded(exact, torch.float32)
        >>> p.loc, p.log_prob(torch.tensor(1e8))
        (tensor(100000000.), tensor(-1.4189))
    """
    if dtype == torch.float64:
        return p
    given = {name: value.to(dtype) for name, value in _given(p).items()}
    visible = type(p)(**given, validate_args=False)
    visible.exact = in_double(p)
    return visible


def is_precise(p: Any) -> bool:
    """Whether `in_double` would not make the log-density of a distribution more precise."""
    if isinstance(p, Independent):
        return is_precise(p.base_dist)
    if isinstance(p, Mixture | MixtureSameFamily):
        return is_precise(p.component_distribution)
    if isinstance(p, Stacked | Joint):
        return all(is_precise(q) for q in p.distributions)
    return _are_double(_given(p))


def _are_double(given: dict[str, torch.Tensor]) -> bool:
    return all(value.dtype == torch.float64 for value in given.values())


class _Double:
    """A mixin that computes the log-density in double precision, and then rounds it.

    Attributes:
        exact: The distribution before its parameters were rounded, or None.
    """

    exact: Any = None

    def expand(self: Any, batch_shape: Any, _instance: Any = None) -> Any:
        """The distribution expanded to a batch shape."""
        new = super().expand(batch_shape, _instance)  # type: ignore[misc]
        new.exact = None if self.exact is None else self.exact.expand(batch_shape)
        return new

    def log_prob(self: Any, value: torch.Tensor) -> torch.Tensor:
        """The log-density of a value, of the type of the parameters."""
        if self._validate_args:
            self._validate_sample(value)
        own = reduce(torch.promote_types, (given.dtype for given in _given(self).values()))
        return in_double(self).log_density(value.double()).to(own)

    def log_density(self: Any, value: torch.Tensor) -> torch.Tensor:
        """The log-density of a value in double precision, if the parameters are, too."""
        return super().log_prob(value)  # type: ignore[misc]


class Binomial(_Double, dist.Binomial):
    """Pyro's binomial distribution, whose support does not depend on the number of trials."""

    @constraints.dependent_property(is_discrete=True, event_dim=0)
    def support(self) -> Any:
        """Counts, those above the number of trials included, which have probability zero."""
        return constraints.nonnegative_integer


class ContinuousBernoulli(_Double, dist.ContinuousBernoulli):
    """Pyro's continuous Bernoulli distribution with a density computed in double precision."""


class MultivariateNormal(_Double, dist.MultivariateNormal):
    """Pyro's multivariate normal distribution with a density computed in double precision."""

    def log_density(self, value: torch.Tensor) -> torch.Tensor:
        r"""The log-density, of all rows under all of K normals by one product of matrices.

        .. math:: |L_k^{-1} (x_n - \mu_k)|^2 = |L_k^{-1} (x_n - m) - L_k^{-1} (\mu_k - m)|^2
        """
        factor: Any = self._unbroadcasted_scale_tril
        if value.dim() < 2 or value.shape[-2] != 1 or self.loc.dim() != 2 or factor.dim() != 3:
            return super().log_density(value)
        (number, size), rows = self.loc.shape, value.reshape(-1, value.shape[-1])
        middle = self.loc.detach().mean(0)  # without it, rows far from zero would lose digits
        eye = torch.eye(size, dtype=rows.dtype, device=rows.device)
        whitening = torch.linalg.solve_triangular(factor, eye, upper=False)
        offset = (whitening @ (self.loc - middle).unsqueeze(-1)).reshape(-1, 1)
        whitening = whitening.expand(number, size, size).reshape(-1, size)
        white = torch.addmm(offset, whitening, (rows - middle).mT, beta=-1)
        distance = white.view(number, size, -1).square().sum(1)
        diagonal = factor.diagonal(dim1=-2, dim2=-1).log().sum(-1, keepdim=True)
        constant = diagonal + 0.5 * size * math.log(2.0 * math.pi)
        return (-0.5 * distance - constant).mT.reshape(*value.shape[:-2], number)


class NegativeBinomial(_Double, dist.NegativeBinomial):
    """Pyro's negative binomial distribution with a density computed in double precision."""


class Normal(_Double, dist.Normal):
    """Pyro's normal distribution with a density computed in double precision."""


class Poisson(_Double, dist.Poisson):
    """Pyro's Poisson distribution with a density computed in double precision."""


class StudentT(_Double, dist.StudentT):
    """Pyro's Student-t distribution with a density computed in double precision.

    Where tails are so heavy that there is no mean, `mean` is the center.
    """

    @property
    def mean(self) -> torch.Tensor:
        """The center, which is the mean if ν > 1, and the median."""
        return self.loc

    @property
    def variance(self) -> torch.Tensor:
        """The variance, infinite if ν ≤ 2."""
        finite = self.scale.square() * self.df / (self.df - 2.0)
        return torch.where(self.df > 2.0, finite, torch.inf)
