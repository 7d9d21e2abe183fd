"""Predictive distributions of targets."""

from .distribution import Prediction
from .entry import posterior, predict

__all__ = ["Prediction", "posterior", "predict"]
