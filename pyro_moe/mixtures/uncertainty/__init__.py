"""The observed information of the parameters, and what follows from it."""

from .information import LEAST, Information, derivative, informed, polish
from .intervals import intervals, is_positive, scale_of
from .profile import profile_interval

__all__ = [
    "LEAST",
    "Information",
    "derivative",
    "informed",
    "intervals",
    "is_positive",
    "polish",
    "profile_interval",
    "scale_of",
]
