"""What can go wrong, as types that callers can catch."""


class DataError(ValueError):
    """The data, or a file of data, is not what was expected."""


class SiteError(LookupError):
    """A model or guide lacks a site that was asked for."""


class NonFiniteWarning(RuntimeWarning):
    """Training met a value that is not finite and stopped at the last good state."""


class DataWarning(UserWarning):
    """Data that can be fitted, but hardly as it was meant."""


class EmptyComponentWarning(RuntimeWarning):
    """A component, and its expert, ended without rows, or with hardly any."""
