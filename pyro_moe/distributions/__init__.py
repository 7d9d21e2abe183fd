"""Distributions that both models and inference use."""

from .concatenation import concatenate
from .mixture import Mixture, Stacked, choose
from .relaxed import (
    MAX_LOG_ODDS,
    PRIOR_TEMPERATURE,
    TEMPERATURE,
    RelaxedOneHotCategorical,
)
from .rounding import rounding_error

__all__ = [
    "MAX_LOG_ODDS",
    "PRIOR_TEMPERATURE",
    "TEMPERATURE",
    "Mixture",
    "RelaxedOneHotCategorical",
    "Stacked",
    "choose",
    "concatenate",
    "rounding_error",
]
