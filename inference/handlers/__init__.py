"""Effect handlers for the assignment ``c`` and for other sites."""

from .assignment import (
    CategoricalKL,
    Discretize,
    Enumerate,
    EnumerateInParallel,
    Relax,
    Undecided,
    is_assignment,
    log_probabilities,
)
from .values import (
    REPLICATES,
    AtTheMean,
    Given,
    MinibatchScale,
    RowWeights,
    SameNoise,
    SobolSamples,
    Undrawn,
    WithDistribution,
    standard_normal_points,
)

__all__ = [
    "REPLICATES",
    "AtTheMean",
    "CategoricalKL",
    "Discretize",
    "Enumerate",
    "EnumerateInParallel",
    "Given",
    "MinibatchScale",
    "Relax",
    "RowWeights",
    "SameNoise",
    "SobolSamples",
    "Undecided",
    "Undrawn",
    "WithDistribution",
    "is_assignment",
    "log_probabilities",
    "standard_normal_points",
]
