"""Each cell of the table is a fit that is scored, and each row is printed."""

import re

import pytest
import torch

from pyro_moe import DataError, Rows, datasets, evaluation, models
from pyro_moe.paper import table1

STORIES = {
    "ME": models.ME,
    "GMM-MoE": models.GMMMoE,
    "DeepMoE": models.DeepMoE,
    "DeepMoE, clustered start": models.DeepMoE,
    "VaDE-MoE": models.VaDEMoE,
    "DVMoE": models.DVMoE,
}
each_method = pytest.mark.parametrize("name", table1.METHODS)
each_data = pytest.mark.parametrize("data", ["spiral", "mnist"])


@pytest.fixture(scope="module")
def small():
    """Spirals of forty rows an arm, with two targets."""
    return datasets.piecewise_affine(*datasets.spiral(train_rows=40, test_rows=20), y_dim=2)


def quick_cell(name, small, seed=0):
    return table1.cell(name, "spiral", *small, seed=seed, quick=True)


@pytest.mark.filterwarnings("ignore::pyro_moe.EmptyComponentWarning")  # after one epoch
@each_method
def test_a_cell_is_a_fit_that_is_scored_on_test_rows(small, name, monkeypatch):
    fits = []

    def remembered(*args, **choices):
        fits.append(fit(*args, **choices))
        return fits[-1]

    fit = table1.fit
    monkeypatch.setattr(table1, "fit", remembered)
    measured = quick_cell(name, small)
    test = small[1]
    prediction = evaluation.predict(fits[0], test.x)
    scores = evaluation.regression_scores(prediction, test.y)
    labels = evaluation.clustering_scores(prediction.gate, test.labels)
    assert {key: measured[key] for key in scores} == scores
    error = (0.9 * 0.1 * (1 / test.y.numel() + 2 / len(test))) ** 0.5
    assert measured["conformal_coverage"] >= 0.9 - 4 * error
    assert measured["gate_accuracy"] == labels["accuracy"]
    assert measured["held_out_elbo"] == fits[0].held_out_elbo
    assert (measured["held_out_elbo"] is None) == (name in {"ME", "GMM-MoE"})
    assert measured["seconds"] > 0
    assert measured["error"] < table1.variance(test)  # better than to know nothing


def test_the_seed_decides_a_cell(small):
    first, same, other = (quick_cell("GMM-MoE", small, seed) for seed in (1, 1, 2))
    for measured in (first, same, other):
        del measured["seconds"]
    assert first == same
    assert first != other


@each_method
@each_data
def test_every_method_is_its_story_with_the_sizes_of_the_data(name, data):
    story, arguments = table1.method(name, data, 5, quick=True)
    assert type(story) is STORIES[name]
    x_dim, num_components = {"spiral": (2, 5), "mnist": (784, 10)}[data]
    assert (story.x_dim, story.y_dim, story.num_components) == (x_dim, 5, num_components)
    x = torch.zeros(3, x_dim)
    assert story.experts(x).batch_shape == (3, num_components)
    assert arguments["restarts"] == (2 if data == "spiral" else 1)


@each_data
def test_gates_with_a_story_of_x_start_from_a_clustering(data):
    """And the DeepMoE for comparison, and images' EM, but not ME or the paper's own DeepMoE."""
    start = object()
    clustered = {"DeepMoE, clustered start", "VaDE-MoE", "DVMoE"}
    if data == "mnist":
        clustered.add("GMM-MoE")
    for name in table1.METHODS:
        arguments = table1.method(name, data, 1, start=start)[1]
        assert (arguments.get("initialize") is start) == (name in clustered)
        assert (arguments.get("loss") == "em") == (name in {"ME", "GMM-MoE"})


def test_being_quick_takes_fewer_epochs():
    for name in ("DeepMoE", "DVMoE"):
        slow, quick = (table1.method(name, "spiral", 1, quick=quick)[1] for quick in (False, True))
        assert quick["epochs"] < slow["epochs"]


