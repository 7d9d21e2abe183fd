"""Imputation of missing features by a fitted story."""

from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import Dataset

from pyro_moe.fitted import Fit
from pyro_moe.inference.context import reproducible, without_warnings
from pyro_moe.inference.errors import DataError, DataWarning
from pyro_moe.rows import Data, Rows, as_tensor, as_tensors

from ..traces import observed_sites
from .gibbs import Chains
from .importance import Sampler


@dataclass(frozen=True)
class Imputation:
    """Imputations of the missing entries of N rows. Observed entries are as given.

    Attributes:
        mean: E[x_missing | x_observed], shape (N, D), in double precision.
        variance: The variance of each entry, shape (N, D), zero for observed entries; likewise.
        draws: Completed rows, draws of x_missing | x_observed, shape (S, N, D). They are multiple
            imputations: analyze each and combine the results to account for the uncertainty of
            missing values (Rubin 1987).
        effective_samples: Effective sample size of the importance weights, or the number of chains
            that have moved if that is larger, shape (N,). If it is small, such as ten, the
            approximation is poor and the variance is underestimated.
    """

    mean: torch.Tensor
    variance: torch.Tensor
    draws: torch.Tensor
    effective_samples: torch.Tensor

    def __len__(self) -> int:
        return len(self.mean)


