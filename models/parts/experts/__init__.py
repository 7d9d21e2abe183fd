"""Experts: K conditional distributions of the target, evaluated in parallel.

A module of experts maps a context to a distribution of batch shape (N, K). The story chooses the
context: the features x or the latent mean E[z|x].
"""

from .base import MIN_SCALE, Experts, LocationScale, adapt_experts
from .binary import BernoulliExperts, BinomialExperts
from .categorical import CategoricalExperts
from .families import ALL_COLUMNS, CONTEXTS, FAMILIES, Predictor, experts_of
from .joint import JointExperts, StackedExperts
from .normal import NormalExperts
from .poisson import PoissonExperts
from .student_t import StudentTExperts

__all__ = [
    "ALL_COLUMNS",
    "CONTEXTS",
    "FAMILIES",
    "MIN_SCALE",
    "BernoulliExperts",
    "BinomialExperts",
    "CategoricalExperts",
    "Experts",
    "JointExperts",
    "LocationScale",
    "NormalExperts",
    "PoissonExperts",
    "Predictor",
    "StackedExperts",
    "StudentTExperts",
    "adapt_experts",
    "experts_of",
]
