"""How the gradients of a training step are computed: recorded, replayed, shared by processes."""

from .flat import Updates
from .gradients import Gradients
from .processes import Processes

__all__ = ["Gradients", "Processes", "Updates"]
