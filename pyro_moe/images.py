"""Clustering of images without labels, for the initialization of a mixture."""

import math

import torch

from pyro_moe.evaluation.latent import encode
from pyro_moe.inference.context import reproducible
from pyro_moe.inference.errors import DataError
from pyro_moe.inference.objectives import Reconstruction
from pyro_moe.inference.starts.clustering import cluster, expect_umap
from pyro_moe.models import VAE, RandomAffine

from .fitting import fit
from .rows import Rows


def cluster_images(
    rows: Rows,
    num_components: int,
    *,
    z_dim: int | None = 10,
    epochs: int = 30,
    copies: int = 10,
    embedding: str = "umap",
    seed: int = 0,
    progress: bool = True,
) -> torch.Tensor:
    """Cluster images, for the arguments ``initialize`` and ``labels`` of `fit`.

    An autoencoder is trained on randomly rotated and shifted copies of the images, so that its
    codes depend less on position and orientation. A Gaussian mixture then clusters a neighbor
    embedding of the codes (McConville et al. 2021, with the augmentation of Guo et al. 2018).

    Args:
        rows: Images of one channel, in [0, 1].
        num_components: K.
        z_dim: Length of the codes. If None, there is no autoencoder, and the embedding is that of
            the pixels, which is better for few small images.
        epochs: Training steps in epochs of N images. Each copy is used ``epochs / copies`` times,
            rounded up.
        copies: Number of augmented copies of each image.
        embedding: ``"umap"``, which requires the extra ``pyro-moe[umap]``, or ``"tsne"``, which
            is practical for about ten thousand rows.
        seed: Seed of all random numbers.
        progress: Whether to show a progress bar.

    Returns:
        Responsibilities, shape (N, K).

    Raises:
        DataError: If the rows are not images.
        ImportError: If ``embedding`` is ``"umap"`` and umap-learn is not installed.
        ValueError: If ``embedding`` is none of these, or ``copies`` is below 1.

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
        expect_umap()  # fail before the autoencoder is trained, which takes minutes
    shape = rows.image_shape
    if shape is None:
        raise DataError("expected rows of images; got image_shape=None")
    codes = rows.x
    if z_dim is not None:
        codes = _codes(codes, shape, z_dim, math.ceil(epochs / copies), copies, seed, progress)
    return cluster(codes, num_components, embedding=embedding, seed=seed)


def _codes(
    x: torch.Tensor,
    image_shape: tuple[int, int, int],
    z_dim: int,
    epochs: int,
    copies: int,
    seed: int,
    progress: bool,
) -> torch.Tensor:
    """The codes of an autoencoder of moved copies of the images x, shape (N, L)."""
    moved = RandomAffine(image_shape, degrees=10.0, translate=1 / 14)
    with reproducible(seed, 0, 5):
        turned = torch.cat([moved(x) for _ in range(copies)])
        story = VAE(x.shape[1], z_dim, common_scale=True, hidden=(500, 500, 2000))
    fitted = fit(
        story.model,
        story.guide,
        turned,
        loss=Reconstruction(),
        epochs=epochs,
        learning_rate=1e-3,
        seed=seed,
        progress=progress,
    )
    return encode(fitted.uninterrupted(), x)
