"""Networks of flattened images map any batch, and images are moved by what was asked."""

import math

import pytest
import torch
from torch.testing import assert_close

from pyro_moe.models import (
    ConvolutionalClassifier,
    ConvolutionalDecoder,
    ConvolutionalEncoder,
    RandomAffine,
)

pytestmark = pytest.mark.usefixtures("double")
EXACT = {"rtol": 0, "atol": 0}
CLOSE = {"rtol": 1e-9, "atol": 1e-9}
N, HEIGHT, WIDTH = 200, 8, 12
SHAPE = (1, HEIGHT, WIDTH)

each_shape = pytest.mark.parametrize("image_shape", [(1, 8, 8), (3, 8, 12), (1, 28, 28)])
each_batch = pytest.mark.parametrize("batch", [(), (5,), (2, 3)])


def size(image_shape):
    return image_shape[0] * image_shape[1] * image_shape[2]


@each_shape
@each_batch
def test_convolutional_networks_map_any_batch_of_flattened_images(image_shape, batch):
    encoder = ConvolutionalEncoder(image_shape, 3, channels=2)
    decoder = ConvolutionalDecoder(3, image_shape, channels=2)
    code = encoder(torch.zeros(*batch, size(image_shape)))
    assert code.shape == (*batch, 3)
    assert decoder(code).shape == (*batch, size(image_shape))


@pytest.mark.parametrize(
    ("network", "length"),
    [(ConvolutionalEncoder((1, 8, 8), 3, channels=2), 64), (ConvolutionalDecoder(3, (1, 8, 8)), 3)],
)
def test_convolutional_networks_treat_rows_independently(network, length):
    network, x = network.double(), torch.randn(2, 3, length)
    rows = torch.stack([network(row) for row in x.reshape(6, length)])
    assert_close(network(x).reshape(6, -1), rows)


def test_convolutional_encoder_reads_pixels_row_by_row():
    encoder = ConvolutionalEncoder((2, 8, 12), 3, channels=2)
    image = torch.randn(2, 8, 12)
    assert_close(encoder(image.flatten()), encoder.layers(image[None])[0])


@pytest.mark.parametrize(
    "build",
    [lambda shape: ConvolutionalEncoder(shape, 3), lambda shape: ConvolutionalDecoder(3, shape)],
)
@pytest.mark.parametrize("image_shape", [(1, 10, 8), (1, 8, 6)])
def test_an_image_size_not_divisible_by_four_is_an_error(build, image_shape):
    message = r"height and width divisible by 4; got image_shape=\(1, \d+, \d\)"
    with pytest.raises(ValueError, match=message):
        build(image_shape)


# A classifier


@each_shape
@each_batch
def test_a_classifier_maps_any_batch_of_flattened_images(image_shape, batch):
    classifier = ConvolutionalClassifier(image_shape, 3, channels=(2, 3, 4)).eval()
    assert classifier(torch.zeros(*batch, size(image_shape))).shape == (*batch, 3)


def test_a_classifier_treats_rows_alone_in_evaluation_and_together_in_training():
    classifier, x = ConvolutionalClassifier((1, 8, 8), 3, channels=(2, 3, 4)), torch.rand(6, 64)
    rows = torch.cat([classifier.eval()(row[None]) for row in x])
    assert_close(classifier(x), rows)
    assert not torch.equal(classifier.train()(x)[:3], classifier(x[:3]))


def test_a_classifier_is_its_layers_of_images_that_moved():
    classifier, x = ConvolutionalClassifier((1, 8, 8), 3, dropout=0.0), torch.rand(6, 64)
    torch.manual_seed(0)
    got = classifier(x)
    torch.manual_seed(0)
    assert_close(got, classifier.layers(classifier.move(x).reshape(-1, 1, 8, 8)))
    assert not torch.allclose(got, classifier.layers(x.reshape(-1, 1, 8, 8)))


def test_logits_of_views_are_the_mean_of_those_of_moved_images():
    classifier, x = ConvolutionalClassifier((1, 8, 8), 3, views=4).eval(), torch.rand(6, 64)
    moved = [classifier.move.by(x, view.expand(6, 3)) for view in classifier.views]
    each = torch.stack([classifier.layers(images.reshape(-1, 1, 8, 8)) for images in moved])
    assert_close(classifier(x), each.mean(0), **CLOSE)
    assert_close(classifier(x), classifier(x), **EXACT)
    assert each.std(0).min() > 0
    assert (classifier(x).log_softmax(-1) > each.log_softmax(-1).mean(0)).all()  # Jensen


def test_views_are_even_in_each_kind_of_move_and_the_same_in_every_gate():
    first, second = (ConvolutionalClassifier((1, 8, 8), 3, views=8) for _ in range(2))
    assert_close(first.views, second.views, **EXACT)
    assert_close(
        (8 * first.views).floor().sort(0).values, torch.arange(8.0)[:, None].expand(8, 3), **EXACT
    )
    assert "views" not in first.state_dict()


def test_fewer_views_than_one_are_an_error():
    with pytest.raises(ValueError, match="expected at least one view; got views=0"):
        ConvolutionalClassifier((1, 8, 8), 3, views=0)


def test_images_too_small_for_three_poolings_are_an_error():
    message = r"expected an image height and width of at least 8; got image_shape=\(1, 7, 8\)"
    with pytest.raises(ValueError, match=message):
        ConvolutionalClassifier((1, 7, 8), 3)


