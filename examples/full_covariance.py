"""Do measurements go together within a kind? Diagonal covariances, then full ones.

    python examples/full_covariance.py

Four measurements of the nuclei of 569 tumors, the logarithms of columns of scikit-learn's
breast-cancer data, as a mixture of two kinds; no story sees the diagnoses. In `diagonal`, what goes
together does so because of the kind alone; in `full`, measurements of one kind may be correlated.
A test statistic of our own, the correlation of every two columns, is looked at in all rows and in
those of each kind.
"""

import pyro
import pyro.distributions as dist
import torch
from sklearn.datasets import load_breast_cancer

import pyro_moe
from pyro_moe import Fit, Rows, criticism, models

COLUMNS = ("mean radius", "mean texture", "mean smoothness", "mean compactness")
SHOWN = ["component", "statistic", "column", "observed", "replicated"]
story = models.GMM(x_dim=len(COLUMNS), num_components=2)


def diagonal(x: torch.Tensor) -> None:
    """Rows x, shape (N, 4), whose columns are independent given the kind."""
    pyro.module("story", story)
    with pyro.plate("data", len(x)):
        c = pyro.sample("c", dist.OneHotCategorical(logits=story.mixture.logits))
        loc, scale_tril = c @ story.mixture.loc, story.mixture.cholesky(c)
        pyro.sample("x", dist.Normal(loc, scale_tril.norm(dim=-1)).to_event(1), obs=x)


def full(x: torch.Tensor) -> None:
    """Rows x, shape (N, 4), whose columns are correlated given the kind."""
    pyro.module("story", story)
    with pyro.plate("data", len(x)):
        c = pyro.sample("c", dist.OneHotCategorical(logits=story.mixture.logits))
        loc, scale_tril = c @ story.mixture.loc, story.mixture.cholesky(c)
        kind = dist.MultivariateNormal(loc, scale_tril=scale_tril)  # was dist.Normal(…)
        pyro.sample("x", kind, obs=x)


def guide(x: torch.Tensor) -> None:
    """No latent variables but c, which is summed out."""


def correlation(sample: criticism.Sample) -> torch.Tensor:
    """The correlation of every two columns of x."""
    first, second = torch.triu_indices(len(COLUMNS), len(COLUMNS), offset=1)
    return torch.corrcoef(sample.x.T)[first, second]


def tumors() -> tuple[Rows, Rows]:
    """Two thirds of the rows to fit and one to judge by."""
    frame = load_breast_cancer(as_frame=True).data[list(COLUMNS)]
    x = torch.tensor(frame.to_numpy(), dtype=torch.float32).log()
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    test, train = order.split([len(x) // 3, len(x) - len(x) // 3])
    return Rows(x[train], columns=COLUMNS), Rows(x[test], columns=COLUMNS)


def fitted(train: Rows, *, epochs: int = 60) -> dict[str, Fit]:
    """Both stories, fitted alike: the diagonal of a full M-step is the diagonal story's."""
    return {
        model.__name__: pyro_moe.fit(
            model, guide, train, loss="em", epochs=epochs, seed=0, progress=False
        )
        for model in (diagonal, full)
    }


def main() -> None:
    """Check both stories on rows that neither has seen, and compare them."""
    train, test = tumors()
    fits = fitted(train)
    for name, fit in fits.items():
        check = criticism.check(fit, test, statistics={"x": {"correlation": correlation}})
        print(f"\n{name}: {check}")
        surprises = check.surprises()[SHOWN]
        if len(surprises):
            print(surprises.head(4).round(3).to_string(index=False))
    print(f"\n{criticism.compare(fits, test).dropna(axis=1).round(3).to_string()}")


if __name__ == "__main__":
    main()
