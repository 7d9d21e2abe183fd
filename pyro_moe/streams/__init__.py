"""Data that are read block by block: datasets of torch, data loaders, memory maps, Parquet."""

from .blocks import on_disk
from .parquet import Parquet

__all__ = ["Parquet", "on_disk"]
