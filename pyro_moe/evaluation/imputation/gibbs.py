"""Chains of completed rows, which move by Metropolis-within-Gibbs."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from pyro_moe.fitted import Fit
from pyro_moe.inference.handlers import Given
from pyro_moe.inference.traces import enumerated_traces, joint_log_weights

from .conditional import conditioned, is_latent, weights_given


@dataclass(frozen=True)
class State:
    """Latent variables of S N rows, and the missing entries given them.

    Attributes:
        latents: The values of z, by name.
        log_weight: Log p(x, z) − log q(z|x) at the entries before, with c summed out, shape (S N,).
        x: Rows with missing entries drawn from p(x_m | x_o, z), shape (S N, D).
        mean: E[x_m | x_o, z], shape (S N, D).
        variance: The variance of each entry, likewise.
    """

    latents: dict[str, torch.Tensor]
    log_weight: torch.Tensor
    x: torch.Tensor
    mean: torch.Tensor
    variance: torch.Tensor

    def where(self, taken: torch.Tensor, other: "State") -> "State":
        """This state where it is taken, shape (S N,), and another elsewhere."""

        def chosen(one: torch.Tensor, two: torch.Tensor) -> torch.Tensor:
            return torch.where(taken.reshape(-1, *(1 for _ in one.shape[1:])), one, two)

        latents = {name: chosen(z, other.latents[name]) for name, z in self.latents.items()}
        parts = (chosen(getattr(self, each), getattr(other, each)) for each in PARTS)
        return State(latents, *parts)


PARTS = ("log_weight", "x", "mean", "variance")


class Chains:
    """S chains for each of N rows.

    Args:
        fit: A fit.
        observed: Which entries are observed, shape (N, D).
        others: The arguments of model and guide besides x.
        start: Completed rows, shape (S, N, D).

    Attributes:
        mean: E[x_m | x_o], shape (N, D), by the second half of the moves.
        variance: The variance of each entry, likewise.
        num_moved: Number of chains that have moved, shape (N,).
    """

    def __init__(
        self, fit: Fit, observed: torch.Tensor, others: Sequence[Any], start: torch.Tensor
    ) -> None:
        self.fit, self.others, self.shape = fit, others, start.shape
        self.observed = observed.repeat(len(start), 1)
        self.state = replace(self._state(start.flatten(0, 1), {}), x=start.flatten(0, 1))
        self.mean = self.variance = start.new_zeros(observed.shape, dtype=torch.float64)
        self.num_moved = self.mean.new_zeros(len(observed))

    @property
    def can_move(self) -> bool:
        """Whether each row has latent variables that do not depend on c in the guide."""
        values = self.state.latents.values()
        return bool(values) and all(len(z) == len(self.observed) for z in values)

    @property
    def draws(self) -> torch.Tensor:
        """Completed rows, shape (S, N, D)."""
        return self.state.x.view(self.shape)

    def move(self, number: int) -> None:
        """Let each chain move so many times."""
        means, squares, half = torch.zeros_like(self.mean), torch.zeros_like(self.mean), number // 2
        moved = torch.zeros(len(self.observed), dtype=torch.bool, device=means.device)
        for index in range(number):
            x, before = self.state.x, self.state.latents
            offered, current = self._state(x, {}), self._state(x, before)
            ratio = offered.log_weight - current.log_weight
            taken = torch.rand_like(ratio).log() < ratio
            self.state, moved = offered.where(taken, current), taken | moved
            if index >= half:
                means += self._average(self.state.mean) / (number - half)
                both = self.state.variance + self.state.mean.square()
                squares += self._average(both) / (number - half)
        self.mean, self.variance = means, (squares - means.square()).clamp_min(0.0)
        self.num_moved = moved.view(self.shape[:2]).double().sum(0)

    def _average(self, each: torch.Tensor) -> torch.Tensor:
        return each.view(self.shape).mean(0)

    def _state(self, x: torch.Tensor, latents: dict[str, torch.Tensor]) -> State:
        """The state at given latent variables, or at those that the guide draws."""
        with Given(latents):
            traces = enumerated_traces(self.fit.model, self.fit.guide, x, *self.others)
        log_weight = joint_log_weights(*traces).flatten(0, -2).logsumexp(0)
        site, given = conditioned(traces, self.observed)
        log_p = weights_given(traces, given).log_softmax(0)
        means, variances, draws = (
            each.reshape(-1, *x.shape)
            for each in (given.mean, given.variance, given.complete(site["fn"].sample()))
        )
        weights = log_p.exp().unsqueeze(-1)
        mean = (weights * means).sum(0)
        variance = (weights * (variances + (means - mean).square())).sum(0)
        value = torch.distributions.Categorical(logits=log_p.T).sample()
        rows = torch.arange(len(x), device=x.device)
        values = {name: each["value"] for name, each in traces[1].nodes.items() if is_latent(each)}
        return State(values, log_weight, draws[value, rows].to(x), mean, variance)
