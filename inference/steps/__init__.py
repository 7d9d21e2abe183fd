"""How the gradients of a training step are computed: recorded, replayed, shared by processes."""

from .flat import Updates
from .gradients import Gradients, Recording
from .processes import Processes
from .simplify import simplify

__all__ = ["Gradients", "Processes", "Recording", "Updates", "simplify"]
