"""One changed assumption: a DMVAE whose rows have outliers, so that x given z is Student-t.

    python examples/student_t.py

The story is `pyro_moe.models.DMVAE.model`, copied, with its last line edited. Everything else,
the guide, `fit`, the gate and the scores, is used as it is.
"""

import pyro
import pyro.distributions as dist
import torch

import pyro_moe
from pyro_moe import datasets, evaluation, models

story = models.DMVAE(x_dim=2, z_dim=2, num_components=5)


def model(x: torch.Tensor) -> None:
    """Rows x of shape (N, 2), with heavy tails around the decoder's mean."""
    pyro.module("story", story)
    with pyro.plate("data", len(x)):
        c = pyro.sample("c", story.prior.assignment())
        z = pyro.sample("z", story.prior.component(c))
        normal = story.decoder(z).base_dist
        pyro.sample("x", dist.StudentT(3.0, normal.loc, normal.scale).to_event(1), obs=x)


def contaminated(x: torch.Tensor, share: float = 0.02) -> torch.Tensor:
    """The rows with a share of them thrown far away."""
    generator = torch.Generator().manual_seed(0)
    outlier = torch.rand(len(x), 1, generator=generator) < share
    return torch.where(outlier, x + 5.0 * torch.randn(x.shape, generator=generator), x)


def main() -> None:
    """Compare the edited story with the one it was copied from, on clean held-out rows."""
    train, test = datasets.spiral(train_rows=2000, seed=0)
    x = contaminated(train.x)
    for name, program in {"normal": story.model, "Student-t": model}.items():
        fit = pyro_moe.fit(program, story.guide, x, epochs=20, seed=0)
        bound = evaluation.elbo(fit, test.x).mean()
        scores = evaluation.clustering_scores(evaluation.gate(fit, test.x), test.labels)
        print(f"{name}: held-out ELBO {bound:.3f}, accuracy {scores['accuracy']:.3f}")


if __name__ == "__main__":
    main()
