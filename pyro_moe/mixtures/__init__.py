"""Mixtures of regressions as a statistician knows them: formulas, coefficients, their errors."""

from .entry import mixture
from .result import MixtureFit
from .summary import Summary

__all__ = ["MixtureFit", "Summary", "mixture"]
