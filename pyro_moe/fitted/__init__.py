"""The result of `fit`, what it remembers of its training rows, and later rows made to match."""

from .fit import Fit
from .matching import described, in_order
from .training import Training, strange_rows_expected
from .weights import weighted_mean

__all__ = ["Fit", "Training", "described", "in_order", "strange_rows_expected", "weighted_mean"]
