"""Rows with missing entries: their densities, and rows that have their expected moments."""

from collections.abc import Iterator
from typing import Any

import torch

from pyro_moe.distributions import Conditional, condition

VALUES = 2**22


def marginal_log_prob(p: Any, x: torch.Tensor) -> torch.Tensor:
    """The log-densities of the observed entries, shape (N, K), in double precision.

    Args:
        p: K distributions of rows that `condition` accepts.
        x: Rows, shape (N, D), NaN where missing.
    """
    gaps = x.isnan().any(-1)
    whole = p.log_prob(x.nan_to_num(0.0).double().unsqueeze(-2))
    if not gaps.any():
        return whole
    parts = [given.log_prob for given, _ in conditionals(p, x[gaps])]
    return whole.index_put((gaps.nonzero().flatten(),), torch.cat(parts))


def conditionals(p: Any, x: torch.Tensor) -> Iterator[tuple[Conditional, torch.Tensor]]:
    """Each of K distributions given the observed entries, block by block, and the block's rows."""
    size = p.batch_shape.numel() * p.event_shape.numel() ** 2
    for rows in torch.arange(len(x), device=x.device).split(max(1, VALUES // size)):
        block = x[rows].unsqueeze(-2)
        yield condition(p, block.nan_to_num(0.0), ~block.isnan()), rows


def completed(
    p: Any, x: torch.Tensor, responsibilities: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    r"""Rows without gaps that have the expected first and second moments of those with gaps.

    .. math:: E[x \mid x_o, c = k] \pm \sqrt{d}\, l_i, \quad
              \sum_i l_i l_i^\top = \mathrm{Var}[x \mid x_o, c = k], \quad i = 1, \dots, d

    Each has the weight r_nk / 2d in component k, and none in others. An M-step that depends on
    weighted sums of x and x x^T alone is then that of EM with the missing entries latent.

    Args:
        p: K distributions of rows that `condition` accepts.
        x: Rows, shape (N, D), NaN where missing.
        responsibilities: r, shape (N, K).

    Returns:
        The complete rows and the others, shape (R, D), their weights, shape (R, K), and the number
        of the row that each belongs to, shape (R,).
    """
    gaps = x.isnan().any(-1)
    own = (~gaps).nonzero().flatten()
    lacking, r = gaps.nonzero().flatten(), responsibilities[gaps]
    rows, weights, numbers = [x[own]], [responsibilities[own]], [own]
    number = int(x.isnan().sum(-1).max())
    for given, block in conditionals(p, x[lacking]):
        values, vectors = torch.linalg.eigh(given.covariance())  # in ascending order
        roots = (number * values[..., -number:].clamp_min(0.0)).sqrt()
        steps = (vectors[..., -number:] * roots.unsqueeze(-2)).mT  # (B, K, d, D)
        points = given.mean.unsqueeze(-2) + torch.cat([steps, -steps], -2)
        here = x[lacking[block]][:, None, None]
        points = torch.where(here.isnan(), points, here)
        shares = (r[block] / (2 * number)).diag_embed()  # (B, K, K): each in one component
        count = points.shape[2]
        rows.append(points.flatten(0, 2).to(x))
        weights.append(shares.unsqueeze(2).expand(-1, -1, count, -1).flatten(0, 2).to(r))
        numbers.append(lacking[block].repeat_interleave(points.shape[1] * count))
    return torch.cat(rows), torch.cat(weights), torch.cat(numbers)


def covariance_of(p: Any) -> torch.Tensor:
    """The covariances of normals, shape (..., D, D)."""
    full = getattr(p, "covariance_matrix", None)
    return p.variance.diag_embed() if full is None else full
