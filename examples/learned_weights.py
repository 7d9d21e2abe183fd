"""A Gaussian mixture with equal weights, then with a Dirichlet prior on the weights.

    python examples/learned_weights.py

The data are simulated from three components with the same covariance. One of them is rare. In
`uniform`, the components have equal weights. In `learned`, the weights are a latent variable
outside the plate, and the guide is its approximate posterior.
"""

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.distributions.constraints import positive

import pyro_moe
from pyro_moe import Fit, Rows, criticism, models

K = 3
SHOWN = ["component", "statistic", "column", "observed", "replicated"]
story = models.GMM(x_dim=2, num_components=K, covariance="tied")


def uniform(x: torch.Tensor) -> None:
    """Rows x, shape (N, 2), of components with equal weights."""
    pyro.module("story", story)
    weights = torch.full((K,), 1 / K)
    with pyro.plate("data", len(x)):
        c = pyro.sample("c", dist.OneHotCategorical(weights))
        pyro.sample("x", models.choose(c, story.mixture.normals), obs=x)


def learned(x: torch.Tensor) -> None:
    """Rows x, shape (N, 2), of components whose weights have a uniform Dirichlet prior."""
    pyro.module("story", story)
    weights = pyro.sample("weights", dist.Dirichlet(torch.ones(K)))  # was torch.full((K,), 1 / K)
    with pyro.plate("data", len(x)):
        c = pyro.sample("c", dist.OneHotCategorical(weights))
        pyro.sample("x", models.choose(c, story.mixture.normals), obs=x)


def nothing(x: torch.Tensor) -> None:
    """The guide of `uniform`. The only latent variable is c, which is summed out."""


def posterior(x: torch.Tensor) -> None:
    """The guide of `learned`, a Dirichlet distribution of the weights."""
    counts = pyro.param("counts", torch.full((K,), 100.0), constraint=positive)
    pyro.sample("weights", dist.Dirichlet(counts))


def kinds(num_rows: int, *, seed: int) -> Rows:
    """Rows of three components with weights 0.70, 0.22 and 0.08."""
    generator = torch.Generator().manual_seed(seed)
    shares = torch.tensor([0.70, 0.22, 0.08])
    kind = torch.multinomial(shares, num_rows, replacement=True, generator=generator)
    centers = torch.tensor([[0.0, 0.0], [5.0, 1.0], [1.0, 6.0]])
    return Rows(centers[kind] + torch.randn(num_rows, 2, generator=generator), labels=kind)


def fitted(train: Rows, *, epochs: int = 300) -> dict[str, Fit]:
    """Fit both models with the same settings."""
    options = {"epochs": epochs, "batch_size": len(train), "learning_rate": 0.05, "seed": 0}
    return {
        model.__name__: pyro_moe.fit(model, guide, train, progress=False, **options)
        for model, guide in ((uniform, nothing), (learned, posterior))
    }


def main() -> None:
    """Check both models on test rows, compare them, and print the posterior of the weights."""
    train, test = kinds(500, seed=1), kinds(300, seed=2)
    fits = fitted(train)
    for name, fit in fits.items():
        check = criticism.check(fit, test)
        print(f"\n{name}: {check}")
        surprises = check.surprises()[SHOWN]
        if len(surprises):
            print(surprises.head(4).round(3).to_string(index=False))
    print(f"\n{criticism.compare(fits, test).dropna(axis=1).round(3).to_string()}")
    q = poutine.trace(fits["learned"].guide).get_trace(test.x).nodes["weights"]["fn"]
    for mean, deviation in zip(q.mean, q.variance.sqrt(), strict=True):
        print(f"share {mean:.3f} ± {deviation:.3f}")


if __name__ == "__main__":
    main()
