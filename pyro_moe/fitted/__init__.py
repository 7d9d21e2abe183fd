"""The result of `fit`, what it remembers of its training rows, and later rows made to match."""

from .fit import Fit
from .matching import described
from .training import Training, strange_rows_expected

__all__ = ["Fit", "Training", "described", "strange_rows_expected"]
