"""Exceptions and warnings."""

import sys
import warnings


class DataError(ValueError):
    """The data or a file is invalid."""


class SiteError(LookupError):
    """A model or guide lacks a required site, or has one that is not supported."""


class NonFiniteWarning(RuntimeWarning):
    """Training stopped at a non-finite value and kept the last valid state."""


class DataWarning(UserWarning):
    """The data can be fitted but are probably not as intended."""


class EmptyComponentWarning(RuntimeWarning):
    """A component has no rows, or too few to estimate its expert."""


class ConvergenceWarning(RuntimeWarning):
    """EM ended before its objective converged."""


def warn(message: str, category: type[Warning]) -> None:
    """Issue a warning at the line outside of this package that led to it.

    Args:
        message: What was expected, and what was found.
        category: The class of the warning.
    """
    level, frame = 1, sys._getframe()
    while frame.f_back is not None and frame.f_globals["__name__"].split(".")[0] in _INNER:
        level, frame = level + 1, frame.f_back
    warnings.warn(message, category, stacklevel=level)


_INNER = (__name__.split(".")[0], "contextlib", "functools", "torch", "pyro")
