"""Distributions that stories and inference share."""

from .mixture import Mixture, Stacked

__all__ = ["Mixture", "Stacked"]
