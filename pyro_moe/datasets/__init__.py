"""Data to fit: those of the examples and benchmarks, and tables of a person's own.

All of them come as `Rows`; whatever is random depends on a seed alone.
"""

from .affine_targets import piecewise_affine
from .images import digits, mnist
from .loading import load
from .synthetic import spiral
from .tables import class_names, table
from .uci_splits import uci

__all__ = ["class_names", "digits", "load", "mnist", "piecewise_affine", "spiral", "table", "uci"]
