"""Names of columns in pictures."""

from matplotlib.font_manager import FontProperties, findfont, get_font

from pyro_moe.text import in_one_line

LONGEST = 32
MISSING = "□"


def label(name: str) -> str:
    r"""A name of the data as matplotlib is to draw it: one short line, without mathematics.

    Dollars are escaped, because text between two of them would be read as a formula. Characters
    that the font lacks are shown as a square.

    Args:
        name: The name of a column, a target or a quantity.

    Example:
        >>> label("a_$_b_$"), label("one\nother")
        ('a_\\$_b_\\$', 'one\\nother')
    """
    fonts = [get_font(findfont(family)) for family in _families()]
    shown = in_one_line(name, LONGEST)
    drawn = (c if any(font.get_char_index(ord(c)) for font in fonts) else MISSING for c in shown)
    return "".join(drawn).replace("$", r"\$")


def _families() -> list[FontProperties]:
    return [FontProperties(family=[family]) for family in FontProperties().get_family()]
