"""Fitting of models: `fit` and `resume`."""

from .entry import fit, geometric, resume

__all__ = ["fit", "geometric", "resume"]
