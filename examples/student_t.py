"""Do readings have outliers? Normal experts, then Student-t ones.

    python examples/student_t.py

Two sensors answer, mostly in ranges of their own, each along a line, and some readings are far off.
`normal` is the story of `models.ME`, written out; `student_t` is the same but for the distribution
of y around its line. Both leave the guide empty: c given x and y then follows by Bayes' rule, and
no line of it has to be edited along with the model's.
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
    """Readings y, shape (N, 1), that are normal around the sensor's line."""
    pyro.module("story", story)
    with pyro.plate("data", len(x)):
        c = pyro.sample("c", story.gate(x))
        lines = story.experts(x).base_dist
        experts = dist.Normal(lines.loc, lines.scale).to_event(1)
        models.observe_target(models.choose(c, experts), y)


def student_t(x: torch.Tensor, y: torch.Tensor | None = None) -> None:
    """Readings y, shape (N, 1), around the same lines with heavy tails."""
    pyro.module("story", story)
    df = pyro.param("df", torch.tensor(5.0), constraint=greater_than(2.0))
    with pyro.plate("data", len(x)):
        c = pyro.sample("c", story.gate(x))
        lines = story.experts(x).base_dist
        experts = dist.StudentT(df, lines.loc, lines.scale).to_event(1)  # was dist.Normal
        models.observe_target(models.choose(c, experts), y)


def guide(x: torch.Tensor, y: torch.Tensor | None = None) -> None:
    """No latent variables but c, which is summed out."""


def readings(num_rows: int, *, seed: int) -> Rows:
    """Two lines, and noise whose precision varies from one reading to the next."""
    generator = torch.Generator().manual_seed(seed)
    x = 2.0 * torch.rand(num_rows, 1, generator=generator) - 1.0
    first = torch.rand(num_rows, 1, generator=generator) < torch.sigmoid(-5.0 * x)
    line = torch.where(first, 1.0 + 2.0 * x, 2.0 - 3.0 * x)
    precision = torch.randn(num_rows, 3, generator=generator).square().mean(-1, keepdim=True)
    y = line + 0.2 * torch.randn(num_rows, 1, generator=generator) / precision.sqrt()
    return Rows(x, y, columns=("dose",), targets=("reading",))


def fitted(train: Rows, *, epochs: int = 100) -> dict[str, Fit]:
    """Both stories, fitted alike."""
    return {
        model.__name__: pyro_moe.fit(
            model, guide, train, epochs=epochs, learning_rate=0.05, seed=0, progress=False
        )
        for model in (normal, student_t)
    }


def main() -> None:
    """Check both stories on rows that neither has seen, and compare them."""
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
