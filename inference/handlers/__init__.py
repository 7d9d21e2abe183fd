"""Effect handlers for the assignment ``c`` and for other sites."""

from .assignment import (
    CategoricalKL,
    Discretize,
    Enumerate,
    EnumerateInParallel,
    Relax,
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
    "WithDistribution",
    "is_assignment",
    "log_probabilities",
    "standard_normal_points",
]
