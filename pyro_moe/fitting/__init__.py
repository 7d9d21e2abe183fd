"""Fitting of models: `fit`, `resume` and `laplace`."""

from .entry import fit, resume
from .fewer import with_fewer
from .laplace import Laplace, information, laplace
from .training import geometric

__all__ = ["Laplace", "fit", "geometric", "information", "laplace", "resume", "with_fewer"]