def test_a_method_that_is_none_is_an_error():
    with pytest.raises(ValueError, match=r"expected a method in \('ME', .*\); got 'SVM'"):
        table1.method("SVM", "spiral", 1)


def test_a_cell_wants_targets():
    rows, _ = datasets.spiral(train_rows=2, test_rows=1)
    with pytest.raises(DataError, match="expected rows with targets; got y=None"):
        table1.cell("ME", "spiral", rows, rows, seed=0)


def test_the_variance_is_the_error_of_the_mean():
    y = torch.tensor([[0.0, 1.0], [2.0, 1.0], [4.0, 4.0]])
    rows = Rows(torch.zeros(3, 2), y)
    expected = (y - y.mean(0)).square().sum(-1).mean().item()
    assert table1.variance(rows) == pytest.approx(expected)


@pytest.fixture
def cells(monkeypatch):
    """What was asked of cells that are not fitted, and small data in place of the large."""
    asked = []

    def cell(name, data, train, test, *, seed, **options):
        asked.append((name, data, len(train), train.y.shape[1], seed, options))
        return {"error": len(asked) / 8}

    spiral = datasets.spiral(train_rows=4, test_rows=4)
    mnist = (
        Rows(torch.zeros(10_007, 2), None, torch.arange(10_007) % 10, (1, 1, 2)),
        Rows(torch.zeros(20, 2), None, torch.arange(20) % 10, (1, 1, 2)),
    )
    monkeypatch.setattr(table1, "cell", cell)
    monkeypatch.setattr(datasets, "spiral", lambda seed: spiral)
    monkeypatch.setattr(datasets, "mnist", lambda root: mnist)
    return asked


def printed(capsys):
    """Rows of the table by their label, as numbers, and the header."""
    header, *lines = capsys.readouterr().out.splitlines()
    assert header.split() == ["M=1", "M=2", "M=5"]
    assert len({len(line) for line in (header, *lines)}) == 1  # columns stand below each other
    rows = [re.fullmatch(r"(.*?)((?: +[\d.]+){3})", line) for line in lines]
    return {row[1].strip(): [float(number) for number in row[2].split()] for row in rows}


def test_the_table_of_spirals_has_a_row_for_each_method(cells, capsys):
    table1.run(quick=True)
    table = printed(capsys)
    assert list(table) == [
        "spiral: variance of the target",
        "spiral: paper, DeepMoE",
        "spiral: paper, DVMoE",
        *(f"spiral: {name}" for name in table1.METHODS),
    ]
    assert table["spiral: paper, DVMoE"] == [0.0312, 0.0434, 96.1049]
    assert table["spiral: ME"] == [0.125, 0.25, 0.375]  # in the order in which they were asked
    assert table["spiral: DVMoE"] == [2.0, 2.125, 2.25]
    options = {"start": "autoencoder", "quick": True}
    assert cells == [
        (name, "spiral", 20, y_dim, 0, options) for name in table1.METHODS for y_dim in (1, 2, 5)
    ]


def test_with_a_folder_the_table_has_images_that_start_from_one_clustering(
    cells, capsys, monkeypatch
):
    starts = []

    def cluster_images(rows, num_components, **options):
        starts.append((len(rows), num_components))
        return "a clustering"

    monkeypatch.setattr(table1, "cluster_images", cluster_images)
    table1.run(quick=True, data_dir="here")
    table = printed(capsys)
    assert sum(label.startswith("mnist: ") for label in table) == 3 + len(table1.METHODS)
    assert table["mnist: paper, DeepMoE"] == [28.4584, 209.028, 880.126]
    assert starts == [(10_000, 10)]  # quickly, of ten thousand images
    images = [asked for asked in cells if asked[1] == "mnist"]
    assert {(rows, seed) for _, _, rows, _, seed, _ in images} == {(10_000, 0)}
    assert all(options["start"] == "a clustering" for *_, options in images)
