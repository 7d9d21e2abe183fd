"""Imputation of missing features by a fitted story."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from pyro import poutine
from pyro.poutine import Trace

from pyro_moe.distributions import condition, in_double
from pyro_moe.fitted import Fit
from pyro_moe.inference.context import reproducible
from pyro_moe.inference.handlers import is_assignment
from pyro_moe.inference.programs import Program
from pyro_moe.inference.traces import enumerated_traces, joint_log_weights, layers, other_latents
from pyro_moe.rows import Data, Rows, as_tensor

from .traces import is_shared, node

WORST = -1e30  # replaces a log-weight of -inf, so that the weights of outlying rows are defined


@dataclass(frozen=True)
class Imputation:
    """Imputations of the missing entries of N rows. Observed entries are as given.

    Attributes:
        mean: E[x_missing | x_observed], shape (N, D), in double precision.
        variance: The variance of each entry, shape (N, D), zero for observed entries; likewise.
        draws: Completed rows, draws of x_missing | x_observed, shape (S, N, D). They are multiple
            imputations: analyze each and combine the results to account for the uncertainty of
            missing values (Rubin 1987).
        effective_samples: Effective sample size of the importance weights, shape (N,). If it is
            small, such as ten, the approximation is poor and the variance is underestimated.
    """

    mean: torch.Tensor
    variance: torch.Tensor
    draws: torch.Tensor
    effective_samples: torch.Tensor

    def __len__(self) -> int:
        return len(self.mean)


def impute(
    fit: Fit, x: Data, *, num_samples: int = 64, num_rounds: int = 8, seed: int = 0
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

    With one of two columns of spirals missing, 64 samples in each of nine rounds had an effective
    sample size of 290, and 90 % intervals covered 0.89 of the missing values. With half of the
    pixels of digits missing and ten latent variables, the effective sample size was two. Means
    were accurate (root mean squared error 0.17, compared with 0.27 for column means), but 90 %
    intervals covered only 0.36.

    Entries are assumed to be missing at random. Targets are ignored.

    Args:
        fit: A fitted story with a site ``x``, whose columns are independent given the latent
            variables, or normal.
        x: Rows, shape (N, D), NaN where missing: a tensor, array, data frame or `Rows`.
        num_samples: S. Run time is proportional to its square.
        num_rounds: Number of rounds after the first.
        seed: Seed of the draws.

    Returns:
        Mean, variance and draws for each row, with the columns in the order that was fitted.

    Raises:
        DataError: If x has another number of columns than the training x, other names of columns,
            or an infinite value.
        SiteError: If the model has no site ``x``.
        ValueError: If columns of ``x`` are neither independent given the latent variables nor
            normal, or if ``num_samples`` or ``num_rounds`` is too small.

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
    for name, least, given in (("num_samples", 1, num_samples), ("num_rounds", 0, num_rounds)):
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
            result = _Sampler(fit, known, others).run(start, num_rounds)
            mean[rows] = torch.where(known, x[rows], result.mean)  # exact, without rounding errors
            variance[rows] = torch.where(known, 0.0, result.variance)
            draws[:, rows] = result.draws
            effective[rows] = (2.0 * result.log_weight - result.log_square).exp()
    return Imputation(mean, variance, draws, effective)


def _incomplete(fit: Fit, data: Data) -> tuple[tuple[Any, ...], torch.Tensor]:
    """Arguments of model and guide with typical values where missing, and which are observed."""
    data = fit.in_order(data[0] if isinstance(data, tuple) and data else data)
    x = as_tensor(data.x if isinstance(data, Rows) else data, "x")
    observed = ~x.isnan()
    fits = x.dim() == 2 and x.shape[1] == fit.x_dim
    typical = fit.training.mean
    arguments = fit.features(torch.where(observed, x, typical.cpu() if fits else 0))
    return arguments, observed.to(arguments[0].device)


@dataclass(frozen=True)
class _Estimate:
    """Moments (N, D), draws (S, N, D), and log-sums (N,) of weights and squared weights."""

    mean: torch.Tensor
    variance: torch.Tensor
    draws: torch.Tensor
    log_weight: torch.Tensor
    log_square: torch.Tensor

    def pooled(self, other: "_Estimate") -> "_Estimate":
        """Combine the samples of both by their weights."""
        total = torch.logaddexp(self.log_weight, other.log_weight)
        share = (other.log_weight - total).exp().unsqueeze(-1)
        between = share * (1.0 - share) * (other.mean - self.mean).square()
        new = torch.rand(*self.draws.shape[:2], 1, dtype=share.dtype, device=share.device) < share
        return _Estimate(
            torch.lerp(self.mean, other.mean, share),
            torch.lerp(self.variance, other.variance, share) + between,
            torch.where(new, other.draws, self.draws),
            total,
            torch.logaddexp(self.log_square, other.log_square),
        )


@dataclass(frozen=True)
class _Sampler:
    """Importance sampling for N rows with the given observed entries, shape (N, D)."""

    fit: Fit
    observed: torch.Tensor
    others: Sequence[None]

    def run(self, start: torch.Tensor, num_rounds: int) -> _Estimate:
        """Run all rounds, from rows (S, N, D) with any finite numbers where not observed."""
        prior = poutine.block(self.fit.guide, hide_fn=_is_latent)
        trace, _ = enumerated_traces(self.fit.model, prior, start[0], *self.others)
        latents = {*other_latents(trace)} - {"y"}
        of_rows = any(_is_latent(trace.nodes[name]) for name in latents)
        num_particles = len(start) if of_rows else 1
        result = self._round(prior, start[:num_particles], len(start))
        for _ in range(num_rounds if latents else 0):
            completions = result.draws[:num_particles]
            result = result.pooled(self._round(self.fit.guide, completions, len(start)))
        return result

    def _round(self, guide: Program, x: torch.Tensor, num_draws: int) -> _Estimate:
        """One z, with every c, for each of P completions of the rows, shape (P, N, D)."""
        traces = enumerated_traces(self.fit.model, guide, x.flatten(0, 1), *self.others)
        site = node(traces[0], "x", "model")
        given = condition(site["fn"], site["value"], self.observed.repeat(len(x), 1))
        site["log_prob"] = given.log_prob
        _mix(traces[1], len(x))
        log_weights, shape = joint_log_weights(*traces), given.log_prob.shape
        for dim in layers(*traces).values():
            if dim < -len(shape) or shape[dim] == 1:  # x does not depend on it, except through z
                log_weights = log_weights.logsumexp(dim, keepdim=True)
        log_weights = log_weights.nan_to_num(nan=WORST, neginf=WORST).reshape(-1, *x.shape[:2])
        weights = log_weights.flatten(0, 1).softmax(0).unsqueeze(-1)  # (K P, N, 1)
        means, variances = (part.reshape(-1, *x.shape[1:]) for part in (given.mean, given.variance))
        mean = (weights * means).sum(0)
        copies = num_draws // len(x)
        noisy = given.complete(site["fn"].sample((copies,))).reshape(copies, -1, *x.shape[1:])
        each = log_weights.logsumexp(0)
        return _Estimate(
            mean,
            (weights * (variances + (means - mean).square())).sum(0),
            _resample(noisy, weights.squeeze(-1), num_draws),
            each.logsumexp(0) + math.log(copies),
            (2.0 * each).logsumexp(0) + math.log(copies),
        )


def _is_latent(site: Any) -> bool:
    """Whether a site is a latent variable of each row besides assignments."""
    latent = site["type"] == "sample" and not site["is_observed"] and not is_assignment(site)
    return latent and not is_shared(site)


def _mix(guide_trace: Trace, num_proposals: int) -> None:
    """Replace log q(z) by the log-density of the mixture of the P proposals of each row.

    The trace has P N rows. If z has several sites, whose densities depend on each other, log q is
    left as it is. Weights are then still valid, but have a larger variance.
    """
    latents = [site for site in guide_trace.nodes.values() if _is_latent(site)]
    if len(latents) != 1:
        return
    p, z = in_double(latents[0]["fn"]), latents[0]["value"].double()
    rows = -1 - len(p.event_shape)
    num_rows = z.shape[rows] // num_proposals
    total = latents[0]["log_prob"]
    for shift in range(num_rows, num_proposals * num_rows, num_rows):
        log_q = p.log_prob(z.roll(shift, rows)).roll(-shift, -1)
        total = torch.logaddexp(total.double(), log_q.double())
    latents[0]["log_prob"] = total - math.log(num_proposals)


def _resample(values: torch.Tensor, weights: torch.Tensor, num_draws: int) -> torch.Tensor:
    """Draws (S, N, D) of values (B, P, N, D) by weights (P, N), systematically (Kitagawa 1996).

    The s-th draw is one of the values in block s modulo B.
    """
    shape = (weights.shape[1], num_draws)
    order = torch.rand(shape, dtype=values.dtype, device=weights.device).argsort(-1)
    points = (order + torch.rand(len(order), 1, dtype=values.dtype).to(weights)) / num_draws
    chosen = torch.searchsorted(weights.cumsum(0).T.contiguous(), points)
    block = torch.arange(num_draws, device=weights.device) % len(values)
    index = chosen.clamp_max(len(weights) - 1) + len(weights) * block
    return values.flatten(0, 1).gather(0, index.T.unsqueeze(-1).expand(-1, -1, values.shape[-1]))
