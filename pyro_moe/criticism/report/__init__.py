"""The HTML report of a fit, what it is about, and its warnings."""

from .reasons import reasons
from .subject import Subject
from .writing import report

__all__ = ["Subject", "reasons", "report"]
