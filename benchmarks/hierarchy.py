r"""A second layer: whether groups of clusters are those of simulated data, and groups of digits.

    python benchmarks/hierarchy.py blobs hierarchical --seeds 0 1 2 3 4
    python benchmarks/hierarchy.py digits hierarchical --groups 3
    python benchmarks/hierarchy.py mnist hierarchical --groups 3 --epochs 3 --seeds 0 --data-dir DIR
    python benchmarks/hierarchy.py mnist hierarchical --groups 10 --components 30 --epochs 3 \
        --seeds 0 --data-dir DIR --picture styles.png

``blobs`` are five normals in two groups, of three and of two. ``arms`` are two spirals, of three
arms and of two. ``far`` is the distance of the groups in units of that within a group. ``ward``
groups the clusters of a fitted DMVAE by Ward's method, ``dmvae`` has one layer with as many
components as there are groups, and ``kmeans`` is scikit-learn's with as many clusters. On MNIST the
clusters are held as in ``benchmarks/mnist.py --hold``. With more clusters than digits, clusters are
styles, and groups may be digits. ``--picture`` draws the tree and rows of each cluster.
"""

import argparse
import time
from pathlib import Path
from typing import Any

import mnist
import record
import torch
from scipy.cluster.hierarchy import fcluster, linkage
from sklearn.cluster import KMeans

import pyro_moe
from pyro_moe import Fit, Rows, datasets, evaluation, models, plots

METHODS = ("hierarchical", "ward", "dmvae", "kmeans")
IMAGES = ("digits", "mnist")
DATA = ("blobs", "arms", *IMAGES)
GROUP_OF = torch.tensor([0, 0, 0, 1, 1])  # of each component of the simulated data
ROWS = 400  # of a component
REACH = {"blobs": 3.0, "arms": 20.0}  # the size of a group


