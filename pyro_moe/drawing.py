"""What pictures are drawn with: colors, panels, images in a grid."""

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from pyro_moe.inference.context import reproducible

from .rows import Rows

# Paul Tol's "muted" scheme, which the color-blind can tell apart, and black.
PALETTE = [
    "#CC6677",
    "#332288",
    "#DDCC77",
    "#117733",
    "#88CCEE",
    "#882255",
    "#44AA99",
    "#999933",
    "#AA4499",
    "#000000",
]
GRAY = "#666666"


def panels_of(
    number: int,
    *,
    rows: int = 1,
    width: float = 4.5,
    height: float = 4.2,
    sharex: bool = False,
    sharey: bool = False,
) -> tuple[Figure, np.ndarray]:
    """A figure of so many panels in each row, of a size in inches each, and the panels in order."""
    layout = ConstrainedLayoutEngine(compress=True, wspace=0.05)
    figure = Figure(figsize=(width * number, height * rows), layout=layout)
    panels = figure.subplots(rows, number, squeeze=False, sharex=sharex, sharey=sharey)
    return figure, panels.reshape(-1)


def color(index: int) -> str:
    """The color of a component."""
    return PALETTE[index % len(PALETTE)]


def some(rows: Rows, number: int, seed: int) -> Rows:
    """At most so many of the rows, drawn at random."""
    if len(rows) <= number:
        return rows
    with reproducible(seed):
        chosen = torch.randperm(len(rows))[:number]
    return rows.take(chosen)


def show_images(
    axes: Axes,
    images: torch.Tensor,
    image_shape: tuple[int, int, int],
    num_columns: int,
    like: torch.Tensor,
) -> None:
    """Flattened images in a grid, from white to black over the range of values of others."""
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
        tiles = (1.0 - tiles).expand(-1, 3, -1, -1)  # ink on paper
    tiles = torch.nn.functional.pad(tiles, (1, 1, 1, 1), value=1.0)
    blank = tiles.new_ones(-len(tiles) % num_columns, *tiles.shape[1:])
    tiles = torch.cat((tiles, blank)).unflatten(0, (-1, num_columns))
    return tiles.permute(0, 3, 1, 4, 2).flatten(2, 3).flatten(0, 1).numpy()
