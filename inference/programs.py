"""Copies of a model and a guide, so that each fit has its own parameters.

These functions do not change Pyro's parameter store or the caller's modules.
"""

import copy
import functools
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from types import CellType, CodeType, FunctionType, MethodType
from typing import Any

import torch
from pyro.infer.autoguide import AutoGuide
from torch import nn

Program = Callable[..., Any]
ONE_THREAD = threading.RLock()  # Pyro's handlers and parameter store belong to the process


@dataclass(frozen=True)
class Programs:
    """A model and its guide, with their part of Pyro's parameter store.

    Attributes:
        model: A Pyro program.
        guide: Its guide.
        store: A state of Pyro's parameter store.
    """

    model: Program
    guide: Program
    store: dict[str, Any]

    @property
    def modules(self) -> list[nn.Module]:
        """The outermost modules of model and guide."""
        return modules(self.model, self.guide)

    def parameters(self) -> dict[str, torch.Tensor]:
        """The learned tensors by name."""
        return learned(self.store, self.model, self.guide)


def isolated(*programs: Any) -> tuple[Any, ...]:
    """Copy programs. Parameters that the originals share are shared by the copies.

    Methods and modules are deep-copied. A plain function is rebuilt around copies of the modules
    to which it refers as globals or in its closure. The functions of its own file that it calls
    are rebuilt likewise. `pyro.param` statements need no copy, because their values are in a
    parameter store.

    Args:
        programs: Pyro models and guides (functions, methods or modules), and other objects that
            refer to their parameters, such as an optimizer.

    Returns:
        The copies, in the order given.

    Example:
        >>> layer = nn.Linear(2, 2)
        >>> def model(x): return layer(x)
        >>> (copied,) = isolated(model)
        >>> modules(copied)[0] is layer
        False
    """
    memo: dict[int, Any] = {}
    with ONE_THREAD:  # an automatic guide is without its model while it is copied
        return tuple(_copy(program, memo) for program in programs)


def modules(*programs: Program) -> list[nn.Module]:
    """The outermost modules to which programs refer, each once: owners, closures, globals."""
    found: dict[int, nn.Module] = {}
    for part in _parts(programs, {}):
        found.setdefault(id(part), part)
    if len(found) == 1:
        return list(found.values())
    nested = {id(child) for part in found.values() for child in list(part.modules())[1:]}
    return [part for part in found.values() if id(part) not in nested]


def learned(store: dict[str, Any], *programs: Program) -> dict[str, torch.Tensor]:
    """The learned tensors by name: parameters of modules, then those of `pyro.param`.

    Args:
        store: The state of Pyro's parameter store for these programs.
        programs: Models and guides.
    """
    named: dict[str, torch.Tensor] = {}
    parts = modules(*programs)
    for index, part in enumerate(parts):
        prefix = f"{index}." if len(parts) > 1 else ""
        for name, value in part.named_parameters(prefix=prefix.rstrip(".")):
            if value.requires_grad:
                named[name] = value
    known = {id(value) for value in named.values()}
    for name, value in store["params"].items():
        if id(value) not in known and value.requires_grad:
            named[name] = value
    return named


def state(
    store: dict[str, Any], *programs: Program, into: dict[str, torch.Tensor] | None = None
) -> dict[str, torch.Tensor]:
    """Copies of all that training changes, by name: parameters, and buffers of modules.

    Args:
        store: The state of Pyro's parameter store for these programs.
        *programs: Models and guides.
        into: A former state that is not needed any more. Its memory is used.
    """
    return copied(_changing(store, *programs), into)


def copied(
    tensors: dict[str, torch.Tensor], into: dict[str, torch.Tensor] | None = None
) -> dict[str, torch.Tensor]:
    """Copies of tensors, in the memory of others of the same names and shapes if there are any."""
    free = {
        name: other
        for name, other in (into or {}).items()
        if name in tensors
        and (other.shape, other.dtype, other.device)
        == (tensors[name].shape, tensors[name].dtype, tensors[name].device)
    }
    with torch.no_grad():
        return {
            name: free[name].copy_(value) if name in free else value.detach().clone()
            for name, value in tensors.items()
        }


def restore(state: dict[str, torch.Tensor], store: dict[str, Any], *programs: Program) -> None:
    """Set the tensors to a saved state. Tensors that are not in the state are unchanged."""
    with torch.no_grad():
        for name, value in _changing(store, *programs).items():
            if name in state:
                value.copy_(state[name])


def _changing(store: dict[str, Any], *programs: Program) -> dict[str, torch.Tensor]:
    """The tensors of `learned`, and buffers such as those of batch normalization."""
    tensors = learned(store, *programs)
    for index, part in enumerate(modules(*programs)):
        tensors |= dict(part.named_buffers(prefix=f"buffers.{index}"))
    return tensors


def owner(program: Program) -> Any:
    """The object of a method, or the module itself; None for a plain function."""
    if isinstance(program, MethodType):
        return program.__self__
    return program if isinstance(program, nn.Module) else None


