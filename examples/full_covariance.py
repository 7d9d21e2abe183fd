"""A Gaussian mixture with diagonal covariances, then with full covariances.

    python examples/full_covariance.py

The data are four measurements of the cell nuclei of 569 tumors, the logarithms of columns of
scikit-learn's breast-cancer data. The models are mixtures of two components and do not use the
diagnoses. In `diagonal`, columns are independent within a component. In `full`, they may be
correlated. The additional test statistic is the correlation of each pair of columns, over all rows
and within each component.
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
    """Rows x, shape (N, 4), with independent columns given the component."""
    pyro.module("story", story)
    with pyro.plate("data", len(x)):
        c = pyro.sample("c", dist.OneHotCategorical(logits=story.mixture.logits))
        kinds = story.mixture.normals
        kinds = dist.Normal(kinds.mean, kinds.stddev).to_event(1)
        pyro.sample("x", models.choose(c, kinds), obs=x)


def full(x: torch.Tensor) -> None:
    """Rows x, shape (N, 4), with correlated columns given the component."""
    pyro.module("story", story)
    with pyro.plate("data", len(x)):
        c = pyro.sample("c", dist.OneHotCategorical(logits=story.mixture.logits))
        kinds = story.mixture.normals  # was dist.Normal(…)
        pyro.sample("x", models.choose(c, kinds), obs=x)


def guide(x: torch.Tensor) -> None:
    """The only latent variable is c, which is summed out."""


def correlation(sample: criticism.Sample) -> torch.Tensor:
    """The correlation of each pair of columns of x."""
    first, second = torch.triu_indices(len(COLUMNS), len(COLUMNS), offset=1)
    return torch.corrcoef(sample.x.T)[first, second]


def tumors() -> tuple[Rows, Rows]:
    """Two thirds of the rows for training, and one third for testing."""
    frame = load_breast_cancer(as_frame=True).data[list(COLUMNS)]
    x = torch.tensor(frame.to_numpy(), dtype=torch.float32).log()
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    test, train = order.split([len(x) // 3, len(x) - len(x) // 3])
    return Rows(x[train], columns=COLUMNS), Rows(x[test], columns=COLUMNS)


def fitted(train: Rows, *, epochs: int = 60) -> dict[str, Fit]:
    """Fit both models with the same settings.

    The M-step estimates full covariances. Their diagonal is the M-step of `diagonal`.
    """
    return {
        model.__name__: pyro_moe.fit(
            model, guide, train, loss="em", epochs=epochs, seed=0, progress=False
        )
        for model in (diagonal, full)
    }


def main() -> None:
    """Check both models on test rows, and compare them."""
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
