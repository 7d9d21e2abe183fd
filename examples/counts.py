"""Normal, Poisson and negative binomial experts of counts.

    python examples/counts.py

The data are simulated counts of calls per hour at a helpline, on calm and on busy days. The
probability of a busy day depends on temperature. Three models differ in the distribution of a
count. `normal` permits negative counts and has a constant variance in each component. `poisson`
permits only nonnegative integers, with a variance equal to the mean. `negative_binomial` has a
larger variance, with a parameter for the overdispersion. The additional test statistic is the
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
    """Counts y, shape (N, 1), with a normal distribution around a line."""
    pyro.module("story", story)
    with pyro.plate("data", len(x)):
        c = pyro.sample("c", story.gate(x))
        experts = story.experts(x)
        models.observe_target(models.choose(c, experts), y)


def poisson(x: torch.Tensor, y: torch.Tensor | None = None) -> None:
    """Counts y, shape (N, 1), with a Poisson distribution whose log rate is a line."""
    pyro.module("story", counting)
    with pyro.plate("data", len(x)):
        c = pyro.sample("c", counting.gate(x))
        rate = counting.experts(x).base_dist.rate.double()  # large counts need the digits
        experts = dist.Poisson(rate).to_event(1)  # was dist.Normal, of `story`
        models.observe_target(models.choose(c, experts), y)


def negative_binomial(x: torch.Tensor, y: torch.Tensor | None = None) -> None:
    """Counts y, shape (N, 1), with the same mean and the variance rate + rate² / size."""
    pyro.module("story", counting)
    size = pyro.param("size", torch.tensor(10.0), constraint=positive)
    with pyro.plate("data", len(x)):
        c = pyro.sample("c", counting.gate(x))
        rate = counting.experts(x).base_dist.rate.double()  # large counts need the digits
        overdispersed = dist.NegativeBinomial(size, logits=(rate / size).log())
        experts = overdispersed.to_event(1)  # was dist.Poisson(rate)
        models.observe_target(models.choose(c, experts), y)


def guide(x: torch.Tensor, y: torch.Tensor | None = None) -> None:
    """The only latent variable is c, which is summed out."""


def negative(sample: criticism.Sample) -> torch.Tensor:
    """The share of negative targets, as an additional test statistic."""
    return (sample.y < 0).double().mean()


def calls(num_rows: int, *, seed: int) -> Rows:
    """Overdispersed counts: Poisson counts with rates multiplied by a gamma variable."""
    generator = torch.Generator().manual_seed(seed)
    x = 2.0 * torch.rand(num_rows, 1, generator=generator) - 1.0
    busy = torch.rand(num_rows, 1, generator=generator) < torch.sigmoid(5.0 * x)
    rate = torch.where(busy, 2.5 + 0.5 * x, 0.5 + 0.5 * x).exp()
    gamma = -torch.rand(num_rows, 3, generator=generator).neg().log1p().mean(-1, keepdim=True)
    y = torch.poisson(rate * gamma, generator=generator)
    return Rows(x, y.long(), columns=("temperature",), targets=("calls",))


def fitted(train: Rows, *, epochs: int = 80) -> dict[str, Fit]:
    """Fit the three models with the same settings."""
    return {
        model.__name__: pyro_moe.fit(
            model, guide, train, epochs=epochs, learning_rate=0.05, seed=0, progress=False
        )
        for model in (normal, poisson, negative_binomial)
    }


def main() -> None:
    """Check the models on test rows, and compare them."""
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