def beside(program: Program, name: str) -> Any:
    """A story's method that was written with the program, in the same class, or None.

    Whoever edits a model in a class of their own then has no such method until they write it.

    Args:
        program: A model.
        name: The name of the method.

    Example:
        >>> class Story(nn.Module):
        ...     def model(self, x): ...
        ...     def forward(self, x): ...
        >>> class Edited(Story):
        ...     def model(self, x): ...
        >>> beside(Story().model, "forward") is None, beside(Edited().model, "forward") is None
        (False, True)
    """
    story, function = owner(program), getattr(program, "__func__", None)
    classes = [one for one in type(story).__mro__ if function in vars(one).values()]
    written = classes and name in vars(classes[0]) and name not in vars(story)
    known = written and getattr(type(story), name) is vars(classes[0])[name]
    return getattr(story, name) if known else None


def _parts(things: Iterable[Any], seen: dict[int, Any]) -> Iterator[nn.Module]:
    """The modules among objects and in what they refer to, in the order of the search."""
    for thing in things:
        if id(thing) in seen:
            continue
        seen[id(thing)] = thing
        if isinstance(thing, nn.Module):
            yield thing
        elif isinstance(thing, MethodType):
            own = thing.__self__
            yield from _parts([own] if isinstance(own, nn.Module) else vars(own).values(), seen)
        elif isinstance(thing, functools.partial):
            yield from _parts([thing.func, *thing.args, *thing.keywords.values()], seen)
        elif isinstance(thing, dict):
            yield from _parts(thing.values(), seen)
        elif isinstance(thing, list | tuple):
            yield from _parts(thing, seen)
        elif isinstance(thing, FunctionType):
            defaults = [*(thing.__defaults__ or ()), *(thing.__kwdefaults__ or {}).values()]
            yield from _parts([*references(thing).values(), *defaults], seen)


def references(function: FunctionType) -> dict[str, Any]:
    """Objects with possible parameters to which a function refers, by name."""
    named = {
        name: function.__globals__[name]
        for name in _names(function.__code__)
        if name in function.__globals__
    }
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        with suppress(ValueError):  # a variable that is not assigned yet
            named[name] = cell.cell_contents
    return {
        name: value
        for name, value in named.items()
        if isinstance(value, nn.Module | MethodType | functools.partial | list | tuple | dict)
        or (isinstance(value, FunctionType) and value.__module__ == function.__module__)
    }


def _names(code: CodeType) -> set[str]:
    """The names in the code of a function and of its inner functions."""
    inner = (constant for constant in code.co_consts if isinstance(constant, CodeType))
    return set(code.co_names).union(*map(_names, inner))


def _copy(thing: Any, memo: dict[int, Any]) -> Any:
    if id(thing) in memo:
        return memo[id(thing)]
    if isinstance(thing, functools.partial):
        # Pyro's handlers return a subclass of partial with another attribute ``func``.
        function = functools.partial.func.__get__(thing)
        arguments = [_copy(argument, memo) for argument in thing.args]
        keywords = {name: _copy(argument, memo) for name, argument in thing.keywords.items()}
        return functools.partial(_copy(function, memo), *arguments, **keywords)
    if isinstance(thing, FunctionType):
        return _rebuild(thing, memo) if any(True for _ in _parts([thing], {})) else thing
    if isinstance(thing, AutoGuide):
        return _copy_autoguide(thing, memo)
    return copy.deepcopy(thing, memo)


def _copy_autoguide(guide: AutoGuide, memo: dict[int, Any]) -> AutoGuide:
    """A copy with its model, which Pyro removes from an automatic guide when it is copied."""
    model = guide._model
    copied = copy.deepcopy(guide, memo)
    guide._model = model
    copied._model = None if model is None else (_copy(model[0], memo),)
    return copied


def _rebuild(function: FunctionType, memo: dict[int, Any]) -> FunctionType:
    """The function, referring to copies."""
    rebuilt = unbound(function)
    memo[id(function)] = rebuilt  # before descending: functions may call each other
    defaults = copy.deepcopy((function.__defaults__, function.__kwdefaults__), memo)
    copies = {name: _copy(value, memo) for name, value in references(function).items()}
    bind(rebuilt, copies, *defaults)
    return rebuilt


def unbound(function: FunctionType) -> FunctionType:
    """A copy of a function, which refers to the same objects until `bind` changes that."""
    own = references(function)
    names = zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)
    cells = tuple(CellType(own[name]) if name in own else cell for name, cell in names)
    scope = dict(function.__globals__)
    copied = FunctionType(function.__code__, scope, function.__name__, None, cells)
    functools.update_wrapper(copied, function)
    return copied


def bind(
    function: FunctionType,
    objects: dict[str, Any],
    defaults: tuple[Any, ...] | None,
    keyword_defaults: dict[str, Any] | None,
) -> None:
    """Let a function of `unbound` refer to other objects, by name, and have other defaults."""
    function.__defaults__, function.__kwdefaults__ = defaults, keyword_defaults
    cells = dict(zip(function.__code__.co_freevars, function.__closure__ or (), strict=True))
    for name, value in objects.items():
        if name in cells:
            cells[name].cell_contents = value
        else:
            function.__globals__[name] = value
