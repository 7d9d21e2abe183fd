"""Clusterings of points, to start training from."""

from importlib.util import find_spec

import numpy as np
import torch
from scipy.sparse.csgraph import connected_components
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE
from sklearn.mixture import GaussianMixture
from sklearn.neighbors import KNeighborsClassifier, kneighbors_graph

from .errors import DataError

GRAPH_ROWS = 2000
NEIGHBORS = (5, 10, 20, 40)


def cluster(
    points: torch.Tensor, num_components: int, *, embedding: str | None = None, seed: int = 0
) -> torch.Tensor:
    """Responsibilities (N, K) of points: of separate groups, or of a Gaussian mixture.

    Where the points fall into as many separate groups, of whatever shape, see
    `separate_groups`, these are the clusters. Otherwise they are those of a full-covariance
    Gaussian mixture, the best of ten EM runs.

    Args:
        points: Shape (N, L); of more than 50 columns, as of images, 50 principal components.
        num_components: K.
        embedding: ``"tsne"`` or ``"umap"`` to cluster the points' neighbor embedding by a mixture
            instead of the points.
        seed: Seed of the embedding and of the starts.
    """
    array = points.double().cpu().numpy()
    if min(array.shape) > 50:
        array = PCA(50, random_state=seed).fit_transform(array)
    if embedding is None:
        groups = separate_groups(array, num_components, seed=seed)
        if groups is not None:
            return torch.as_tensor(groups)
    else:
        array = neighbor_embedding(array, embedding, seed=seed)
    mixture = GaussianMixture(num_components, n_init=10, reg_covar=1e-5, random_state=seed)
    return torch.as_tensor(mixture.fit(array).predict_proba(array))


def separate_groups(points: np.ndarray, number: int, *, seed: int) -> np.ndarray | None:
    """Groups of points without neighbors in each other, if there are so many.

    They are the connected components of the graph of nearest neighbors, in standard units, among
    2,000 points at the most. Components with less than a tenth of an equal share are taken for
    outliers, of which there may be a tenth in all. Each point belongs to the groups of its
    neighbors.

    Args:
        points: Shape (N, L).
        number: K, from 2 on.
        seed: Decides which points make the graph.

    Returns:
        Shares (N, K), or None if for no number of neighbors, from 5 to 40, there are K groups.

    Example:
        >>> line = np.linspace(0.0, 1.0, 20)[:, None]
        >>> separate_groups(np.concatenate([line, line + 9.0]), 2, seed=0)[[0, -1]]
        array([[1., 0.],
               [0., 1.]])
        >>> separate_groups(line, 2, seed=0) is None
        True
    """
    units = np.where(points.std(0) > 0, points.std(0), 1.0)
    chosen = np.random.default_rng(seed).permutation(len(points))[:GRAPH_ROWS]
    some = (points / units)[np.sort(chosen)]
    for neighbors in (k for k in NEIGHBORS if number > 1 and k < len(some)):
        _, labels = connected_components(kneighbors_graph(some, neighbors), directed=False)
        counts = np.bincount(labels)
        large = np.flatnonzero(counts >= max(0.1 * len(some) / number, neighbors + 1))
        if len(large) == number and counts[large].sum() >= 0.9 * len(some):
            inside = np.isin(labels, large)
            nearest = KNeighborsClassifier(5).fit(some[inside], labels[inside])
            return nearest.predict_proba(points / units)
    return None


def neighbor_embedding(points: np.ndarray, method: str, *, seed: int) -> np.ndarray:
    """Points embedded so that neighbors stay together and gaps open between groups.

    Args:
        points: Shape (N, L).
        method: ``"tsne"`` into the plane (scikit-learn's; up to some ten thousand rows), or
            ``"umap"`` into ten dimensions, with 20 neighbors and no minimal distance: settings
            for clustering rather than for pictures (McInnes, Healy, Melville 2018). It wants
            the extra ``pyro-moe[umap]``.
        seed: Seed of the embedding.

    Raises:
        DataError: If all points are the same.
        ImportError: If umap-learn is asked for and not installed.
    """
    if (points == points[0]).all():  # where scikit-learn's t-SNE ends the whole process
        raise DataError("expected rows whose codes differ; got one code for all rows")
    if method == "tsne":
        perplexity = min(30.0, (len(points) - 1) / 3)
        return TSNE(perplexity=perplexity, init="pca", random_state=seed).fit_transform(points)
    expect_umap()
    from umap import UMAP

    reducer = UMAP(
        n_components=min(10, len(points) - 2),
        n_neighbors=min(20, len(points) - 1),
        min_dist=0.0,
        random_state=seed,
        n_jobs=1,
    )
    return reducer.fit_transform(points)


def expect_umap() -> None:
    """See that umap-learn is there.

    Raises:
        ImportError: If it is not.
    """
    if find_spec("umap") is None:
        raise ImportError(
            "expected the package umap-learn for initialize='umap'; "
            "got none: pip install 'pyro-moe[umap]'"
        )
