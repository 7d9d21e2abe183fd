"""Fitting of models: `fit` and `resume`."""

from .entry import fit, resume
from .training import geometric

__all__ = ["fit", "geometric", "resume"]
