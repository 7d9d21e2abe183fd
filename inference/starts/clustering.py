"""Clusterings of points for the initialization of training."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec

import numpy as np
import torch

from ..errors import DataError
from ..programs import ONE_THREAD

GRAPH_ROWS = 2000
NEIGHBORS = (5, 10, 20, 40)
MIXTURE_ROWS, RUNS = 20_000, 30
RIDGE = 1e-5  # for points of unit variance in the widest column
LEAST_ROWS = {"tsne": 4, "umap": 16}  # that have neighbors, and others


def cluster(
    points: torch.Tensor, num_components: int, *, embedding: str | None = None, seed: int = 0
) -> torch.Tensor:
    """Cluster points by separate groups, or else by a Gaussian mixture.

    If the points form exactly K separate groups of any shape, these are the clusters, see
    `separate_groups`. Otherwise a full-covariance Gaussian mixture is fitted by EM. The best of
    ten runs is taken; of a neighbor embedding, the most typical of good ones, see `typical`. Points
    of K different places or fewer are clustered by place.

    Args:
        points: Shape (N, L). If N and L exceed 50, the first 50 principal components replace the
            columns.
        num_components: K.
        embedding: ``"tsne"`` or ``"umap"`` to fit the mixture to a neighbor embedding of the
            points. The search for separate groups is then skipped.
        seed: Seed of the embedding and of the EM runs.

    Returns:
        Responsibilities, shape (N, K).
    """
    from sklearn.decomposition import PCA
    from sklearn.mixture import GaussianMixture

    array = _in_one_unit(points.double().cpu().numpy())
    places = few_places(array, num_components)
    if places is not None:
        return torch.as_tensor(places)
    if min(array.shape) > 50:
        array = PCA(50, random_state=seed).fit_transform(array)
    if embedding is None:
        groups = separate_groups(array, num_components, seed=seed)
        if groups is not None:
            return torch.as_tensor(groups)
    else:
        array = _in_one_unit(neighbor_embedding(array, embedding, seed=seed).astype(np.float64))
        return torch.as_tensor(typical(array, num_components, seed=seed))
    mixture = GaussianMixture(num_components, n_init=10, reg_covar=RIDGE, random_state=seed)
    with _no_warnings_of_data():
        return torch.as_tensor(mixture.fit(array).predict_proba(array))


def typical(points: np.ndarray, number: int, *, seed: int) -> np.ndarray:
    r"""The most typical of Gaussian mixtures of high likelihood.

    .. math:: \max_r \sum_s \mathrm{ARI}(r, s)

    over the ten best of thirty runs of EM. Distances in a neighbor embedding are not those of the
    data, and the mixture of the highest likelihood may have two clusters in one place that most
    runs do not have. The mixtures are fitted to at most 20,000 of the points.

    Args:
        points: Shape (N, L), of about unit variance.
        number: K.
        seed: Seed of the runs.

    Returns:
        Responsibilities, shape (N, K).

    Source:
        The median partition of Strehl and Ghosh, "Cluster ensembles", JMLR 2002.
    """
    from sklearn.metrics import adjusted_rand_score
    from sklearn.mixture import GaussianMixture

    generator = np.random.default_rng(seed)
    some = points[np.sort(generator.permutation(len(points))[:MIXTURE_ROWS])]
    with _no_warnings_of_data():
        runs = [
            GaussianMixture(number, reg_covar=RIDGE, random_state=state).fit(some)
            for state in generator.integers(2**31, size=RUNS)
        ]
        best = sorted(runs, key=lambda run: -run.lower_bound_)[: RUNS // 3]
        labels = [run.predict(some) for run in best]
        agreement = [sum(adjusted_rand_score(one, other) for other in labels) for one in labels]
        return best[int(np.argmax(agreement))].predict_proba(points)


def _in_one_unit(points: np.ndarray) -> np.ndarray:
    """Centered points whose widest column has unit variance, or zeros if they are equal."""
    centered = points - points.mean(0)
    unit = centered.std(0).max()
    rounding = 1e-12 * np.abs(points).max()
    return centered / unit if unit > rounding else np.zeros_like(points)


def few_places(points: np.ndarray, number: int) -> np.ndarray | None:
    """Clusters of points that are at K different places or fewer, which no method can separate.

    Components in excess share a place.

    Args:
        points: Shape (N, L), of about unit variance. Places differ by more than a millionth.
        number: K.

    Returns:
        Responsibilities, shape (N, K), or None if there are more than K places, and K > 1.

    Example:
        >>> few_places(np.array([[0.0], [1.0], [0.0]]), 3)
        array([[0.5, 0. , 0.5],
               [0. , 1. , 0. ],
               [0.5, 0. , 0.5]])
    """
    if number == 1:
        return np.ones((len(points), 1))
    places, place = np.unique(points.round(6), axis=0, return_inverse=True)
    if len(places) > number:
        return None
    shares = place.reshape(-1, 1) == np.arange(number) % len(places)
    return shares / shares.sum(1, keepdims=True)


@contextmanager
def _no_warnings_of_data() -> Iterator[None]:
    """A start need not converge, and the graph of neighbors may have several parts."""
    from sklearn.exceptions import ConvergenceWarning

    with ONE_THREAD, warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        warnings.filterwarnings("ignore", module=r"umap|sklearn\.manifold")
        yield


def unit_variance(points: torch.Tensor) -> torch.Tensor:
    """Centered columns of unit variance, shape (N, L). Constant columns are zero."""
    deviation = points.std(0, correction=0)
    return (points - points.mean(0)) / torch.where(deviation > 0, deviation, 1.0)


def separate_groups(points: np.ndarray, number: int, *, seed: int) -> np.ndarray | None:
    """Find K groups of points such that no point has a nearest neighbor in another group.

    The groups are the connected components of a k-nearest-neighbor graph. Each column is divided
    by its standard deviation. The graph has at most 2,000 points, drawn at random. k is 5, 10, 20
    or 40, the first value that gives K groups. A connected component counts as outliers if it has
    at most k points, or fewer than a tenth of an equal share. At most a tenth of the points may
    be outliers. Each point is assigned by its five nearest neighbors within the groups.

    Args:
        points: Shape (N, L).
        number: K, at least 2.
        seed: Seed of the choice of points in the graph.

    Returns:
        The share of each group among a point's five neighbors, shape (N, K), or None if no k
        gives K groups.

    Example:
        >>> line = np.linspace(0.0, 1.0, 20)[:, None]
        >>> separate_groups(np.concatenate([line, line + 9.0]), 2, seed=0)[[0, -1]]
        array([[1., 0.],
               [0., 1.]])
        >>> separate_groups(line, 2, seed=0) is None
        True
    """
    from scipy.sparse.csgraph import connected_components
    from sklearn.neighbors import KNeighborsClassifier, kneighbors_graph

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
    """A t-SNE or UMAP embedding of points.

    Args:
        points: Shape (N, L).
        method: ``"tsne"`` for scikit-learn's t-SNE in two dimensions, practical for about ten
            thousand rows; ``"umap"`` for UMAP in ten dimensions with 20 neighbors and
            ``min_dist=0``. These settings suit clustering rather than pictures (McInnes, Healy,
            Melville 2018). UMAP requires the extra ``pyro-moe[umap]``.
        seed: Seed of the embedding.

    Returns:
        Embedded points, shape (N, 2) for t-SNE and (N, min(10, N - 2)) for UMAP.

    Raises:
        DataError: If all points are equal.
        ImportError: If ``method`` is ``"umap"`` and umap-learn is not installed.
    """
    if (points == points[0]).all():  # scikit-learn's t-SNE would crash the process
        raise DataError("expected rows whose codes differ; got one code for all rows")
    if method == "tsne":
        from sklearn.manifold import TSNE

        perplexity = min(30.0, (len(points) - 1) / 3)
        init = "pca" if min(points.shape) > 1 else "random"
        return TSNE(perplexity=perplexity, init=init, random_state=seed).fit_transform(points)
    expect_umap()
    with _no_warnings_of_data():
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
    """Check that umap-learn is installed.

    Raises:
        ImportError: If it is not installed.
    """
    if find_spec("umap") is None:
        raise ImportError(
            "expected the package umap-learn for initialize='umap'; "
            "got none: pip install 'pyro-moe[umap]'"
        )
