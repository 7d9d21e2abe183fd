"""Data sets of the examples and benchmarks, and the reading of tables.

All functions return `Rows`. Random numbers depend only on a seed.
"""

from typing import TYPE_CHECKING

from pyro_moe import lazy

if TYPE_CHECKING:
    from .affine_targets import piecewise_affine
    from .images import digits, mnist
    from .loading import load
    from .synthetic import spiral
    from .tables import class_names, table
    from .uci_splits import uci

__all__ = ["class_names", "digits", "load", "mnist", "piecewise_affine", "spiral", "table", "uci"]

__getattr__, __dir__ = lazy.names(
    __name__,
    {
        "affine_targets": ["piecewise_affine"],
        "images": ["digits", "mnist"],
        "loading": ["load"],
        "synthetic": ["spiral"],
        "tables": ["class_names", "table"],
        "uci_splits": ["uci"],
    },
)
