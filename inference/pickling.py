"""Pickles of programs, also of functions that `programs.isolated` rebuilt around copies."""

import io
import pickle
import sys
from functools import reduce
from types import FunctionType
from typing import Any

from pyro.infer.autoguide import AutoGuide
from torch import nn

from .programs import ONE_THREAD, bind, references, unbound


def dumps(thing: Any) -> bytes:
    """Pickle an object that may refer to programs.

    A function is pickled as its name and the copies of modules to which it refers.

    Raises:
        PicklingError: If a part cannot be pickled, such as a function within a function.
    """
    file = io.BytesIO()
    with ONE_THREAD:  # an automatic guide is without its model while it is pickled
        try:
            _Pickler(file, pickle.HIGHEST_PROTOCOL).dump(thing)
        except (AttributeError, TypeError) as error:
            reason = str(error).splitlines()[0]
            raise pickle.PicklingError(f"expected what can be pickled; got: {reason}") from error
    return file.getvalue()


class _Pickler(pickle.Pickler):
    def reducer_override(self, thing: Any) -> Any:
        if isinstance(thing, FunctionType):
            return _reduced_function(thing)
        if isinstance(thing, AutoGuide) and thing._model is not None:
            return _reduced_autoguide(thing)
        if isinstance(thing, nn.Parameter) and type(thing) is nn.Parameter:
            # without the weak references that Pyro attaches to it
            return nn.Parameter, (thing.data, thing.requires_grad)
        return NotImplemented


def _reduced_function(function: FunctionType) -> Any:
    original = _by_name(function)
    if original is function:
        return NotImplemented
    if getattr(original, "__code__", None) is not function.__code__:
        raise pickle.PicklingError(
            "expected functions that are defined at the top level of a module, which a pickle "
            f"refers to by name; got {function.__module__}.{function.__qualname__}"
        )
    before = references(original)
    copies = {
        name: value for name, value in references(function).items() if value is not before[name]
    }
    state = copies, function.__defaults__, function.__kwdefaults__
    return unbound, (original,), state, None, None, _bind


def _by_name(function: FunctionType) -> Any:
    """The object of a function's module with its name, or None."""
    module = sys.modules.get(function.__module__ or "")
    path = function.__qualname__.split(".")
    return reduce(lambda thing, name: getattr(thing, name, None), path, module)


def _bind(function: FunctionType, state: tuple[Any, ...]) -> None:
    bind(function, *state)


def _reduced_autoguide(guide: AutoGuide) -> Any:
    """The guide and its model, which Pyro removes from an automatic guide when it is pickled."""
    model = guide._model
    try:
        create, arguments, state, *_ = guide.__reduce_ex__(pickle.HIGHEST_PROTOCOL)
    finally:
        guide._model = model
    return create, arguments, (state, model), None, None, _set_autoguide


def _set_autoguide(guide: AutoGuide, state: tuple[Any, Any]) -> None:
    guide.__setstate__(state[0])
    guide._model = state[1]
