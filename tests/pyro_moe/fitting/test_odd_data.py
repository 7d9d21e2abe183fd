"""Few rows, equal rows, missing targets, and starts: an answer, or one line before any work."""

import numpy as np
import pytest
import torch
from torch.testing import assert_close

import pyro_moe
from pyro_moe import DataError, SiteError, evaluation, models
from pyro_moe.fitting.arguments import check_start, held_rows, held_share
from pyro_moe.inference.starts.clustering import LEAST_ROWS, cluster, neighbor_embedding

N = 24
x = torch.randn(N, 2, generator=torch.Generator().manual_seed(0))
y = x[:, :1] + 1.0
SMALL = {"hidden": (4,)}


def fit(story, data, **options):
    return pyro_moe.fit(
        story.model, story.guide, data, **{"progress": False, "prior": "weak", **options}
    )


@pytest.mark.filterwarnings("ignore::pyro_moe.EmptyComponentWarning")
@pytest.mark.parametrize("start", ["autoencoder", "tsne"])
def test_codes_of_one_column_are_embedded(start):
    fitted = fit(models.VaDE(2, 1, 2, **SMALL), x, initialize=start, epochs=1)
    assert_close(evaluation.gate(fitted, x).sum(1), torch.ones(N))


@pytest.mark.parametrize("method", sorted(LEAST_ROWS))
def test_an_embedding_of_few_rows_is_refused_before_the_autoencoder(method):
    least = LEAST_ROWS[method]
    with pytest.raises(
        DataError, match=f"expected at least {least} rows for initialize='{method}'"
    ):
        fit(models.VaDE(2, 2, 2, **SMALL), x[: least - 1], initialize=method)


@pytest.mark.parametrize("width", [1, 2])
def test_the_fewest_rows_are_embedded(width):
    points = x[: LEAST_ROWS["tsne"], :width].numpy()
    assert np.isfinite(neighbor_embedding(points, "tsne", seed=0)).all()


def test_an_embedding_of_any_size_is_clustered():
    generator = torch.Generator().manual_seed(0)
    for rows in (5, 6, 8):
        points = torch.randn(rows, 2, generator=generator)
        r = cluster(points, 2, embedding="tsne")
        assert_close(r.sum(1), torch.ones(rows).double())


@pytest.mark.parametrize("embedding", [None, "tsne"])
@pytest.mark.parametrize("number", [1, 2, 3, 5])
def test_fewer_different_rows_than_components_share_components(embedding, number):
    places = x[:2].repeat(5, 1)
    r = cluster(places, number, embedding=embedding)
    assert_close(r.sum(1), torch.ones(10).double())
    assert (r.sum(0) > 0).all()
    if number > 1:
        assert not (r[0] * r[1]).any()  # two places, two clusters


@pytest.mark.filterwarnings("ignore::pyro_moe.EmptyComponentWarning")
@pytest.mark.filterwarnings("ignore::pyro_moe.DataWarning")
@pytest.mark.parametrize(
    ("story", "data"),
    [
        (models.GMM(2, 4), x[:2].repeat(5, 1)),
        (models.ME(2, 1, 4), (x[:2].repeat(5, 1), y[:2].repeat(5, 1))),
        (models.VaDE(2, 1, 4, **SMALL), torch.ones(10, 2)),
        (models.GMM(2, 1), x[:1]),
        (models.VAE(2, 1, **SMALL), x[:1]),
        (models.VaDEMoE(2, 1, 1, 2, **SMALL), (x[:1], y[:1])),
        (models.DVMoE(2, 1, 1, 2, **SMALL), (x[:1], y[:1])),
    ],
    ids=lambda each: type(each).__name__,
)
def test_few_rows_are_fitted_without_warnings_of_other_packages(story, data):
    fitted = fit(story, data, epochs=2)
    assert evaluation.elbo(fitted, fitted.data).isfinite().all()


def test_a_single_row_is_not_held_out():
    assert held_share(None, 1, early=True, restarts=3) == 0.0
    with pytest.raises(DataError, match="expected at least as many rows as components, 1; got 0"):
        fit(models.VAE(2, 1, **SMALL), x[:1], validation=0.5, epochs=1)


@pytest.mark.parametrize("known", [1, 2, 5])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9])
def test_a_known_target_is_kept(known, share):
    some = torch.full((N,), torch.nan)
    some[:known] = 1.0
    for seed in range(20):
        held = held_rows((x, some), share, seed)
        assert held.tolist() == sorted(set(held.tolist()))
        assert set(range(known)) - set(held.tolist())
        assert (len(held) > 0) == (share > 0)


def test_labels_are_one_hot_responsibilities():
    labels = torch.arange(N) % 3
    one_hot = torch.nn.functional.one_hot(labels).double()
    for given in (labels, labels.numpy(), labels.tolist(), labels.double(), one_hot):
        assert_close(check_start(given, N, 3), one_hot)


@pytest.mark.parametrize(
    ("initialize", "message"),
    [
        (
            np.arange(N) % 3,
            "expected labels from 0 to 1, .*, or responsibilities .*; got 2 in row 2",
        ),
        (np.arange(N) % 3 - 2, "expected labels from 0 to 1, .*; got -2 in row 0"),
        (-np.ones(N, int), "expected initialize with the component of some row; got that of none"),
        (["a"] * N, "expected numbers in initialize; got 'a' in row 0"),
        (np.zeros(N - 1, int), r"expected responsibilities of shape \(24, 2\); got \(23,\)"),
    ],
)
def test_other_labels_are_refused(initialize, message):
    with pytest.raises(DataError, match=message):
        fit(models.GMM(2, 2), x, initialize=initialize)


@pytest.mark.parametrize(
    ("story", "data", "options", "message"),
    [
        (models.GMM(2, 2), (x, y), {}, r"expected data \(x\), as the story takes; got \(x, y\)"),
        (models.GMM(2, 2), x, {"seed": None}, "expected seed to be an integer.*; got None"),
        (models.GMM(2, 2), x[:0], {}, r"expected x of shape \(N, D\); got shape \(0, 2\)"),
        (models.GMM(2, 2), x[:, :0], {}, r"expected x of shape \(N, D\); got shape \(24, 0\)"),
        (models.GMM(2, 99), x, {}, "expected at least as many rows as components, 99; got 24"),
        (models.GMM(2, 2), x * 1j, {}, "expected real numbers in x; got torch.complex64"),
        (models.GMM(2, 2), np.zeros((N, 2), "M8[s]"), {}, "expected numbers in x; got '1970"),
        (models.GMM(2, 2), x / 0, {}, "expected finite values in x; got -?inf in row 0"),
        (
            models.ME(2, 1, 2),
            (x, y * torch.nan),
            {"missing_targets": True},
            "expected rows with a target; got NaN in every row of y",
        ),
    ],
)
def test_one_line_before_any_work(story, data, options, message):
    with pytest.raises((DataError, ValueError, SiteError), match=message):
        fit(story, data, **options)


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.int16, np.float16, object])
def test_numbers_of_any_type_are_fitted(dtype):
    table = np.abs(4.0 * x.numpy()).astype(np.uint8).astype(dtype)
    assert evaluation.gate(fit(models.GMM(2, 2), table, epochs=1), table).isfinite().all()
