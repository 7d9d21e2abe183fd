"""The experts and their weights at one draw of the latent variables."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch

from pyro_moe.distributions import Mixture, concatenate, log_probabilities_of

from ..marginals import families, mean_of, variance_of
from ..traces import batches

ROWS = 2**14
VALUES = 2**22

Columns = tuple[Any, ...]


@dataclass(frozen=True)
class Draw:
    """The experts' distributions and log-weights (N, K) at one draw of the latent variables."""

    distribution: Any
    log_weights: torch.Tensor
    leading: bool = False
    of_assignment: bool = False  # whether the weights are those of the site c
    target: torch.Tensor | None = None  # a drawn y of one row


def whole_of(blocks: list[Draw]) -> Draw | None:
    """The draw of all rows, or None if the family of the experts cannot be concatenated."""
    first = blocks[0]
    whole = concatenate([block.distribution for block in blocks], int(first.leading))
    if whole is None:
        return None
    log_weights = torch.cat([block.log_weights for block in blocks])
    return replace(first, distribution=whole, log_weights=log_weights)


def of_mixture(p: Any) -> Draw:
    """The draw of a mixture, whose component distributions are the experts."""
    known = isinstance(p, Mixture)  # whose own logarithms are normalized
    log_weights = p.log_weights if known else log_probabilities_of(p.mixture_distribution)
    return Draw(p.component_distribution, log_weights)


def agree(one: Draw, other: Draw) -> bool:
    """Whether two draws have the same distributions up to rounding."""
    precision = 1e-5 if one.log_weights.dtype == torch.float32 else 1e-9
    kinds = ([type(p) for p in families(draw.distribution)] for draw in (one, other))
    if (
        next(kinds) != next(kinds)
        or one.leading
        or one.log_weights.shape != other.log_weights.shape
    ):
        return False
    pairs = [(one.log_weights.exp(), other.log_weights.exp())]
    pairs += [(read(one.distribution), read(other.distribution)) for read in (mean_of, variance_of)]
    return all(
        a.shape == b.shape and torch.allclose(a, b, rtol=precision, atol=precision, equal_nan=True)
        for a, b in pairs
    )


def blocks_of(features: Columns) -> Iterator[Columns]:
    """Minibatches of many rows, or of fewer if these are wide."""
    return batches(features, max(1, min(ROWS, VALUES // features[0][:1].numel())))
