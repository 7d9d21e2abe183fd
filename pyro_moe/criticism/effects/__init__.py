"""What each expert says: its mean along variables beside its rows, and a table."""

from .curves import Effects, effects, experts
from .table import expert_table, moments

__all__ = ["Effects", "effects", "expert_table", "experts", "moments"]
