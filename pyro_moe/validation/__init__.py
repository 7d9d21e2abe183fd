"""Validation of a model and its data before training, and of components after training."""

from .columns import check_columns, check_range, check_rounding, unresolved
from .components import check_components, empty, on_floor, starving
from .story import check

__all__ = [
    "check",
    "check_columns",
    "check_components",
    "check_range",
    "check_rounding",
    "empty",
    "on_floor",
    "starving",
    "unresolved",
]
