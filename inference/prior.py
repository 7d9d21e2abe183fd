r"""A weak prior for few rows: rows of a simpler model, with small weights (a catalytic prior).

.. math:: \log p(\theta) = \frac{\kappa}{N} \sum_{nk} \log p_\theta(d_n, c_n = k)
          + \frac{\kappa_0}{N} \sum_{nk} \log p_\theta(x_n, y_{\pi(n)}, c_n = k)
          - \frac{\lambda}{2} |w|^2

The first term gives each component κ rows that are distributed like all rows. It draws the
components toward one model of all rows, and keeps the likelihood bounded. The second term gives
each component κ₀ rows in which y does not depend on x, because π is a random permutation. It draws
the effects of x toward zero. The third is the prior N(0, 1/λ) of the weights of softmax gates,
experts and perceptrons, in standard units.

References:
    Huang, Stein, Rubin, Kou (2020), *Catalytic prior distributions with application to
    generalized linear models*, PNAS 117. Fraley, Raftery (2007), *Bayesian regularization for
    normal mixture estimation and model-based clustering*, Journal of Classification 24.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from pyro.poutine import Trace

from pyro_moe.distributions import Mixture

from .context import reproducible
from .handlers import is_assignment
from .programs import Program, modules
from .protocols import Penalized
from .rows import OnDisk, stored
from .rows.groups import shares_of_groups
from .traces import is_in_plate, layers

Data = tuple[torch.Tensor, ...]
PERMUTATIONS = 4
ROWS = 2**16  # that are read at once


@dataclass(frozen=True)
class Prior:
    """The weights of the prior's terms.

    Attributes:
        rows: κ, rows of the model of all rows for each component.
        null_rows: κ₀, rows without an effect of x for each component.
        ridge: λ of a softmax gate. That of experts is 0.04 for classes and 0.001 for others; it is
            zero if this is zero.
        networks: λ of the weights of perceptrons.

    Raises:
        ValueError: If a weight is negative.

    Example:
        >>> Prior(rows=2.0).rows
        2.0
    """

    rows: float = 1e-3
    null_rows: float = 0.0
    ridge: float = 1e-4
    networks: float = 0.0

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not value >= 0:
                raise ValueError(f"expected {name} of at least 0; got {value}")


WEAK = Prior()
FLAT = Prior(0.0, 0.0, 0.0, 0.0)


def with_ridge(prior: Prior, *programs: Program) -> None:
    """Set the ridge of gates and networks, and turn that of experts off if it is zero."""
    for part in penalized(*programs):
        if part.role == "network":
            part.ridge = prior.networks
        elif part.role == "gate" or not prior.ridge:
            part.ridge = prior.ridge
        elif not part.ridge:
            part.ridge = getattr(type(part), "ridge", 0.0)


def log_ridge(*programs: Program) -> torch.Tensor:
    """The last term of log p(θ), of gates and of experts, a scalar."""
    return log_ridge_of(penalized(*programs))


def log_ridge_of(parts: Iterable[Penalized]) -> torch.Tensor:
    """The last term of log p(θ), of these parts, a scalar."""
    terms = [part.ridge * part.squared_weights() for part in parts if part.ridge]
    return -0.5 * sum(terms, torch.zeros((), dtype=torch.float64))


def penalized(*programs: Program) -> list[Penalized]:
    """The parts with a ridge of their own. Parts within these belong to their M-step."""
    found: list[Penalized] = []
    waiting = list(modules(*programs))
    while waiting:
        part = waiting.pop()
        if isinstance(part, Penalized):
            found.append(part)
        else:
            waiting += part.children()
    return list(dict.fromkeys(found))


def with_prior_rows(
    prior: Prior,
    responsibilities: torch.Tensor,
    points: torch.Tensor,
    data: Data,
    *,
    seed: int,
    weights: torch.Tensor | None = None,
    total: float | None = None,
) -> tuple[torch.Tensor, torch.Tensor, Data]:
    """The rows of an M-step, and those of the prior.

    Args:
        prior: The weights.
        responsibilities: r, shape (N, K).
        points: The points of the mixture, shape (N, L).
        data: x, or x and y, N rows each.
        seed: Seed of the permutations of y.
        weights: The weights of the rows, shape (N,), or None for weights of one.
        total: The sum of the weights of all rows, if these are some of them.

    Returns:
        Weights, points and data, of N rows, or of 5 N rows if there are rows without an effect.
    """
    if total is None:
        total = float(len(points) if weights is None else weights.sum())
    times = None if weights is None else weights.unsqueeze(-1)
    share = _with_each(responsibilities, prior.rows / total, times)
    if not prior.null_rows or len(data) < 2:
        return share, points, data
    null = torch.full_like(share, prior.null_rows / (PERMUTATIONS * total))
    null = null if times is None else times * null
    copies = [without_effect(data, seed, number) for number in range(PERMUTATIONS)]
    columns = zip(data, *copies, strict=True)
    shares = torch.cat([share, *(null for _ in copies)])
    many = points.repeat(1 + PERMUTATIONS, *(1 for _ in points.shape[1:]))
    return shares, many, tuple(torch.cat(column) for column in columns)


def _with_each(
    responsibilities: torch.Tensor, each: float, times: torch.Tensor | None
) -> torch.Tensor:
    """Responsibilities (N, K) with a term for each component, times the weights (N, 1)."""
    if not each and times is None:
        return responsibilities
    if not isinstance(responsibilities, OnDisk):
        share = responsibilities + each
        return share if times is None else times * share
    if times is None:
        responsibilities.change(lambda r: r + each)  # in place, as they are only used here
        return responsibilities
    parts = zip(responsibilities.split(ROWS), times.split(ROWS), strict=True)
    return stored((w * (r + each),) for r, w in parts)[0]


def without_effect(data: Data, seed: int, number: int) -> Data:
    """The rows with y permuted."""
    x, *targets = data
    order = permutation(len(x), seed, number).to(x.device)
    return (x, *(y[order] for y in targets))


@lru_cache(4 * PERMUTATIONS)  # kept, so that a recording of the objective holds it as a constant
def permutation(number_of_rows: int, seed: int, number: int) -> torch.Tensor:
    """The order of y in the permuted rows, shape (N,)."""
    with reproducible(seed, number, 9):
        return torch.randperm(number_of_rows)


def log_prior_terms(prior: Prior, num_rows: float, model_trace: Trace) -> torch.Tensor | float:
    r"""The first two terms of log p(θ) that belong to the rows of a minibatch, a scalar.

    They are read from the sites that depend on the component: c, where its prior has the rows in
    its batch shape, and observed sites whose distribution depends on c or is a `Mixture`. Further
    layers of assignments take each of their values in equal shares of a component's rows.

    Args:
        prior: The weights.
        num_rows: N, the number of all rows, or the sum of their weights.
        model_trace: A trace at all values of ``c``, see `traces.enumerated_traces`.
    """
    if not prior.rows and not prior.null_rows:
        return 0.0
    null = prior.null_rows if "y" in model_trace.observation_nodes else 0.0
    total: Any = 0.0
    dims = layers(model_trace)
    number = model_trace.nodes["c"]["value"].shape[-1] if "c" in dims else 1
    for name, site in model_trace.nodes.items():
        if is_assignment(site) and len(site["fn"].batch_shape) > 0:
            log_c = _of_components(site["unscaled_log_prob"], number)
            groups = site["infer"].get("groups")
            each = _scaled(site, log_c)
            total = total + null * each.sum()
            if groups is not None:
                weights = site["scale"] if isinstance(site["scale"], torch.Tensor) else None
                each = shares_of_groups(groups, weights) * log_c
            total = total + prior.rows * each.sum()
        elif site["type"] == "sample" and site["is_observed"] and is_in_plate(site):
            total = total + prior.rows * _each_component(site, number)
            if null:  # x is the same in these rows
                total = total + null * _each_component(site, number, shift=int(name == "y"))
    return total / num_rows


def _of_components(each: torch.Tensor, number: int) -> torch.Tensor:
    """Log-densities (K, N) from those at all values of the layers, of which further ones average.

    Args:
        each: Shape (K, N); (G, K, N) or (G, 1, N) where it depends on a further layer.
        number: K.
    """
    if each.dim() == 2:
        return each
    return each.flatten(0, -3).mean(0).expand(number, -1)


def _each_component(site: Any, number: int, shift: int = 0) -> torch.Tensor:
    """Σ_nk of log-densities under each component, with the weights of a `Mixture`.

    Args:
        site: An observed site.
        number: K.
        shift: By how many rows the values are shifted.
    """
    p, value = site["fn"], site["value"].roll(shift, 0)
    by_component = site["unscaled_log_prob"].dim() > 1
    if isinstance(p, Mixture) and not by_component:
        each = p.component_distribution.log_prob(value.unsqueeze(-1 - p.event_dim))
        return _scaled(site, _masked(site, (each + p.log_weights).movedim(-1, 0), shift)).sum()
    if not by_component:
        return value.new_zeros((), dtype=site["unscaled_log_prob"].dtype)
    each = p.log_prob(value) if shift else site["unscaled_log_prob"]
    return _scaled(site, _of_components(_masked(site, each, shift), number)).sum()


def _scaled(site: Any, each: torch.Tensor) -> torch.Tensor:
    """Log-densities (..., N) times the weights of the rows."""
    scale = site["scale"]
    return scale * each if isinstance(scale, torch.Tensor) and scale.dim() else each


def _masked(site: Any, each: torch.Tensor, shift: int) -> torch.Tensor:
    """Log-densities (K, N), and zero where the value is missing."""
    mask = site["mask"]
    if mask is None:
        return each
    return torch.where(torch.as_tensor(mask).expand(each.shape).roll(shift, -1), each, 0.0)


def prior_rows(prior: Prior, sums: Iterable[torch.Tensor]) -> torch.Tensor:
    """The first two terms of log p(θ), from Σ_nk / N of the rows and of the permuted rows."""
    joint, *null = sums
    total = prior.rows * joint if prior.rows else torch.zeros_like(joint)
    return total + prior.null_rows * sum(null, torch.zeros_like(joint)) / PERMUTATIONS
