"""Contexts that keep a fit to itself: its randomness and its part of Pyro's parameter store."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pyro
import torch

from .programs import Program, modules, restore, state


@contextmanager
def reproducible(*seeds: int) -> Iterator[None]:
    """Draw from torch generators seeded by these numbers, and leave the caller's as they were.

    Args:
        seeds: Integers that together name one stream of random numbers.

    Example:
        >>> with reproducible(0, 1):
        ...     first = torch.rand(2)
        >>> with reproducible(0, 1):
        ...     bool((torch.rand(2) == first).all())
        True
    """
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(stream(*seeds))
        yield


def stream(*seeds: int) -> int:
    """One seed, a hash of several, that fits what torch, numpy and scikit-learn take."""
    # SeedSequence ignores trailing zeros: their number tells (1,) from (1, 0).
    return int(np.random.SeedSequence((len(seeds), *seeds)).generate_state(1, np.uint32)[0])


@contextmanager
def running(store: dict[str, Any]) -> Iterator[None]:
    """Run Pyro programs in a parameter store of their own, without checks at every statement.

    Pyro's checks of each distribution's arguments, at every step, cost as much as a small
    network does; `pyro_moe.fit` checks the data once instead.

    Args:
        store: A state of the parameter store, updated in place.
    """
    torch_validates = torch.distributions.Distribution._validate_args
    try:
        with pyro.validation_enabled(False), pyro.get_param_store().scope(store):
            yield
    finally:  # Pyro restores what it knows of, not what was set through torch
        torch.distributions.Distribution.set_default_validate_args(torch_validates)


@contextmanager
def all_or_nothing(store: dict[str, Any], *programs: Program) -> Iterator[None]:
    """Undo what has happened to the tensors of programs if the block does not come to its end."""
    before = state(store, *programs)
    try:
        yield
    except BaseException:
        restore(before, store, *programs)
        raise


@contextmanager
def training_mode(*programs: Program) -> Iterator[None]:
    """Have dropout, batch normalization and their like at work, and at rest again afterwards.

    Args:
        programs: Models and guides, whose modules are otherwise in evaluation mode.
    """
    parts = modules(*programs)
    try:
        for part in parts:
            part.train()
        yield
    finally:
        for part in parts:
            part.eval()
