"""Data sets of the examples and benchmarks, and the reading of tables.

All functions return `Rows`. Random numbers depend only on a seed.
"""

from .affine_targets import piecewise_affine
from .images import digits, mnist
from .loading import load
from .synthetic import spiral
from .tables import class_names, table
from .uci_splits import uci

__all__ = ["class_names", "digits", "load", "mnist", "piecewise_affine", "spiral", "table", "uci"]
