"""Copies of a model and a guide, so that a fit owns its parameters.

Nothing here touches Pyro's parameter store or the caller's modules.
"""

import copy
import functools
import inspect
from collections.abc import Callable, Iterable
from types import CellType, FunctionType, MethodType
from typing import Any

import torch
from torch import nn

Program = Callable[..., Any]


def isolated(*programs: Program) -> tuple[Program, ...]:
    """Copies that share no parameter with the originals, but share among each other what these did.

    Methods and modules are deep-copied. A plain function is rebuilt around copies of the
    modules that it names, as globals or in its closure, and so are the functions of its own
    file that it calls. `pyro.param` statements need no copy: they live in a parameter store.

    Args:
        programs: Pyro models and guides: functions, methods or modules.

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
    return tuple(_copy(program, memo) for program in programs)


def modules(*programs: Program) -> list[nn.Module]:
    """The outermost modules that programs are made of, each once: owners, closures, globals."""
    found: dict[int, nn.Module] = {}
    for part in _parts(programs, set()):
        found.setdefault(id(part), part)
    nested = {id(child) for part in found.values() for child in list(part.modules())[1:]}
    return [part for part in found.values() if id(part) not in nested]


def learned(store: dict[str, Any], *programs: Program) -> dict[str, torch.Tensor]:
    """The tensors that programs learn, by name: those of their modules, then of `pyro.param`.

    Args:
        store: The state of Pyro's parameter store for these programs.
        programs: Models and guides.
    """
    named: dict[str, torch.Tensor] = {}
    for part in modules(*programs):
        named |= {name: value for name, value in part.named_parameters() if value.requires_grad}
    known = {id(value) for value in named.values()}
    for name, value in store["params"].items():
        if id(value) not in known and value.requires_grad:
            named[name] = value
    return named


def owner(program: Program) -> Any:
    """The object that a method belongs to, or the module itself; None for a plain function."""
    return program if isinstance(program, nn.Module) else getattr(program, "__self__", None)


def _parts(programs: Iterable[Any], seen: set[int]) -> Iterable[nn.Module]:
    for program in programs:
        if id(program) in seen:
            continue
        seen.add(id(program))
        if isinstance(program, nn.Module):
            yield program
        elif isinstance(program, MethodType):
            yield from _parts([program.__self__], seen)
        elif isinstance(program, functools.partial):
            yield from _parts([program.func, *program.args, *program.keywords.values()], seen)
        elif isinstance(program, FunctionType):
            yield from _parts(_references(program).values(), seen)


def _references(function: FunctionType) -> dict[str, Any]:
    """Modules, and functions of the same file, that a function names."""
    variables = inspect.getclosurevars(function)
    return {
        name: value
        for name, value in {**variables.globals, **variables.nonlocals}.items()
        if isinstance(value, nn.Module | MethodType)
        or (isinstance(value, FunctionType) and value.__module__ == function.__module__)
    }


def _copy(program: Any, memo: dict[int, Any]) -> Any:
    if isinstance(program, functools.partial):
        arguments = copy.deepcopy((program.args, program.keywords), memo)
        return functools.partial(_copy(program.func, memo), *arguments[0], **arguments[1])
    if isinstance(program, FunctionType):
        return memo[id(program)] if id(program) in memo else _rebuild(program, memo)
    return copy.deepcopy(program, memo)


def _rebuild(function: FunctionType, memo: dict[int, Any]) -> FunctionType:
    references = _references(function)
    if not references:
        return function
    names = function.__code__.co_freevars
    cells = {name: CellType() for name in names if name in references}
    closure = tuple(
        cells.get(name, cell) for name, cell in zip(names, function.__closure__ or (), strict=True)
    )
    scope = dict(function.__globals__)
    rebuilt = FunctionType(
        function.__code__, scope, function.__name__, function.__defaults__, closure
    )
    functools.update_wrapper(rebuilt, function).__kwdefaults__ = function.__kwdefaults__
    memo[id(function)] = rebuilt  # before descending: functions may call each other
    for name, value in references.items():
        if name in cells:
            cells[name].cell_contents = _copy(value, memo)
        else:
            scope[name] = _copy(value, memo)
    return rebuilt
