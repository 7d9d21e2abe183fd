"""Formulas: what of a table experts and gate read, and how it is coded."""

from .design import SIGMA, Design, designed
from .rows import as_frame, columns_of, weighing
from .text import stated

__all__ = ["SIGMA", "Design", "as_frame", "columns_of", "designed", "stated", "weighing"]
