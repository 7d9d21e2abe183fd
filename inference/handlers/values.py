"""Effect handlers that change the value, the distribution or the scale of a site."""

import math
from collections.abc import Callable
from typing import Any

import torch
from pyro.poutine.messenger import Messenger

from .assignment import is_assignment, is_in_plate

REPLICATES = 8


class AtTheMean(Messenger):
    """Set latent sites besides assignments to the mean of their distribution.

    Sites without reparameterized samples are drawn at random.
    """

    def _pyro_sample(self, msg: Any) -> None:
        if not msg["is_observed"] and not is_assignment(msg) and msg["fn"].has_rsample:
            msg["value"], msg["done"] = msg["fn"].mean, True


class Given(Messenger):
    """Set sites to given values."""

    def __init__(self, values: dict[str, torch.Tensor]) -> None:
        super().__init__()
        self.values = values

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] in self.values:
            msg["value"], msg["done"] = self.values[msg["name"]], True


class Undrawn(Messenger):
    """Set a latent site to one value in all rows, where only its distribution is of interest.

    Args:
        site: Its name.
        value: A value of one row.
    """

    def __init__(self, site: str, value: torch.Tensor) -> None:
        super().__init__()
        self.site, self.value = site, value

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] == self.site and not msg["is_observed"]:
            msg["value"], msg["done"] = self.value.expand(msg["fn"].shape()), True


class WithDistribution(Messenger):
    """Replace the distribution of one site by a function of it."""

    def __init__(self, site: str, change: Callable[[Any], Any]) -> None:
        super().__init__()
        self.site, self.change = site, change

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] == self.site:
            msg["fn"] = self.change(msg["fn"])


class MinibatchScale(Messenger):
    """Scale sites outside the plate ``"data"`` by B/N, the share of rows in the minibatch.

    The objective of a minibatch of B rows, divided by B, is then an unbiased estimate of the
    objective of all N rows, divided by N.
    """

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = share

    def _pyro_sample(self, msg: Any) -> None:
        if not is_in_plate(msg):
            msg["scale"] = msg["scale"] * self.share


class SobolSamples(Messenger):
    """Draw S quasi-random values of each normal latent site along a new leftmost dimension.

    The points are eight independently scrambled Sobol sequences of S/8 points each, concatenated.
    Latent sites that are not normal get S pseudo-random values.
    """

    def __init__(self, num_samples: int) -> None:
        super().__init__()
        self.num_samples = num_samples

    def _pyro_sample(self, msg: Any) -> None:
        drawn = not msg["is_observed"] and msg["fn"].has_rsample
        if not drawn or is_assignment(msg) or not is_in_plate(msg):
            return
        msg["value"], msg["done"] = self._values(msg["fn"]), True

    def _values(self, distribution: Any) -> torch.Tensor:
        if len(distribution.batch_shape) > 1:  # it depends on a site that already has S values
            return distribution.rsample()
        independent = isinstance(distribution, torch.distributions.Independent)
        base = distribution.base_dist if independent else distribution
        if not isinstance(base, torch.distributions.Normal):
            return distribution.rsample((self.num_samples,))
        size = distribution.event_shape.numel()
        noise = standard_normal_points(self.num_samples, size).to(base.loc)
        return base.loc + base.scale * noise.reshape(-1, 1, *distribution.event_shape)


class SameNoise(Messenger):
    """Draw normal latent sites with the same standard normal noise in every row.

    What is computed for a row then does not depend on the other rows of its minibatch. The draws
    follow one another in a stream of their own.

    Args:
        seed: Seed of the stream.
    """

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.generator = torch.Generator().manual_seed(seed)

    def _pyro_sample(self, msg: Any) -> None:
        distribution = msg["fn"]
        independent = isinstance(distribution, torch.distributions.Independent)
        base = distribution.base_dist if independent else distribution
        if not msg["is_observed"] and isinstance(base, torch.distributions.Normal):
            noise = torch.randn(distribution.event_shape, generator=self.generator)
            msg["value"], msg["done"] = base.loc + base.scale * noise.to(base.loc), True


def standard_normal_points(num_points: int, dim: int) -> torch.Tensor:
    """Eight concatenated scrambled Sobol sequences, shape (num_points, dim), mapped to N(0, I)."""
    blocks = []
    for _ in range(REPLICATES):
        engine = torch.quasirandom.SobolEngine(
            dim, scramble=True, seed=int(torch.randint(2**31 - 1, ()))
        )
        points = engine.draw(num_points // REPLICATES, dtype=torch.float64)
        order = torch.randperm(len(points))  # so that points of different sites are independent
        blocks.append(points[order])
    uniform = torch.cat(blocks).clamp(1e-10, 1 - 1e-10)
    return math.sqrt(2.0) * torch.erfinv(2.0 * uniform - 1.0)
