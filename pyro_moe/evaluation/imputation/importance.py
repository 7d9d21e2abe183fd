"""Importance sampling of missing entries, in rounds."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from pyro import poutine
from pyro.poutine import Trace

from pyro_moe.distributions import in_double
from pyro_moe.fitted import Fit
from pyro_moe.inference.programs import Program
from pyro_moe.inference.traces import enumerated_traces, other_latents

from .conditional import conditioned, is_latent, weights_given


@dataclass(frozen=True)
class Estimate:
    """Moments (N, D), draws (S, N, D), and log-sums (N,) of weights and squared weights."""

    mean: torch.Tensor
    variance: torch.Tensor
    draws: torch.Tensor
    log_weight: torch.Tensor
    log_square: torch.Tensor

    @property
    def effective_samples(self) -> torch.Tensor:
        """The effective sample size of the weights, shape (N,)."""
        return (2.0 * self.log_weight - self.log_square).exp()

    def pooled(self, other: "Estimate") -> "Estimate":
        """Combine the samples of both by their weights."""
        total = torch.logaddexp(self.log_weight, other.log_weight)
        share = (other.log_weight - total).exp().unsqueeze(-1)
        between = share * (1.0 - share) * (other.mean - self.mean).square()
        new = torch.rand(*self.draws.shape[:2], 1, dtype=share.dtype, device=share.device) < share
        return Estimate(
            torch.lerp(self.mean, other.mean, share),
            torch.lerp(self.variance, other.variance, share) + between,
            torch.where(new, other.draws, self.draws),
            total,
            torch.logaddexp(self.log_square, other.log_square),
        )


@dataclass(frozen=True)
class Sampler:
    """Importance sampling for N rows with the given observed entries, shape (N, D)."""

    fit: Fit
    observed: torch.Tensor
    others: Sequence[None]

    def run(self, start: torch.Tensor, num_rounds: int) -> Estimate:
        """Run all rounds, from rows (S, N, D) with any finite numbers where not observed."""
        prior = poutine.block(self.fit.guide, hide_fn=is_latent)
        trace, _ = enumerated_traces(self.fit.model, prior, start[0], *self.others)
        latents = {*other_latents(trace)} - {"y"}
        of_rows = any(is_latent(trace.nodes[name]) for name in latents)
        num_particles = len(start) if of_rows else 1
        result = self._round(prior, start[:num_particles], len(start))
        for _ in range(num_rounds if latents else 0):
            completions = result.draws[:num_particles]
            result = result.pooled(self._round(self.fit.guide, completions, len(start)))
        return result

    def _round(self, guide: Program, x: torch.Tensor, num_draws: int) -> Estimate:
        """One z, with every c, for each of P completions of the rows, shape (P, N, D)."""
        traces = enumerated_traces(self.fit.model, guide, x.flatten(0, 1), *self.others)
        site, given = conditioned(traces, self.observed.repeat(len(x), 1))
        _mix(traces[1], len(x))
        log_weights = weights_given(traces, given).reshape(-1, *x.shape[:2])
        weights = log_weights.flatten(0, 1).softmax(0).unsqueeze(-1)  # (K P, N, 1)
        means, variances = (part.reshape(-1, *x.shape[1:]) for part in (given.mean, given.variance))
        mean = (weights * means).sum(0)
        copies = num_draws // len(x)
        noisy = given.complete(site["fn"].sample((copies,))).reshape(copies, -1, *x.shape[1:])
        each = log_weights.logsumexp(0)
        return Estimate(
            mean,
            (weights * (variances + (means - mean).square())).sum(0),
            _resample(noisy, weights.squeeze(-1), num_draws),
            each.logsumexp(0) + math.log(copies),
            (2.0 * each).logsumexp(0) + math.log(copies),
        )


def _mix(guide_trace: Trace, num_proposals: int) -> None:
    """Replace log q(z) by the log-density of the mixture of the P proposals of each row.

    The trace has P N rows. If z has several sites, whose densities depend on each other, log q is
    left as it is. Weights are then still valid, but have a larger variance.
    """
    latents = [site for site in guide_trace.nodes.values() if is_latent(site)]
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
