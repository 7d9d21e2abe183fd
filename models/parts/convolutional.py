"""Convolutional networks for flattened images, and random affine augmentation of images."""

import math

import torch
from torch import nn
from torch.quasirandom import SobolEngine


class ConvolutionalEncoder(nn.Module):
    """Two strided convolutions and an affine layer, from a flattened image to a vector.

    Args:
        image_shape: ``(channels, height, width)``; height and width divisible by four.
        out_features: Length of the output vector.
        channels: Filters of the first convolution; the second has twice as many.

    Raises:
        ValueError: If height or width is not divisible by four.

    Example:
        >>> ConvolutionalEncoder((1, 8, 8), 3)(torch.zeros(5, 64)).shape
        torch.Size([5, 3])
    """

    def __init__(
        self, image_shape: tuple[int, int, int], out_features: int, channels: int = 32
    ) -> None:
        super().__init__()
        self.image_shape = _divisible_by_four(image_shape)
        depth, height, width = image_shape
        self.layers = nn.Sequential(
            nn.Conv2d(depth, channels, kernel_size=4, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(channels, 2 * channels, kernel_size=4, stride=2, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(2 * channels * (height // 4) * (width // 4), out_features),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map images ``(..., channels * height * width)`` to vectors ``(..., out_features)``."""
        features = self.layers(x.reshape(-1, *self.image_shape))
        return features.reshape(*x.shape[:-1], -1)


class ConvolutionalDecoder(nn.Module):
    """An affine layer and two transposed convolutions, from a vector to a flattened image.

    Args:
        in_features: Length of the input vector.
        image_shape: ``(channels, height, width)``; height and width divisible by four.
        channels: Filters of the last hidden layer; the one before has twice as many.

    Raises:
        ValueError: If height or width is not divisible by four.

    Example:
        >>> ConvolutionalDecoder(3, (1, 8, 8))(torch.zeros(5, 3)).shape
        torch.Size([5, 64])
    """

    def __init__(
        self, in_features: int, image_shape: tuple[int, int, int], channels: int = 32
    ) -> None:
        super().__init__()
        depth, height, width = _divisible_by_four(image_shape)
        self.layers = nn.Sequential(
            nn.Linear(in_features, 2 * channels * (height // 4) * (width // 4)),
            nn.ReLU(),
            nn.Unflatten(-1, (2 * channels, height // 4, width // 4)),
            nn.ConvTranspose2d(2 * channels, channels, kernel_size=4, stride=2, padding=1),
            nn.ReLU(),
            nn.ConvTranspose2d(channels, depth, kernel_size=4, stride=2, padding=1),
            nn.Flatten(),
        )

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        """Map vectors ``(..., in_features)`` to images ``(..., channels * height * width)``."""
        image = self.layers(z.reshape(-1, z.shape[-1]))
        return image.reshape(*z.shape[:-1], -1)


class ConvolutionalClassifier(nn.Module):
    r"""A gate for images: three convolutions with pooling, batch normalization and dropout.

    In training, images are rotated and shifted slightly at random, see `RandomAffine`, because
    the component of an image does not depend on its exact position. In evaluation, logits can be
    averaged over fixed moves of the image:

    .. math:: \eta(x) = \frac{1}{V} \sum_{v=1}^V \eta_0(\mathrm{move}_v(x)).

    Log-probabilities of this average are at least the average log-probabilities of single moves,
    which training raises.

    Args:
        image_shape: ``(channels, height, width)``; height and width of at least eight.
        num_classes: K, length of the output vector, logits.
        channels: Filters of the three convolutions.
        dropout: Dropout probability of the last hidden layer.
        views: V. With one, the image is not moved in evaluation. Evaluation takes V times as long.

    Raises:
        ValueError: If height or width is below eight, or ``views`` is below one.

    Example:
        >>> ConvolutionalClassifier((1, 8, 8), 3).eval()(torch.zeros(5, 64)).shape
        torch.Size([5, 3])
    """

    views: torch.Tensor

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        num_classes: int,
        *,
        channels: tuple[int, int, int] = (16, 32, 64),
        dropout: float = 0.1,
        views: int = 1,
    ) -> None:
        super().__init__()
        if views < 1:
            raise ValueError(f"expected at least one view; got views={views}")
        self.image_shape = image_shape
        points = SobolEngine(3, scramble=True, seed=0).draw(views)
        self.register_buffer("views", points, persistent=False)
        depth, height, width = image_shape
        if min(height, width) < 8:
            raise ValueError(
                f"expected an image height and width of at least 8; got image_shape={image_shape}"
            )
        layers: list[nn.Module] = []
        for fan_in, fan_out in zip((depth, *channels), channels, strict=False):
            # Pooling comes first, so that batch normalization takes a quarter of the time.
            layers += [nn.Conv2d(fan_in, fan_out, kernel_size=3, padding=1), nn.MaxPool2d(2)]
            layers += [nn.BatchNorm2d(fan_out), nn.ReLU()]
        layers += [nn.Flatten(), nn.Linear(channels[-1] * (height // 8) * (width // 8), 128)]
        layers += [nn.ReLU(), nn.Dropout(dropout), nn.Linear(128, num_classes)]
        self.move, self.layers = RandomAffine(image_shape), nn.Sequential(*layers)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map images ``(..., channels * height * width)`` to logits ``(..., num_classes)``."""
        images = x.reshape(-1, x.shape[-1])
        if self.training or len(self.views) == 1:
            logits = self._logits(self.move(images))
        else:
            moved = (self.move.by(images, view.expand(len(images), 3)) for view in self.views)
            logits = torch.stack([self._logits(each) for each in moved]).mean(0)
        return logits.reshape(*x.shape[:-1], -1)

    def _logits(self, images: torch.Tensor) -> torch.Tensor:
        return self.layers(images.reshape(-1, *self.image_shape))


class RandomAffine(nn.Module):
    r"""Random rotation and translation of flattened images in training mode.

    .. math:: x'(u) = x(R_\alpha u + t), \quad \alpha \sim U(-a, a), \quad t \sim U(-b, b)^2

    with bilinear interpolation and zeros outside the image. In evaluation mode images are
    unchanged.

    Args:
        image_shape: ``(channels, height, width)``.
        degrees: a, in degrees.
        translate: b, as a fraction of height and width.

    Example:
        >>> RandomAffine((1, 8, 8)).eval()(torch.ones(2, 64)).sum()
        tensor(128.)
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        *,
        degrees: float = 7.0,
        translate: float = 0.05,
    ) -> None:
        super().__init__()
        self.image_shape, self.degrees, self.translate = image_shape, degrees, translate

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Transform flattened images, shape (N, D)."""
        return self.by(x, torch.rand(len(x), 3, dtype=x.dtype)) if self.training else x

    def by(self, x: torch.Tensor, moves: torch.Tensor) -> torch.Tensor:
        """Rotate and shift flattened images.

        Args:
            x: Images, shape (N, D).
            moves: One point of the unit cube for each image, shape (N, 3): the angle and the
                shifts in width and height, each from the lowest to the highest possible.
        """
        points = 2 * moves.to(x.dtype) - 1
        angle = points[:, 0] * math.radians(self.degrees)
        shift = points[:, 1:] * 2 * self.translate  # the grid spans [-1, 1]
        cos, sin = angle.cos(), angle.sin()
        shape = (len(x), *self.image_shape)
        ratio = shape[-2] / shape[-1]  # grid units differ in height and width
        map_back = torch.stack(
            [
                torch.stack([cos, -sin * ratio, shift[:, 0]], 1),
                torch.stack([sin / ratio, cos, shift[:, 1]], 1),
            ],
            1,
        )
        grid = nn.functional.affine_grid(map_back.to(x), list(shape), align_corners=False)
        moved = nn.functional.grid_sample(x.reshape(shape), grid, align_corners=False)
        return moved.reshape(len(x), -1)


def _divisible_by_four(image_shape: tuple[int, int, int]) -> tuple[int, int, int]:
    if image_shape[1] % 4 or image_shape[2] % 4:
        raise ValueError(
            f"expected an image height and width divisible by 4; got image_shape={image_shape}"
        )
    return image_shape
