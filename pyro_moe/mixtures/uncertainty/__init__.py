"""The observed information of the parameters, and what follows from it."""

from .information import LEAST, Information, derivative, informed, polish, scores
from .profile import profile_interval

__all__ = ["LEAST", "Information", "derivative", "informed", "polish", "profile_interval", "scores"]
