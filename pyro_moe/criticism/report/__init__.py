"""The HTML report of a fit."""

from .writing import report

__all__ = ["report"]
