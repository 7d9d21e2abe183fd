"""§8.1 of the paper: DMVAE and VaDE on spirals and on digits, figures 4 to 11."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from pyro_moe import datasets, evaluation, models, plots
from pyro_moe.fitted import Fit
from pyro_moe.fitting import fit
from pyro_moe.images import cluster_images
from pyro_moe.rows import Rows

STORIES: dict[str, Any] = {"DMVAE": models.DMVAE, "VaDE": models.VaDE}
FEW = 10_000


@dataclass(frozen=True)
class Clustered:
    """A fitted story and its test rows.

    Attributes:
        name: The name of the story.
        fit: The fit.
        test: The test rows.
    """

    name: str
    fit: Fit
    test: Rows

    @property
    def numbers(self) -> dict[str, Any]:
        """Accuracy, bound, epochs and seconds of the training after its start."""
        records = [record for record in self.fit.history if record["phase"] == "training"]
        gate = evaluation.gate(self.fit, self.test.x)
        scores = evaluation.clustering_scores(gate, np.asarray(self.test.labels))
        return {
            "story": self.name,
            "test accuracy": scores["accuracy"],
            "bound, nats a row": evaluation.elbo(self.fit, self.test.x).mean().item(),
            "epochs": len(records),
            "epochs to 99 % of the gain": epochs_to([record["elbo"] for record in records], 0.99),
            "seconds an epoch": sum(record["seconds"] for record in records) / len(records),
        }

    def figures(self) -> Iterator[tuple[str, Figure]]:
        """Originals and reconstructions, generated rows, and the latent space."""
        yield f"{self.name}: original and reconstructed", plots.reconstructions(self.fit, self.test)
        shape = self.test.image_shape
        yield f"{self.name}: generated, by cluster", plots.generated(self.fit, image_shape=shape)
        yield f"{self.name}: codes of the test rows", plots.latent_map(self.fit, self.test)


def of_spirals(*, quick: bool) -> list[Clustered]:
    """Both stories on spirals, figures 8 to 11.

    Args:
        quick: Whether to train for five epochs instead of twenty.
    """
    train, test = datasets.spiral()
    sizes = {"x_dim": 2, "z_dim": 2, "num_components": 5}
    options = {"epochs": 5 if quick else 20, "initial_epochs": 5, "initialize": "autoencoder"}
    return [_clustered(name, train, test, sizes, options) for name in STORIES]


def of_images(*, quick: bool, data_dir: str | None) -> list[Clustered]:
    """Both stories on images, figures 4 to 7.

    Args:
        quick: Whether to train on 10,000 images of MNIST, and for fewer epochs.
        data_dir: Folder with MNIST's four files. If None, scikit-learn's digits stand for them.
    """
    if data_dir is None:
        train, test = datasets.digits()
        sizes: dict[str, Any] = {"x_dim": 64, "z_dim": 10, "num_components": 10}
        return [_clustered(name, train, test, sizes, {}) for name in STORIES]
    gray, _ = datasets.mnist(data_dir)
    train, test = datasets.mnist(data_dir, binary=True)
    if quick:
        gray, train = gray.take(slice(FEW)), train.take(slice(FEW))
    start = cluster_images(gray, 10, embedding="tsne" if quick else "umap", progress=False)
    sizes = {"x_dim": 784, "z_dim": 10, "num_components": 10, "likelihood": "bernoulli"}
    sizes["hidden"] = (500, 500) if quick else (500, 500, 2000)
    options: dict[str, Any] = {"epochs": 2 if quick else 6, "initial_epochs": 2 if quick else 6}
    options |= {"initialize": start, "learning_rate": 1e-3}
    return [_clustered(name, train, test, sizes, options) for name in STORIES]


def epochs_to(curve: list[float], share: float) -> int:
    """Epochs after which a curve has made this share of its whole gain.

    Example:
        >>> epochs_to([0.0, 9.0, 9.95, 10.0], 0.99)
        3
    """
    goal = curve[0] + share * (max(curve) - curve[0])
    return next(number for number, value in enumerate(curve, 1) if value >= goal)


def _clustered(
    name: str, train: Rows, test: Rows, sizes: dict[str, Any], options: dict[str, Any]
) -> Clustered:
    story = STORIES[name](**sizes)
    fitted = fit(story.model, story.guide, train.x, seed=0, progress=False, **options)
    return Clustered(name, fitted.uninterrupted(), test)
