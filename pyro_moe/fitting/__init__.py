"""Fitting of models: `fit` and `resume`, and posteriors of parameters."""

from .columns import em_of
from .entry import fit, resume
from .fewer import with_fewer
from .posterior import Laplace, Sampled, hmc, information, laplace, scores
from .training import geometric

__all__ = [
    "Laplace",
    "Sampled",
    "em_of",
    "fit",
    "geometric",
    "hmc",
    "information",
    "laplace",
    "resume",
    "scores",
    "with_fewer",
]
