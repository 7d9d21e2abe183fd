"""Text of data, such as names of columns and classes, made fit to be shown in one line."""

import unicodedata

LONGEST = 60
ORDERING = ("LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI")
MARKS = "\u061c\u200e\u200f"


def in_one_line(text: str, longest: int | None = LONGEST) -> str:
    r"""Text without characters that act on a terminal or a page, and cut in the middle.

    Control characters, line ends, lone surrogates, and marks that change the order of what follows
    are written as in Python. Letters of all scripts stay as they are.

    Args:
        text: Any text.
        longest: The most characters, or None for no limit.

    Example:
        >>> in_one_line("a\nb\x1b[31m"), in_one_line("abcdefgh", longest=5)
        ('a\\nb\\x1b[31m', 'ab…gh')
    """
    plain = "".join(_escaped(character) if _acts(character) else character for character in text)
    if longest is None or len(plain) <= longest:
        return plain
    half = (longest - 1) // 2
    return f"{plain[: longest - 1 - half]}…{plain[len(plain) - half :]}"


def _acts(character: str) -> bool:
    return (
        unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp")
        or unicodedata.bidirectional(character) in ORDERING
        or character in MARKS
    )


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")
