"""One softmax gate over four experts, then a tree of gates over the same experts.

    python examples/hierarchical_gate.py

The data are simulated. A station has two pumps with two stages each. The probability of the first
pump increases slowly with demand. The stage switches sharply, with pressure for the first pump and
with temperature for the second. A softmax over the four experts cannot represent this. Coefficients
of pressure that separate the stages of the first pump also make the choice of the pump depend on
pressure. A tree of gates (Jordan and Jacobs, 1994) has separate gates for pump and stage. The
additional test statistic measures whether the first pump runs more often at extreme pressure.
"""

import pyro
import pyro.distributions as dist
import torch
from sklearn.mixture import GaussianMixture
from torch import nn

import pyro_moe
from pyro_moe import Fit, Rows, criticism, models

SHOWN = ["component", "statistic", "column", "observed", "replicated"]
story = models.ME(x_dim=3, y_dim=1, num_components=4)


class TreeGate(nn.Module):
    """A gate over leaves: the probability of the branch times that of the leaf in the branch."""

    def __init__(self) -> None:
        super().__init__()
        self.root, *leaves = (models.SoftmaxGate(3, 2, units=story.units) for _ in range(3))
        self.leaves = nn.ModuleList(leaves)

    def forward(self, x: torch.Tensor) -> dist.Distribution:
        """The distribution of the leaf given x, shape (N, 3)."""
        branches = self.root(x).logits.log_softmax(-1).unsqueeze(-1)
        leaves = torch.stack([leaf(x).logits.log_softmax(-1) for leaf in self.leaves], -2)
        return dist.OneHotCategorical(logits=(branches + leaves).flatten(-2))


tree_gate = TreeGate()


def flat(x: torch.Tensor, y: torch.Tensor | None = None) -> None:
    """The power y, shape (N, 1), with one softmax gate of x, shape (N, 3)."""
    pyro.module("story", story)
    with pyro.plate("data", len(x)):
        c = pyro.sample("c", story.gate(x))
        models.observe_target(models.choose(c, story.experts(x)), y)


def tree(x: torch.Tensor, y: torch.Tensor | None = None) -> None:
    """The power y, shape (N, 1), with a tree of softmax gates of x, shape (N, 3)."""
    pyro.module("story", story)
    pyro.module("tree_gate", tree_gate)
    with pyro.plate("data", len(x)):
        c = pyro.sample("c", tree_gate(x))  # was story.gate(x)
        models.observe_target(models.choose(c, story.experts(x)), y)


def guide(x: torch.Tensor, y: torch.Tensor | None = None) -> None:
    """The only latent variable is c, which is summed out."""


def first_pump(sample: criticism.Sample) -> torch.Tensor:
    """The correlation of the first pump (y > 4.5) with |pressure| − |temperature|."""
    _, pressure, temperature = sample.x.abs().T
    first = (sample.y[:, 0] > 4.5).to(pressure)
    return torch.corrcoef(torch.stack([first, pressure - temperature]))[0, 1]


def pumps(num_rows: int, *, seed: int) -> Rows:
    """Four levels of power, with the pump by demand and the stage by pressure or temperature."""
    generator = torch.Generator().manual_seed(seed)
    x = 2.0 * torch.rand(num_rows, 3, generator=generator) - 1.0
    demand, pressure, temperature = x.T
    chance = torch.rand(2, num_rows, generator=generator)
    first = chance[0] < torch.sigmoid(2.0 * demand)
    fast = chance[1] < torch.sigmoid(20.0 * torch.where(first, pressure, temperature))
    level = torch.where(first, 6.0, 1.0) + torch.where(fast, 2.0, 0.0)
    y = level + 0.3 * torch.randn(num_rows, generator=generator)
    columns = ("demand", "pressure", "temperature")
    return Rows(x, y.unsqueeze(-1), columns=columns, targets=("power",))


def fitted(train: Rows, *, epochs: int = 40) -> dict[str, Fit]:
    """Fit both models with the same settings, initialized by a Gaussian mixture of y."""
    levels = GaussianMixture(4, n_init=5, random_state=0).fit(train.y)
    order = levels.means_.squeeze().argsort()
    start = levels.predict_proba(train.y)[:, order]
    options = {"batch_size": 512, "learning_rate": 0.2, "initialize": start, "seed": 0}
    return {
        model.__name__: pyro_moe.fit(model, guide, train, epochs=epochs, progress=False, **options)
        for model in (flat, tree)
    }


def main() -> None:
    """Check both models on test rows, and compare them."""
    train, test = pumps(3000, seed=1), pumps(1500, seed=2)
    fits = fitted(train)
    for name, fit in fits.items():
        check = criticism.check(fit, test, statistics={"y": {"first pump": first_pump}})
        print(f"\n{name}: {check}")
        surprises = check.surprises()[SHOWN]
        if len(surprises):
            print(surprises.head(4).round(3).to_string(index=False))
    print(f"\n{criticism.compare(fits, test).dropna(axis=1).round(3).to_string()}")


if __name__ == "__main__":
    main()
