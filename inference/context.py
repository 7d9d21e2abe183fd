"""Contexts that isolate a fit: its random numbers, its parameter store, its module modes.

Pyro's handlers and parameter store, torch's generators and the modes of modules belong to the
process. `reproducible` and `running` therefore let one thread at a time run programs. Programs of
Pyro that a caller runs in other threads meanwhile need one of them, too.
"""

import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import lru_cache
from numbers import Integral
from typing import Any

import numpy as np
import pyro
import torch

from .programs import ONE_THREAD, Program, modules, restore, state


@contextmanager
def reproducible(*seeds: int) -> Iterator[None]:
    """Seed torch's generators, and restore their former states afterwards.

    Other threads wait at this context and at `running` until the block ends. Enter it before any
    handler of Pyro.

    Args:
        seeds: Integers that together identify one stream of random numbers.

    Example:
        >>> with reproducible(0, 1):
        ...     first = torch.rand(2)
        >>> with reproducible(0, 1):
        ...     bool((torch.rand(2) == first).all())
        True
    """
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    with ONE_THREAD, late_imports(), torch.random.fork_rng(devices=devices):
        _seed(stream(*seeds))
        yield


def _seed(seed: int) -> None:
    """Seed the generators in use. `torch.manual_seed` also prepares devices that are not."""
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(seed)
    if torch.backends.mps.is_available():
        torch.mps.manual_seed(seed)


def stream(*seeds: int) -> int:
    """Hash several seeds into one that torch, numpy and scikit-learn accept.

    Raises:
        ValueError: If a seed is not an integer of at least 0.
    """
    for seed in seeds:
        if not isinstance(seed, Integral) or seed < 0:
            raise ValueError(f"expected seed to be an integer of at least 0; got {seed!r}")
    return _hashed(*map(int, seeds))


@lru_cache(maxsize=64)
def _hashed(*seeds: int) -> int:
    # SeedSequence ignores trailing zeros. The number of seeds distinguishes (1,) from (1, 0).
    return int(np.random.SeedSequence((len(seeds), *seeds)).generate_state(1, np.uint32)[0])


@contextmanager
def running(store: dict[str, Any]) -> Iterator[None]:
    """Run Pyro programs in their own parameter store, without argument validation.

    Other threads wait at this context and at `reproducible` until the block ends.

    Pyro validates the arguments of each distribution at every step. This costs as much as a
    small network. `pyro_moe.fit` validates the data once instead.

    Args:
        store: A state of Pyro's parameter store. It is updated in place.
    """
    with ONE_THREAD, late_imports():
        torch_validates = torch.distributions.Distribution._validate_args
        try:
            with pyro.validation_enabled(False), pyro.get_param_store().scope(store):
                yield
        finally:  # Pyro restores its own setting, but not one that was made through torch
            torch.distributions.Distribution.set_default_validate_args(torch_validates)


@contextmanager
def learning() -> Iterator[None]:
    """Compute gradients, whatever the caller has turned off."""
    with torch.inference_mode(False), torch.enable_grad():
        yield


@contextmanager
def unchanged(tensors: Sequence[torch.Tensor]) -> Iterator[None]:
    """Give tensors their values back at the end of the block."""
    before = [value.clone() for value in tensors]
    try:
        yield
    finally:
        with torch.no_grad():
            for value, former in zip(tensors, before, strict=True):
                value.copy_(former)


_within = [False]  # whether `late_imports` is entered already, of the thread that has the lock


@contextmanager
def as_started() -> Iterator[None]:
    """Torch's settings as in a new process, and afterwards those of the caller."""
    threads, dtype = torch.get_num_threads(), torch.get_default_dtype()
    on_cpu = torch.get_default_device().type == "cpu"
    torch.set_default_dtype(torch.float32)
    try:
        with (
            learning(),
            torch.random.fork_rng(()),
            nullcontext() if on_cpu else torch.device("cpu"),
        ):
            yield
    finally:
        torch.set_num_threads(threads)  # what runs in the block may use one
        torch.set_default_dtype(dtype)


@contextmanager
def late_imports() -> Iterator[None]:
    """Undo the warnings filters and environment variables of torch's late imports.

    Torch imports its compiler at a first distribution or optimizer.
    """
    if "torch._dynamo" in sys.modules:
        yield
        return
    with ONE_THREAD:
        if _within[0]:
            yield
            return
        _within[0], before = True, set(os.environ)
        try:
            with warnings.catch_warnings():
                yield
        finally:
            _within[0] = False
            for name in os.environ.keys() - before:
                del os.environ[name]


@contextmanager
def without_warnings(category: type[Warning], message: str = "") -> Iterator[None]:
    """Ignore warnings. Other threads wait, because warnings filters belong to the process.

    Args:
        category: The class of the warnings.
        message: A regular expression for the start of their text.
    """
    with ONE_THREAD, warnings.catch_warnings():
        warnings.filterwarnings("ignore", message, category)
        yield


@contextmanager
def all_or_nothing(store: dict[str, Any], *programs: Program) -> Iterator[None]:
    """Restore the parameters and buffers of programs if the block raises an exception."""
    before = state(store, *programs)
    try:
        yield
    except BaseException:
        restore(before, store, *programs)
        raise


@contextmanager
def training_mode(*programs: Program) -> Iterator[None]:
    """Put modules into training mode, and back into evaluation mode afterwards.

    Args:
        programs: Models and guides. Their modules are in evaluation mode outside this context.
    """
    parts = modules(*programs)
    try:
        for part in parts:
            part.train()
        yield
    finally:
        for part in parts:
            part.eval()
