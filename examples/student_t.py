"""Normal experts, then Student-t experts for data with outliers.

    python examples/student_t.py

The data are simulated readings of two sensors, which mostly cover different ranges of x. Each
sensor has a linear response, and some readings are outliers. `normal` is the model of `models.ME`,
written out. `student_t` differs only in the distribution of y around the line. Both guides are
empty. The posterior of c given x and y then is by Bayes' rule, and the guide need not change with
the model.
"""

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions.constraints import greater_than

import pyro_moe
from pyro_moe import Fit, Rows, criticism, models

SHOWN = ["component", "statistic", "column", "observed", "replicated"]
story = models.ME(x_dim=1, y_dim=1, num_components=2)


def normal(x: torch.Tensor, y: torch.Tensor | None = None) -> None:
    """Readings y, shape (N, 1), with a normal distribution around the line of the sensor."""
    pyro.module("story", story)
    with pyro.plate("data", len(x)):
        c = pyro.sample("c", story.gate(x))
        lines = story.experts(x).base_dist
        experts = dist.Normal(lines.loc, lines.scale).to_event(1)
        models.observe_target(models.choose(c, experts), y)


def student_t(x: torch.Tensor, y: torch.Tensor | None = None) -> None:
    """Readings y, shape (N, 1), with a Student-t distribution around the line of the sensor."""
    pyro.module("story", story)
    df = pyro.param("df", torch.tensor(5.0), constraint=greater_than(2.0))
    with pyro.plate("data", len(x)):
        c = pyro.sample("c", story.gate(x))
        lines = story.experts(x).base_dist
        experts = dist.StudentT(df, lines.loc, lines.scale).to_event(1)  # was dist.Normal
        models.observe_target(models.choose(c, experts), y)


def guide(x: torch.Tensor, y: torch.Tensor | None = None) -> None:
    """The only latent variable is c, which is summed out."""


def readings(num_rows: int, *, seed: int) -> Rows:
    """Two lines with Student-t noise of three degrees of freedom."""
    generator = torch.Generator().manual_seed(seed)
    x = 2.0 * torch.rand(num_rows, 1, generator=generator) - 1.0
    first = torch.rand(num_rows, 1, generator=generator) < torch.sigmoid(-5.0 * x)
    line = torch.where(first, 1.0 + 2.0 * x, 2.0 - 3.0 * x)
    precision = torch.randn(num_rows, 3, generator=generator).square().mean(-1, keepdim=True)
    y = line + 0.2 * torch.randn(num_rows, 1, generator=generator) / precision.sqrt()
    return Rows(x, y, columns=("dose",), targets=("reading",))


def fitted(train: Rows, *, epochs: int = 100) -> dict[str, Fit]:
    """Fit both models with the same settings."""
    return {
        model.__name__: pyro_moe.fit(
            model, guide, train, epochs=epochs, learning_rate=0.05, seed=0, progress=False
        )
        for model in (normal, student_t)
    }


def main() -> None:
    """Check both models on test rows, and compare them."""
    train, test = readings(600, seed=1), readings(400, seed=2)
    fits = fitted(train)
    for name, fit in fits.items():
        check = criticism.check(fit, test)
        print(f"\n{name}: {check}")
        surprises = check.surprises()[SHOWN]
        if len(surprises):
            print(surprises.head(4).round(3).to_string(index=False))
    print(f"\n{criticism.compare(fits, test).dropna(axis=1).round(3).to_string()}")


if __name__ == "__main__":
    main()