def impute(
    fit: Fit,
    x: Data,
    *,
    num_samples: int = 64,
    num_rounds: int = 8,
    num_moves: int = 40,
    seed: int = 0,
) -> Imputation:
    r"""Impute missing entries of x given the observed ones.

    .. math:: p(x_m \mid x_o) \approx \sum_{s, k} w_{sk}\, p(x_m \mid x_o, z_s, c = k), \quad
              w_{sk} \propto \frac{p(c = k)\, p(z_s \mid c = k)\, p(x_o \mid z_s, c = k)}{r(z_s)}

    with ``c`` summed out. This is exact if ``c`` is the only latent variable, as in a Gaussian
    mixture. Otherwise z is drawn by importance sampling (MIWAE, Mattei and Frellsen 2019). In the
    first round the proposal r is the model's p(z|c). In later rounds r is the encoder, averaged
    over the S completed rows of the previous rounds:

    .. math:: r(z) = \frac{1}{S} \sum_s q(z \mid x_o, x_m^{(s)})

    It equals p(z|x_o) if q is the posterior and the completed rows are draws from p(x_m|x_o). The
    mixture in the denominator is essential (Elvira et al. 2017). q(z|x) is conditional on all of x
    and narrower than p(z|x_o); weights with a single q can have infinite variance. The weights of
    all rounds are pooled.

    In rows whose effective sample size is below S, the S draws are then chains, which move by
    Metropolis-within-Gibbs (Mattei and Frellsen 2018). A chain at (z, x_m) is offered z' of the
    encoder, and takes it with the probability

    .. math:: \min\left(1, \frac{p(x_o, x_m, z')\, q(z \mid x_o, x_m)}
              {p(x_o, x_m, z)\, q(z' \mid x_o, x_m)}\right)

    before x_m is drawn again from p(x_m | x_o, z). The moments are then those of the second half of
    the moves. `benchmarks/imputation.py` measures the coverage of intervals on digits.

    Entries are assumed to be missing at random. Targets are ignored.

    Args:
        fit: A fitted story with a site ``x``, whose columns are independent given the latent
            variables, or normal.
        x: Rows, shape (N, D), NaN where missing: a tensor, array, data frame or `Rows`.
        num_samples: S. Run time is proportional to its square.
        num_rounds: Number of rounds after the first.
        num_moves: Number of moves of each chain; zero for importance sampling alone.
        seed: Seed of the draws.

    Returns:
        Mean, variance and draws for each row, with the columns in the order that was fitted.

    Raises:
        DataError: If x has another number of columns than the training x, other names of columns,
            or an infinite value.
        SiteError: If the model has no site ``x``.
        ValueError: If columns of ``x`` are neither independent given the latent variables nor
            normal, or if ``num_samples``, ``num_rounds`` or ``num_moves`` is too small.

    Example:
        >>> import pyro_moe
        >>> from pyro_moe import models
        >>> story = models.GMM(x_dim=2, num_components=1)
        >>> x = torch.randn(500, 2, generator=torch.Generator().manual_seed(0))
        >>> x[:, 1] = 3.0 * x[:, 0]
        >>> fit = pyro_moe.fit(story.model, story.guide, x, loss="em", epochs=2, progress=False)
        >>> impute(fit, [[1.0, float("nan")]]).mean.round(decimals=2)
        tensor([[1., 3.]], dtype=torch.float64)
    """
    for name, least, given in (
        ("num_samples", 1, num_samples),
        ("num_rounds", 0, num_rounds),
        ("num_moves", 0, num_moves),
    ):
        if given < least:
            raise ValueError(f"expected {name} of at least {least}; got {given}")
    (x, *others), observed = _incomplete(fit, x)
    mean = x.double()  # the square of a small unit may underflow in single precision
    variance = torch.zeros_like(mean)
    draws, effective = x.repeat(num_samples, 1, 1), mean.new_full((len(x),), num_samples)
    gaps = (~observed).any(-1).nonzero().flatten()
    with torch.no_grad(), reproducible(seed):
        for rows in gaps.split(max(1, 2**20 // (num_samples * fit.x_dim))) if len(gaps) else ():
            known = observed[rows]
            start = x[rows].expand(num_samples, -1, -1)
            result = Sampler(fit, known, others).run(start, num_rounds)
            mean[rows] = torch.where(known, x[rows], result.mean)  # exact, without rounding errors
            variance[rows] = torch.where(known, 0.0, result.variance)
            draws[:, rows] = result.draws
            effective[rows] = result.effective_samples
            few = effective[rows] < num_samples
            if not (num_moves and few.any()):
                continue
            rows, known = rows[few], known[few]
            chains = Chains(fit, known, others, result.draws[:, few].to(x))
            if chains.can_move:
                chains.move(num_moves)
                mean[rows] = torch.where(known, x[rows], chains.mean)
                variance[rows] = torch.where(known, 0.0, chains.variance)
                draws[:, rows] = chains.draws
                effective[rows] = torch.maximum(effective[rows], chains.num_moved)
    return Imputation(mean, variance, draws, effective)


def completions(fit: Fit, x: Data, number: int, seed: int) -> torch.Tensor | None:
    """Completed rows (S, N, D), draws of what is missing in x, or None if there is no need.

    There is none if no entry is missing, or if the story itself takes incomplete rows; and no way
    if it has no site ``x``.
    """
    if getattr(fit.story, "missing_features", False):
        return None
    try:
        with without_warnings(DataWarning):  # which the caller gives
            lacks = _x_of(fit, x).isnan().any()
    except DataError:  # of data with other faults, which the caller finds
        return None
    if not lacks or "x" not in observed_sites(fit):
        return None
    return impute(fit, x, num_samples=number, seed=seed).draws


def _incomplete(fit: Fit, data: Data) -> tuple[tuple[Any, ...], torch.Tensor]:
    """Arguments of model and guide with typical values where missing, and which are observed."""
    x = _x_of(fit, data)
    observed = ~x.isnan()
    fits = x.dim() == 2 and x.shape[1] == fit.x_dim
    typical = fit.training.mean
    arguments = fit.features(torch.where(observed, x, typical.cpu() if fits else 0))
    return arguments, observed.to(arguments[0].device)


def _x_of(fit: Fit, data: Data) -> torch.Tensor:
    """The rows of x of any kind of data, NaN where missing, with columns in the fit's order."""
    if isinstance(data, Dataset):
        return as_tensors(data, missing_targets=True, missing_features=True)[0]
    data = fit.in_order(data[0] if isinstance(data, tuple) and data else data)
    return as_tensor(data.x if isinstance(data, Rows) else data, "x")
