"""The rows of a fit: on disk where they are many, in random order, a sample of them."""

from .on_disk import OnDisk, empty, stored
from .order import sample, shuffled, without

__all__ = ["OnDisk", "empty", "sample", "shuffled", "stored", "without"]
