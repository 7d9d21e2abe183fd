"""Names and methods whose modules are imported at their first use (PEP 562)."""

import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any


def names(
    package: str, homes: Mapping[str, Sequence[str]]
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """The ``__getattr__`` and ``__dir__`` of a package whose names are imported at first use.

    The package also lists its names in ``__all__``, and imports them where ``TYPE_CHECKING``, for
    type checkers and editors. Its modules are found as attributes, too.

    Args:
        package: The name of the package, ``__name__``.
        homes: The names that each of its modules defines, by the module's name in the package.

    Example:
        >>> get, _ = names("xml.etree", {"ElementTree": ["XML"]})
        >>> get("XML")("<a/>").tag
        'a'
    """
    module_of = {name: f"{package}.{home}" for home, found in homes.items() for name in found}
    namespace = vars(sys.modules[package])

    def get(name: str) -> Any:
        value = (
            getattr(import_module(module_of[name]), name)
            if name in module_of
            else _module(package, name)
        )
        namespace[name] = value  # so that it is looked up once
        return value

    def listed() -> list[str]:
        return sorted({*namespace, *namespace.get("__all__", module_of)})

    return get, listed


def _module(package: str, name: str) -> Any:
    whole = f"{package}.{name}"
    try:
        if not name.startswith("__"):  # as inspect and copy ask for
            return import_module(whole)
    except ModuleNotFoundError as error:
        if error.name != whole:
            raise
    raise AttributeError(f"module {package!r} has no attribute {name!r}", name=name)


def method(module: str, name: str) -> Any:
    """A method that is a function of a module above its class, which is imported at first use.

    Args:
        module: The module of the function.
        name: The name of the function and of the method.

    Example:
        >>> class Text(str):
        ...     dedent = method("textwrap", "dedent")
        >>> Text("  a").dedent()
        'a'
    """
    return _Method(module, name)


class _Method:
    def __init__(self, module: str, name: str) -> None:
        self.module, self.name = module, name

    def __get__(self, instance: object, owner: type) -> Any:
        function = getattr(import_module(self.module), self.name)
        setattr(owner, self.name, function)  # from now on a method like others
        return function.__get__(instance, owner)


def is_instance(value: object, module: str, *classes: str) -> bool:
    """Whether a value is of a class of a module that need not have been imported.

    Args:
        value: Any value.
        module: The module, which is not imported: without it, there are no such values.
        classes: Names of its classes.

    Example:
        >>> is_instance(1.5, "numbers", "Real"), is_instance(1.5, "no_such_module", "Real")
        (True, False)
    """
    known = sys.modules.get(module)
    return isinstance(value, tuple(getattr(known, name, ()) for name in classes))
