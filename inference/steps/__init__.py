"""How the gradients of a training step are computed: recorded, replayed, shared by processes."""

from pyro_moe.processes import Processes

from .gradients import Gradients

__all__ = ["Gradients", "Processes"]
