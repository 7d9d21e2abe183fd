"""Clustering of images without labels: where a mixture over images can start."""

import math

import torch

from pyro_moe.evaluation.latent import encode
from pyro_moe.inference.clustering import cluster, expect_umap
from pyro_moe.inference.context import reproducible
from pyro_moe.inference.errors import DataError
from pyro_moe.inference.objectives import Reconstruction
from pyro_moe.models import VAE, RandomAffine

from .fitting import fit
from .rows import Rows


def cluster_images(
    rows: Rows,
    num_components: int,
    *,
    z_dim: int = 10,
    epochs: int = 30,
    copies: int = 10,
    embedding: str = "umap",
    seed: int = 0,
    progress: bool = True,
) -> torch.Tensor:
    """Responsibilities of a clustering of images, for `fit` to start from.

    An autoencoder learns from copies that are turned and shifted at random, so that its codes
    tell what an image shows rather than where; their neighbor embedding is then clustered by a
    Gaussian mixture (McConville et al. 2021, with the augmentation of Guo et al. 2018).

    Args:
        rows: Images of one channel, in [0, 1].
        num_components: K.
        z_dim: Length of the codes.
        epochs: Passes over as many images as there are rows.
        copies: Augmented copies of each image, of which each is seen ``epochs / copies`` times.
        embedding: ``"umap"``, which wants the extra ``pyro-moe[umap]``, or ``"tsne"``, for up to
            some ten thousand rows.
        seed: Seed of it all.
        progress: Whether to show a progress bar.

    Returns:
        Responsibilities, shape (N, K).

    Raises:
        DataError: If the rows are not images.
        ImportError: If umap-learn is asked for and not installed.
        ValueError: If there is no such embedding, or there are no copies.

    Source:
        McConville, Santos-Rodríguez, Piechocki and Craddock, "N2D: (not too) deep clustering via
        clustering the local manifold of an autoencoded embedding", ICPR 2021; Guo, Zhu, Liu and
        Yin, "Deep embedded clustering with data augmentation", ACML 2018.
    """
    if embedding not in ("tsne", "umap"):
        raise ValueError(f"expected embedding 'tsne' or 'umap'; got {embedding!r}")
    if copies < 1:
        raise ValueError(f"expected copies of at least 1; got {copies}")
    if embedding == "umap":
        expect_umap()  # before the minutes of an autoencoder
    if rows.image_shape is None:
        raise DataError("expected rows of images; got image_shape=None")
    moved = RandomAffine(rows.image_shape, degrees=10.0, translate=1 / 14)
    with reproducible(seed, 0, 5):
        turned = torch.cat([moved(rows.x) for _ in range(copies)])
        story = VAE(rows.x.shape[1], z_dim, common_scale=True, hidden=(500, 500, 2000))
    fitted = fit(
        story.model,
        story.guide,
        turned,
        loss=Reconstruction(),
        epochs=math.ceil(epochs / copies),
        learning_rate=1e-3,
        seed=seed,
        progress=progress,
    )
    return cluster(encode(fitted, rows.x), num_components, embedding=embedding, seed=seed)
