"""How many? Normal experts on counts, then Poisson ones, then overdispersed ones.

    python examples/counts.py

Calls an hour at a helpline, on calm and on busy days, of which temperature says which is likelier.
The three stories differ in what a count is like given the day: `normal` knows neither that counts
are not negative nor that large ones vary more; `poisson` does, with a variance equal to the mean;
`negative_binomial` leaves open how much larger the variance is. A test statistic of our own is the
share of negative counts.
"""

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions.constraints import positive

import pyro_moe
from pyro_moe import Fit, Rows, criticism, models

SHOWN = ["component", "statistic", "column", "observed", "replicated"]
story = models.ME(x_dim=1, y_dim=1, num_components=2)
counting = models.ME(x_dim=1, y_dim=1, num_components=2, experts="poisson")


def normal(x: torch.Tensor, y: torch.Tensor | None = None) -> None:
    """Counts y, shape (N, 1), that are normal around a line."""
    pyro.module("story", story)
    with pyro.plate("data", len(x)):
        c = pyro.sample("c", story.gate(x))
        experts = story.experts(x)
        models.observe_target(models.choose(c, experts), y)


def poisson(x: torch.Tensor, y: torch.Tensor | None = None) -> None:
    """Counts y, shape (N, 1), with a rate whose logarithm is a line."""
    pyro.module("story", counting)
    with pyro.plate("data", len(x)):
        c = pyro.sample("c", counting.gate(x))
        rate = counting.experts(x).base_dist.rate
        experts = dist.Poisson(rate).to_event(1)  # was dist.Normal, of `story`
        models.observe_target(models.choose(c, experts), y)


def negative_binomial(x: torch.Tensor, y: torch.Tensor | None = None) -> None:
    """Counts y, shape (N, 1), with such a rate and a variance of rate + rate² / size."""
    pyro.module("story", counting)
    size = pyro.param("size", torch.tensor(10.0), constraint=positive)
    with pyro.plate("data", len(x)):
        c = pyro.sample("c", counting.gate(x))
        rate = counting.experts(x).base_dist.rate
        overdispersed = dist.NegativeBinomial(size, logits=(rate / size).log())
        experts = overdispersed.to_event(1)  # was dist.Poisson(rate)
        models.observe_target(models.choose(c, experts), y)


def guide(x: torch.Tensor, y: torch.Tensor | None = None) -> None:
    """No latent variables but c, which is summed out."""


def negative(sample: criticism.Sample) -> torch.Tensor:
    """The share of targets below zero: a test statistic of our own."""
    return (sample.y < 0).double().mean()


def calls(num_rows: int, *, seed: int) -> Rows:
    """Counts that vary by a gamma variable more than Poisson ones do."""
    generator = torch.Generator().manual_seed(seed)
    x = 2.0 * torch.rand(num_rows, 1, generator=generator) - 1.0
    busy = torch.rand(num_rows, 1, generator=generator) < torch.sigmoid(5.0 * x)
    rate = torch.where(busy, 2.5 + 0.5 * x, 0.5 + 0.5 * x).exp()
    gamma = -torch.rand(num_rows, 3, generator=generator).neg().log1p().mean(-1, keepdim=True)
    y = torch.poisson(rate * gamma, generator=generator)
    return Rows(x, y.long(), columns=("temperature",), targets=("calls",))


def fitted(train: Rows, *, epochs: int = 80) -> dict[str, Fit]:
    """The three stories, fitted alike."""
    return {
        model.__name__: pyro_moe.fit(
            model, guide, train, epochs=epochs, learning_rate=0.05, seed=0, progress=False
        )
        for model in (normal, poisson, negative_binomial)
    }


def main() -> None:
    """Check the stories on rows that none has seen, and compare them."""
    train, test = calls(600, seed=1), calls(400, seed=2)
    fits = fitted(train)
    for name, fit in fits.items():
        check = criticism.check(fit, test, statistics={"y": {"negative": negative}})
        print(f"\n{name}: {check}")
        surprises = check.surprises()[SHOWN]
        if len(surprises):
            print(surprises.head(4).round(3).to_string(index=False))
    print(f"\n{criticism.compare(fits, test).dropna(axis=1).round(3).to_string()}")


if __name__ == "__main__":
    main()
