"""Plots of a fit: training history, gate, codes, predictions, reconstructions, generated data.

Each function returns a matplotlib `Figure`. Nothing is shown, and pyplot is not used. Write a
figure with ``figure.savefig("my.png")``.
"""

from .gate_regions import gate_map
from .hierarchy import hierarchy
from .latent import generated, latent_map, reconstructions
from .overview import pictures
from .posteriors import classification, rootogram, uncertainty
from .targets import predictions
from .training import history

__all__ = [
    "classification",
    "gate_map",
    "generated",
    "hierarchy",
    "history",
    "latent_map",
    "pictures",
    "predictions",
    "reconstructions",
    "rootogram",
    "uncertainty",
]
