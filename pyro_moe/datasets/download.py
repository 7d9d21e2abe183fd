"""Files that are downloaded once, into the user's cache folder."""

from pathlib import Path

import pooch

from pyro_moe.inference.errors import DataError


def download(url: str, name: str, md5: str | None, advice: str) -> Path:
    """The file at an address, from the cache if it was downloaded before.

    Args:
        url: The address.
        name: Path of the file within the cache folder.
        md5: What the file's md5 has to be; not checked if None.
        advice: What to do instead where there is no network, for the error.

    Returns:
        Path of the file.

    Raises:
        DataError: If it cannot be downloaded, or is another file.
    """
    path = Path(pooch.os_cache("pyro-moe")) / name
    try:
        found = pooch.retrieve(
            url,
            known_hash=None if md5 is None else f"md5:{md5}",
            fname=path.name,
            path=path.parent,
        )
    except (OSError, ValueError) as error:
        reason = one_line(_cause(error))
        raise DataError(f"expected to download {url}; got {reason}: {advice}") from error
    return Path(found)


def one_line(error: BaseException) -> str:
    r"""The kind of an error and the first line of what it says.

    Example:
        >>> one_line(ValueError("no number\nat all"))
        'ValueError: no number'
    """
    lines = str(error).split("\n")
    return f"{type(error).__name__}: {lines[0]}".removesuffix(": ")


def _cause(error: BaseException) -> BaseException:
    """What an error began with, as 'Connection refused', below what libraries made of it."""
    while error.__context__ is not None:
        error = error.__context__
    return error
