"""Images in a grid."""

import numpy as np
import torch
from matplotlib.axes import Axes


def show_images(
    axes: Axes,
    images: torch.Tensor,
    image_shape: tuple[int, int, int],
    num_columns: int,
    like: torch.Tensor,
) -> None:
    """Show flattened images in a grid, on the gray scale of the values of ``like``."""
    low, high = like.min().item(), like.max().item()
    scaled = (images.cpu() - low) / (high - low or 1.0)
    axes.imshow(_mosaic(scaled.clamp(0, 1), image_shape, num_columns), interpolation="nearest")
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    axes.set(xticks=[], yticks=[])


def _mosaic(
    images: torch.Tensor, image_shape: tuple[int, int, int], num_columns: int
) -> np.ndarray:
    """Flattened images (N, D) of values 0 to 1 in a grid, shape (height, width, 3)."""
    tiles = images.reshape(-1, *image_shape)
    if image_shape[0] == 1:
        tiles = (1.0 - tiles).expand(-1, 3, -1, -1)  # dark on white
    tiles = torch.nn.functional.pad(tiles, (1, 1, 1, 1), value=1.0)
    blank = tiles.new_ones(-len(tiles) % num_columns, *tiles.shape[1:])
    tiles = torch.cat((tiles, blank)).unflatten(0, (-1, num_columns))
    return tiles.permute(0, 3, 1, 4, 2).flatten(2, 3).flatten(0, 1).numpy()
