"""The observed information of the parameters, and what follows from it."""

from .information import Information, derivative, informed, polish, scores
from .profile import profile_interval

__all__ = ["Information", "derivative", "informed", "polish", "profile_interval", "scores"]
