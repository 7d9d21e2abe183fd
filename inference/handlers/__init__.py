"""Effect handlers for the assignment ``c`` and for other sites."""

from .annotations import UNANNOTATED, Annotate, Annotations, annotated
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
from .incomplete import Incomplete, lacks_entries, where_incomplete
from .values import (
    REPLICATES,
    AtTheMean,
    Given,
    MinibatchScale,
    SameNoise,
    SobolSamples,
    Undrawn,
    WithDistribution,
    standard_normal_points,
)

__all__ = [
    "REPLICATES",
    "UNANNOTATED",
    "Annotate",
    "Annotations",
    "AtTheMean",
    "CategoricalKL",
    "Discretize",
    "Enumerate",
    "EnumerateInParallel",
    "Given",
    "Incomplete",
    "MinibatchScale",
    "Relax",
    "SameNoise",
    "SobolSamples",
    "Undecided",
    "Undrawn",
    "WithDistribution",
    "annotated",
    "is_assignment",
    "lacks_entries",
    "log_probabilities",
    "standard_normal_points",
    "where_incomplete",
]
