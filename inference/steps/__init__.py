"""How the gradients of a training step are computed: recorded, replayed, shared by processes."""

from .flat import MOST, Updates
from .gradients import Gradients
from .recording import Recording
from .simplify import traced
from .stack import stacked

__all__ = ["MOST", "Gradients", "Recording", "Updates", "stacked", "traced"]
