"""Pictures of a fit: how it learned, what it makes of rows, and what it generates.

Each function returns a matplotlib `Figure` that belongs to the caller: nothing is shown, and
pyplot with its global state is not used. ``figure.savefig("my.png")`` writes one.
"""

from .gate_regions import gate_map
from .latent import generated, latent_map, reconstructions
from .overview import pictures
from .targets import predictions
from .training import history

__all__ = [
    "gate_map",
    "generated",
    "history",
    "latent_map",
    "pictures",
    "predictions",
    "reconstructions",
]
