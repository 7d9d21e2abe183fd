"""Fitting of models: `fit` and `resume`, and posteriors of parameters."""

from .entry import fit, resume
from .fewer import with_fewer
from .posterior import Laplace, Sampled, hmc, information, laplace
from .training import geometric

__all__ = [
    "Laplace",
    "Sampled",
    "fit",
    "geometric",
    "hmc",
    "information",
    "laplace",
    "resume",
    "with_fewer",
]
