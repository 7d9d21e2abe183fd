"""Images are clustered into responsibilities whose rows sum to one."""

import sys
from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

import pyro_moe
from pyro_moe import DataError, Rows, evaluation, images
from pyro_moe.images import cluster_images

pytestmark = pytest.mark.usefixtures("double")
EXACT = {"rtol": 0, "atol": 0}


@pytest.fixture(scope="module")
def drawings():
    """Images of 8 by 8 pixels: upright, lying and slanting bars, with noise."""
    generator = torch.Generator().manual_seed(0)
    bars = torch.zeros(3, 8, 8, dtype=torch.float64)
    bars[0, :, 3:5], bars[1, 3:5, :], bars[2] = 1.0, 1.0, torch.eye(8)
    labels = torch.arange(90) % 3
    noise = 0.2 * torch.rand(90, 64, generator=generator, dtype=torch.float64)
    return Rows((bars.flatten(1)[labels] + noise).clamp(0, 1), None, labels, (1, 8, 8))


def clustered(rows, **choices):
    choices = {"z_dim": 2, "epochs": 4, "copies": 2, "embedding": "tsne"} | choices
    return cluster_images(rows, 3, progress=False, **choices)


def test_images_are_clustered_into_rows_that_sum_to_one(drawings):
    r = clustered(drawings)
    assert r.shape == (90, 3)
    assert (r >= 0).all()
    assert_close(r.double().sum(-1), torch.ones(90), rtol=0, atol=1e-5)
    assert evaluation.clustering_scores(r, drawings.labels)["accuracy"] > 0.8


def test_pixels_are_clustered_without_an_autoencoder(drawings, monkeypatch):
    monkeypatch.setattr(images, "fit", lambda *_, **__: pytest.fail("there is nothing to train"))
    r = clustered(drawings, z_dim=None)
    assert evaluation.clustering_scores(r, drawings.labels)["accuracy"] > 0.99


def test_the_seed_decides_a_clustering_and_the_generator_is_left_alone(drawings):
    few, state = drawings.take(slice(24)), torch.get_rng_state()
    first, same, other = (clustered(few, epochs=1, copies=1, seed=seed) for seed in (1, 1, 2))
    assert_close(first, same, **EXACT)
    assert not torch.equal(first, other)
    assert_close(torch.get_rng_state(), state, **EXACT)


def test_the_autoencoder_sees_as_many_images_as_there_are_rows_in_each_epoch(drawings, monkeypatch):
    seen = {}

    def fit(model, guide, data, *, epochs, **choices):
        seen.update(rows=len(data), epochs=epochs)
        raise KeyboardInterrupt

    monkeypatch.setattr(images, "fit", fit)
    with pytest.raises(KeyboardInterrupt):
        clustered(drawings, epochs=7, copies=3)
    assert seen == {"rows": 3 * 90, "epochs": 3}


def test_an_interruption_of_the_autoencoder_ends_the_clustering(drawings, monkeypatch):
    def interrupted(*arguments, **options):
        return replace(pyro_moe.fit(*arguments, **options), stopped="interrupted")

    monkeypatch.setattr(images, "fit", interrupted)
    with pytest.raises(KeyboardInterrupt):
        clustered(drawings.take(slice(24)), epochs=1, copies=1)


def test_rows_that_are_no_images_are_an_error():
    with pytest.raises(DataError) as caught:
        clustered(Rows(torch.rand(9, 64)))
    assert str(caught.value) == "expected rows of images; got image_shape=None"


@pytest.fixture
def untrained(monkeypatch):
    monkeypatch.setattr(images, "fit", lambda *args, **choices: pytest.fail("it trained"))


def test_without_umap_the_error_says_what_to_install_before_training(
    drawings, untrained, monkeypatch
):
    monkeypatch.setitem(sys.modules, "umap", None)
    with pytest.raises(ImportError, match=r"umap-learn .*pip install 'pyro-moe\[umap\]'"):
        clustered(drawings, embedding="umap")


def test_an_embedding_that_is_none_is_an_error(drawings, untrained):
    with pytest.raises(ValueError, match="expected embedding 'tsne' or 'umap'; got 'pca'"):
        clustered(drawings, embedding="pca")
    with pytest.raises(ValueError, match="expected copies of at least 1; got 0"):
        clustered(drawings, copies=0)
