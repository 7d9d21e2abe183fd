"""The rooms of the package as layers, for the page on the architecture.

python docs/pictures/layers.py
"""

from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

from pyro_moe.plots.style import PALETTE

# From the top down; a room and what it is for.
LAYERS = (
    (("cli", "the program"),),
    (
        ("mixtures", "formulas, errors"),
        ("runs", "run folders, story files"),
        ("estimators", "for scikit-learn"),
    ),
    (("plots", "pictures"), ("selection", "choice of K"), ("criticism", "checks, report")),
    (("validation", "of data, of fits"), ("fitting", "fit, resume")),
    (("evaluation", "gates, predictions, scores"),),
    (
        ("rows", "data"),
        ("datasets", "tables"),
        ("streams", "on disk"),
        ("fitted", "the Fit"),
    ),
    (("models", "stories and their parts"), ("inference", "objectives, SVI, EM")),
    (("distributions", "mixtures, relaxed c"),),
)
WIDTH, HEIGHT, GAP = 10.0, 1.0, 0.24


def main() -> None:
    """Draw one layer above the other."""
    figure = Figure(figsize=(4.0, 5.8))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(-0.1, WIDTH + 0.1), ylim=(-0.1, len(LAYERS) * (HEIGHT + GAP) - GAP + 0.1))
    axes.axis("off")
    for level, rooms in enumerate(reversed(LAYERS)):
        width = (WIDTH - GAP * (len(rooms) - 1)) / len(rooms)
        for place, (name, purpose) in enumerate(rooms):
            left, bottom = place * (width + GAP), level * (HEIGHT + GAP)
            _draw_room(axes, left, bottom, width, name, purpose, PALETTE[level % len(PALETTE)])
    options = {"svg.hashsalt": "layers", "svg.fonttype": "path"}
    with mpl.rc_context(options):
        path = Path(__file__).with_name("layers.svg")
        figure.savefig(path, metadata={"Date": None}, facecolor="white")


def _draw_room(
    axes: Axes, left: float, bottom: float, width: float, name: str, purpose: str, color: str
) -> None:
    shape = "round,pad=0,rounding_size=0.12"
    box = {"facecolor": color, "alpha": 0.22, "edgecolor": "none", "boxstyle": shape}
    axes.add_patch(FancyBboxPatch((left, bottom), width, HEIGHT, **box))
    middle = left + width / 2
    axes.text(middle, bottom + 0.64, name, ha="center", va="center", fontsize=11.5, weight="bold")
    axes.text(middle, bottom + 0.27, purpose, ha="center", va="center", fontsize=9, color="0.25")


if __name__ == "__main__":
    main()
