"""Training steps recorded as graphs of tensor operations and replayed without Pyro's handlers."""

from .gradients import Gradients

__all__ = ["Gradients"]
