"""Names of columns in pictures."""

from typing import Any

from matplotlib.font_manager import FontProperties, findfont, get_font

from pyro_moe.text import in_one_line

LONGEST = 32
CLASS = 14  # characters of the name of a class, of which many stand side by side
MISSING = "□"


def label(name: str, longest: int = LONGEST) -> str:
    r"""A name of the data as matplotlib is to draw it: one short line, without mathematics.

    Dollars are escaped, because text between two of them would be read as a formula. Characters
    that the font lacks are shown as a square.

    Args:
        name: The name of a column, a target or a quantity.
        longest: The most characters.

    Example:
        >>> label("a_$_b_$"), label("one\nother")
        ('a_\\$_b_\\$', 'one\\nother')
    """
    fonts = [get_font(findfont(family)) for family in _families()]
    shown = in_one_line(name, longest)
    drawn = (c if any(font.get_char_index(ord(c)) for font in fonts) else MISSING for c in shown)
    return "".join(drawn).replace("$", r"\$")


def tilted(names: list[str]) -> dict[str, Any]:
    """Options of labels below an axis, which are tilted where they are long."""
    if max(map(len, names), default=0) <= 6:
        return {}
    return {"rotation": 30, "ha": "right", "rotation_mode": "anchor"}


def _families() -> list[FontProperties]:
    return [FontProperties(family=[family]) for family in FontProperties().get_family()]
