"""Colors, and figures of several panels."""

import numpy as np
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

# Paul Tol's "muted" scheme, which is safe for color-blind readers, and black.
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
    """A figure with ``number`` panels in each row, their size in inches, and its panels."""
    layout = ConstrainedLayoutEngine(compress=True, wspace=0.05)
    figure = Figure(figsize=(width * number, height * rows), layout=layout)
    panels = figure.subplots(rows, number, squeeze=False, sharex=sharex, sharey=sharey)
    return figure, panels.reshape(-1)


def margin(low: float, high: float, share: float) -> float:
    """A share of the range of values, or a width that can be seen where all are nearly equal.

    Example:
        >>> margin(0.0, 10.0, 0.1), margin(2.0, 2.0, 0.1)
        (1.0, 1.0)
    """
    wide, size = share * (high - low), max(abs(low), abs(high))
    return float(wide if wide > 1e-6 * size else max(1.0, 1e-3 * size))


def color(index: int) -> str:
    """The color of a component."""
    return PALETTE[index % len(PALETTE)]