# Moving images


def test_images_stay_where_they_are_but_in_training(noise):
    assert RandomAffine(SHAPE).eval()(noise) is noise


@pytest.fixture
def noise():
    """Images of random pixels, wider than high."""
    return torch.rand(N, HEIGHT * WIDTH)


def ramp(down, right, height=HEIGHT, width=WIDTH, num=N):
    """Images whose gray values are a plane around the center, and their coordinates in pixels."""
    i = (torch.arange(height) - (height - 1) / 2)[:, None].expand(height, width)
    j = (torch.arange(width) - (width - 1) / 2).expand(height, width)
    plane = (down * i + right * j).flatten().expand(num, -1)
    return plane, i, j


def interior(images, border, height=HEIGHT, width=WIDTH):
    inside = slice(border, -border)
    return images.reshape(-1, height, width)[:, inside, inside]


@pytest.fixture
def at_the_most(monkeypatch):
    """Every random number at its largest: turned and shifted by as much as there may be."""
    monkeypatch.setattr(torch, "rand", torch.ones)


def test_without_turn_and_shift_images_stay_as_they_are(noise):
    assert_close(RandomAffine(SHAPE, degrees=0.0, translate=0.0)(noise), noise, rtol=0, atol=1e-6)


def test_a_shift_by_whole_pixels_moves_each_pixel(noise, at_the_most):
    """By a quarter of height and width, two and three pixels; beyond the border is nothing."""
    moved = RandomAffine(SHAPE, degrees=0.0, translate=0.25)(noise).reshape(-1, HEIGHT, WIDTH)
    before = noise.reshape(-1, HEIGHT, WIDTH)
    assert_close(moved[:, :-2, :-3], before[:, 2:, 3:], **CLOSE)
    assert (moved[:, -2:].abs() < 1e-9).all()
    assert (moved[:, :, -3:].abs() < 1e-9).all()


def test_a_right_angle_turns_an_image(at_the_most):
    square = torch.rand(5, 36)
    turned = RandomAffine((1, 6, 6), degrees=90.0, translate=0.0)(square).reshape(-1, 6, 6)
    assert_close(turned, torch.rot90(square.reshape(-1, 6, 6), 1, (1, 2)), **CLOSE)


def test_an_image_that_is_not_square_is_turned_without_being_bent(at_the_most):
    """A plane of gray values is a plane again, with its gradient turned."""
    angle = math.radians(7.0)
    rows, i, j = ramp(down=0.3, right=-0.2)
    turned = interior(RandomAffine(SHAPE, degrees=7.0, translate=0.0)(rows), 2)
    source_j = math.cos(angle) * j - math.sin(angle) * i
    source_i = math.sin(angle) * j + math.cos(angle) * i
    expected = interior((0.3 * source_i - 0.2 * source_j).unsqueeze(0), 2)
    assert_close(turned, expected.expand(N, -1, -1), **CLOSE)


@pytest.mark.parametrize(("down", "right", "size"), [(1.0, 0.0, HEIGHT), (0.0, 1.0, WIDTH)])
def test_shifts_are_even_up_to_the_share_asked_for(down, right, size):
    """The shift of a plane can be read off any pixel."""
    rows, _, _ = ramp(down, right)
    shift = interior(RandomAffine(SHAPE, degrees=0.0, translate=0.125)(rows) - rows, 2)
    assert_close(shift, shift[:, :1, :1].expand_as(shift), **CLOSE)
    shift, most = shift[:, 0, 0], size / 8
    assert (shift.abs() <= most + 1e-9).all()
    assert abs(shift.mean()) < 4.5 * most / (3 * N) ** 0.5
    variance_of_squares = (1 / 5 - 1 / 9) / N
    assert abs((shift / most).square().mean() - 1 / 3) < 4.5 * variance_of_squares**0.5


def test_angles_are_even_up_to_the_degrees_asked_for():
    """The angle of a plane is that of its gradient."""
    rows, _, _ = ramp(down=1.0, right=0.0)
    turned = interior(RandomAffine(SHAPE, degrees=10.0, translate=0.0)(rows), 2)
    angle = torch.atan2(turned[:, 1, 2] - turned[:, 1, 1], turned[:, 2, 1] - turned[:, 1, 1])
    share = angle / math.radians(10.0)
    assert (share.abs() <= 1 + 1e-9).all()
    assert abs(share.mean()) < 4.5 / (3 * N) ** 0.5
    assert abs(share.square().mean() - 1 / 3) < 4.5 * ((1 / 5 - 1 / 9) / N) ** 0.5


def test_each_image_moves_in_its_own_way(noise):
    same = noise[:1].expand(5, -1)
    moved = RandomAffine(SHAPE)(same)
    assert torch.pdist(moved).min() > 0


def test_the_channels_of_an_image_move_together():
    one = torch.rand(4, 64)
    rows = torch.cat([one, 2 * one], 1)
    first, second = RandomAffine((2, 8, 8))(rows).split(64, 1)
    assert_close(second, 2 * first, **CLOSE)


def test_the_seed_decides_turns_and_shifts(noise):
    moved = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        moved.append(RandomAffine(SHAPE)(noise))
    assert_close(moved[0], moved[1], **EXACT)
    assert not torch.equal(moved[0], moved[2])
