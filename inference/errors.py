"""Exceptions and warnings."""


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