def main() -> None:
    """Run one method on one set of data for the requested seeds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", choices=DATA)
    parser.add_argument("method", choices=METHODS)
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(5)))
    parser.add_argument("--far", type=float, default=2.0)
    parser.add_argument("--groups", type=int, default=2)
    parser.add_argument("--components", type=int, help="as many as there are labels if left out")
    parser.add_argument("--picture", type=Path, help="a file for the tree of the last seed")
    parser.add_argument("--loss", default="marginal")
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--data-dir", metavar="DIR", help="folder of MNIST's four files")
    parser.add_argument("--cache", type=Path, default=Path("runs"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    for seed in options.seeds:
        train, test = rows_of(options, seed)
        started = time.perf_counter()
        measured = measure(options, seed, train, test)
        measured["seconds"] = time.perf_counter() - started
        key = {
            "data": options.data,
            "method": options.method,
            "loss": options.loss,
            "far": options.far if options.data not in IMAGES else None,
            "components": options.components or len(train.labels.unique()),
            "groups": options.groups,
            "seed": seed,
        }
        print(key, measured, flush=True)
        record.write("hierarchy", key, measured)


def rows_of(options: argparse.Namespace, seed: int) -> tuple[Rows, Rows]:
    """Training and test rows, with the component of each as its label."""
    if options.data == "digits":
        return datasets.digits(seed=seed)
    if options.data == "mnist":
        return datasets.mnist(options.data_dir, binary=True)
    if options.data == "arms":
        train, test = datasets.spiral(train_rows=ROWS, test_rows=ROWS, seed=seed)
        return tuple(apart(rows, options) for rows in (train, test))
    draw = torch.Generator().manual_seed(seed)
    corners = REACH["blobs"] * torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    centers = torch.cat([corners, corners[:2]])
    labels = torch.arange(5).repeat(ROWS)
    parts = (centers[labels] + 0.6 * torch.randn(len(labels), 2, generator=draw) for _ in "ab")
    return tuple(apart(Rows(x, labels=labels), options) for x in parts)


def apart(rows: Rows, options: argparse.Namespace) -> Rows:
    """The rows with the second group at a distance from the first."""
    shift = options.far * REACH[options.data] * torch.tensor([0.6, 0.8])
    return Rows(rows.x + GROUP_OF[rows.labels].unsqueeze(-1) * shift, labels=rows.labels)


def measure(options: argparse.Namespace, seed: int, train: Rows, test: Rows) -> dict[str, Any]:
    """Scores of the groups, and of the clusters where there are some."""
    if options.method == "kmeans":
        groups = KMeans(options.groups, n_init=10, random_state=seed).fit(train.x.numpy())
        return of_groups(options, torch.as_tensor(groups.predict(test.x.numpy())), test)
    if options.method == "dmvae":
        fit = fitted(options, seed, train, models.DMVAE, num_components=options.groups)
        return of_groups(options, evaluation.gate(fit, test.x).argmax(-1), test)
    number = options.components or len(train.labels.unique())
    layered = options.method == "hierarchical"
    kind, more = (
        (models.HierarchicalDMVAE, {"num_groups": options.groups})
        if layered
        else (
            models.DMVAE,
            {},
        )
    )
    fit = fitted(options, seed, train, kind, num_components=number, **more)
    g = evaluation.gate(fit, test.x)
    if layered:
        if options.picture is not None:
            plots.hierarchy(fit, test).savefig(options.picture, dpi=150)
        groups = evaluation.gate(fit, test.x, site="c1").argmax(-1)
        tree = fit.story.prior.log_memberships().argmax(-1)
    else:
        merged = linkage(fit.story.prior.loc.detach().numpy(), "ward")
        tree = torch.as_tensor(fcluster(merged, options.groups, "maxclust") - 1)
        groups = tree[g.argmax(-1)]
    found = {**evaluation.clustering_scores(g, test.labels), **of_groups(options, groups, test)}
    found["test_elbo"] = evaluation.elbo(fit, test.x).mean().item()
    found["members"] = members(tree, g, test.labels)
    return found


def fitted(options: argparse.Namespace, seed: int, train: Rows, kind: Any, **sizes: Any) -> Fit:
    """A story fitted to the training rows."""
    sizes |= {"x_dim": train.x.shape[1], "z_dim": 10 if options.data in IMAGES else 2}
    training: dict[str, Any] = {"initialize": "autoencoder"}
    if options.data == "digits":
        sizes["common_scale"] = True
        training = {"initialize": "tsne", "learning_rate": 2e-3}
    elif options.data == "mnist":
        gate = models.ConvolutionalClassifier((1, 28, 28), sizes["num_components"])
        sizes |= {"likelihood": "bernoulli", "covariance": "full", "gate": gate}
        sizes["hidden"] = mnist.HIDDEN
        number = sizes["num_components"]
        start = mnist.responsibilities("mnist", options.cache, options.data_dir, seed, number)
        training = {"initialize": start, "labels": start, "learning_rate": 1e-3}
        training["initial_epochs"] = options.epochs
    torch.manual_seed(seed)
    story = kind(**sizes)
    return pyro_moe.fit(
        story.model,
        story.guide,
        train.x,
        loss=options.loss,
        epochs=options.epochs,
        seed=seed,
        progress=False,
        **training,
    )


def of_groups(options: argparse.Namespace, groups: torch.Tensor, test: Rows) -> dict[str, Any]:
    """Agreement of the groups of rows with the simulated ones, or with as many digits."""
    truth = test.labels if options.data in IMAGES else GROUP_OF[test.labels]
    if options.groups != len(truth.unique()):
        return {}
    scores = evaluation.clustering_scores(groups, truth)
    return {"group_accuracy": scores["accuracy"], "group_ari": scores["ari"]}


def members(tree: torch.Tensor, g: torch.Tensor, labels: torch.Tensor) -> list[list[int]]:
    """The most frequent label of each cluster, by group."""
    clusters = g.argmax(-1)
    names = [
        int(labels[clusters == k].mode().values) if (clusters == k).any() else -1
        for k in range(len(tree))
    ]
    return sorted(sorted(names[k] for k in range(len(tree)) if tree[k] == n) for n in tree.unique())


if __name__ == "__main__":
    main()
