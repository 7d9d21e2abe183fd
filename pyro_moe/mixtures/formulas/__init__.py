"""Formulas: what of a table experts and gate read, and how it is coded."""

from .design import SIGMA, Design, designed
from .rows import annotations_of, as_frame, check_groups, columns_of, weighted
from .text import stated

__all__ = [
    "SIGMA",
    "Design",
    "annotations_of",
    "as_frame",
    "check_groups",
    "columns_of",
    "designed",
    "stated",
    "weighted",
]
