"""Distributions that both models and inference use."""

from .concatenation import concatenate
from .conditioning import Conditional, Observed, condition, incomplete, rows_are_incomplete
from .double import (
    Binomial,
    ContinuousBernoulli,
    MultivariateNormal,
    NegativeBinomial,
    Normal,
    Poisson,
    StudentT,
    in_double,
    is_precise,
    rounded,
)
from .joint import Joint
from .mixture import Mixture, Stacked, choose
from .relaxed import (
    MAX_LOG_ODDS,
    PRIOR_TEMPERATURE,
    TEMPERATURE,
    RelaxedOneHotCategorical,
    log_of,
    log_probabilities_of,
    one_hot_of,
)
from .rounding import rounding_error

__all__ = [
    "MAX_LOG_ODDS",
    "PRIOR_TEMPERATURE",
    "TEMPERATURE",
    "Binomial",
    "Conditional",
    "ContinuousBernoulli",
    "Joint",
    "Mixture",
    "MultivariateNormal",
    "NegativeBinomial",
    "Normal",
    "Observed",
    "Poisson",
    "RelaxedOneHotCategorical",
    "Stacked",
    "StudentT",
    "choose",
    "concatenate",
    "condition",
    "in_double",
    "incomplete",
    "is_precise",
    "log_of",
    "log_probabilities_of",
    "one_hot_of",
    "rounded",
    "rounding_error",
    "rows_are_incomplete",
]
