"""Download of files to the user's cache folder."""

from pathlib import Path

import pooch

from pyro_moe.inference.errors import DataError


def download(url: str, name: str, md5: str | None, advice: str) -> Path:
    """Download a file unless it is in the cache.

    Args:
        url: The address.
        name: Path of the file within the cache folder.
        md5: Expected md5 of the file; not checked if None.
        advice: An alternative to the download, for the error message.

    Returns:
        Path of the file.

    Raises:
        DataError: If the file cannot be downloaded, or has another md5.
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
    r"""The type of an error and the first line of its message.

    Example:
        >>> one_line(ValueError("no number\nat all"))
        'ValueError: no number'
    """
    lines = str(error).split("\n")
    return f"{type(error).__name__}: {lines[0]}".removesuffix(": ")


def _cause(error: BaseException) -> BaseException:
    """The first error in a chain of exceptions, such as 'Connection refused'."""
    while error.__context__ is not None:
        error = error.__context__
    return error
