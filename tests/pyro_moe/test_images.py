"""Images are turned and shifted by what was asked, and clustered into rows that sum to one."""

import math
import sys

import pytest
import torch
from torch.testing import assert_close

from pyro_moe import DataError, Rows, evaluation, images
from pyro_moe.images import cluster_images, turned_and_shifted

pytestmark = pytest.mark.usefixtures("double")
EXACT = {"rtol": 0, "atol": 0}
CLOSE = {"rtol": 1e-9, "atol": 1e-9}
N, HEIGHT, WIDTH = 200, 8, 12


@pytest.fixture
def noise():
    """Images of random pixels, wider than high."""
    return Rows(torch.rand(N, HEIGHT * WIDTH), image_shape=(1, HEIGHT, WIDTH))


def ramp(down, right, height=HEIGHT, width=WIDTH, num=N):
    """Images whose grey values are a plane around the centre, and their coordinates in pixels."""
    i = (torch.arange(height) - (height - 1) / 2)[:, None].expand(height, width)
    j = (torch.arange(width) - (width - 1) / 2).expand(height, width)
    plane = (down * i + right * j).flatten().expand(num, -1)
    return Rows(plane, image_shape=(1, height, width)), i, j


def interior(images, border, height=HEIGHT, width=WIDTH):
    inside = slice(border, -border)
    return images.reshape(-1, height, width)[:, inside, inside]


@pytest.fixture
def at_the_most(monkeypatch):
    """Every random number at its largest: turned and shifted by as much as there may be."""
    monkeypatch.setattr(torch, "rand", torch.ones)


def test_without_turn_and_shift_images_stay_as_they_are(noise):
    assert_close(turned_and_shifted(noise, degrees=0.0, share=0.0), noise.x, rtol=0, atol=1e-6)


def test_a_shift_by_whole_pixels_moves_each_pixel(noise, at_the_most):
    """By a quarter of height and width, two and three pixels; beyond the border is nothing."""
    moved = turned_and_shifted(noise, degrees=0.0, share=0.25).reshape(-1, HEIGHT, WIDTH)
    before = noise.x.reshape(-1, HEIGHT, WIDTH)
    assert_close(moved[:, :-2, :-3], before[:, 2:, 3:], **CLOSE)
    assert (moved[:, -2:].abs() < 1e-9).all()
    assert (moved[:, :, -3:].abs() < 1e-9).all()


def test_a_right_angle_turns_an_image(at_the_most):
    square = Rows(torch.rand(5, 36), image_shape=(1, 6, 6))
    turned = turned_and_shifted(square, degrees=90.0, share=0.0).reshape(-1, 6, 6)
    assert_close(turned, torch.rot90(square.x.reshape(-1, 6, 6), 1, (1, 2)), **CLOSE)


def test_an_image_that_is_not_square_is_turned_without_being_bent(at_the_most):
    """A plane of grey values is a plane again, with its gradient turned."""
    angle = math.radians(7.0)
    rows, i, j = ramp(down=0.3, right=-0.2)
    turned = interior(turned_and_shifted(rows, degrees=7.0, share=0.0), 2)
    source_j = math.cos(angle) * j - math.sin(angle) * i
    source_i = math.sin(angle) * j + math.cos(angle) * i
    expected = interior((0.3 * source_i - 0.2 * source_j).unsqueeze(0), 2)
    assert_close(turned, expected.expand(N, -1, -1), **CLOSE)


@pytest.mark.parametrize(("down", "right", "size"), [(1.0, 0.0, HEIGHT), (0.0, 1.0, WIDTH)])
def test_shifts_are_even_up_to_the_share_asked_for(down, right, size):
    """The shift of a plane can be read off any pixel."""
    rows, _, _ = ramp(down, right)
    shift = interior(turned_and_shifted(rows, degrees=0.0, share=0.125) - rows.x, 2)
    assert_close(shift, shift[:, :1, :1].expand_as(shift), **CLOSE)
    shift, most = shift[:, 0, 0], size / 8
    assert (shift.abs() <= most + 1e-9).all()
    assert abs(shift.mean()) < 4.5 * most / (3 * N) ** 0.5
    variance_of_squares = (1 / 5 - 1 / 9) / N
    assert abs((shift / most).square().mean() - 1 / 3) < 4.5 * variance_of_squares**0.5


def test_angles_are_even_up_to_the_degrees_asked_for():
    """The angle of a plane is that of its gradient."""
    rows, _, _ = ramp(down=1.0, right=0.0)
    turned = interior(turned_and_shifted(rows, degrees=10.0, share=0.0), 2)
    angle = torch.atan2(turned[:, 1, 2] - turned[:, 1, 1], turned[:, 2, 1] - turned[:, 1, 1])
    share = angle / math.radians(10.0)
    assert (share.abs() <= 1 + 1e-9).all()
    assert abs(share.mean()) < 4.5 / (3 * N) ** 0.5
    assert abs(share.square().mean() - 1 / 3) < 4.5 * ((1 / 5 - 1 / 9) / N) ** 0.5


def test_each_image_moves_in_its_own_way(noise):
    same = Rows(noise.x[:1].expand(5, -1), image_shape=noise.image_shape)
    moved = turned_and_shifted(same)
    assert torch.pdist(moved).min() > 0


def test_the_channels_of_an_image_move_together():
    one = torch.rand(4, 64)
    rows = Rows(torch.cat([one, 2 * one], 1), image_shape=(2, 8, 8))
    first, second = turned_and_shifted(rows).split(64, 1)
    assert_close(second, 2 * first, **CLOSE)


def test_the_seed_decides_turns_and_shifts(noise):
    moved = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        moved.append(turned_and_shifted(noise))
    assert_close(moved[0], moved[1], **EXACT)
    assert not torch.equal(moved[0], moved[2])


# Clustering


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


@pytest.mark.parametrize("read", [turned_and_shifted, clustered])
def test_rows_that_are_no_images_are_an_error(read):
    with pytest.raises(DataError) as caught:
        read(Rows(torch.rand(9, 64)))
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
