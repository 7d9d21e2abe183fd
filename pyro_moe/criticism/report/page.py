"""HTML of a self-contained page: sections, tables and pictures."""

import base64
import io
import re
from collections.abc import Iterable
from html import escape
from importlib.resources import files
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from pyro_moe.text import in_one_line

WIDE = 6.0  # inches from which on a picture is scrolled on a narrow screen, not shrunk
DIGITS = r"-?\d[\d,]*(\.\d+)?(e[+-]?\d+)?"
NUMBER = re.compile(rf"<?{DIGITS}%?( (to|±) {DIGITS})?")
LONG = 15  # characters of text in a cell that is wide enough to break in few lines


def page(title: str, sections: Iterable[str]) -> str:
    """A page with its style sheet; empty sections are left out."""
    style = files(__package__).joinpath("report.css").read_text(encoding="utf-8")
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{plain(title)}</title>\n<style>\n{style}</style></head>\n<body><main>"
        f"<h1>{plain(title)}</h1>\n"
        + "\n".join(part for part in sections if part)
        + "</main></body></html>\n"
    )


def plain(text: str) -> str:
    r"""Text as HTML that shows it, whatever characters it has.

    Example:
        >>> plain("<b>\n")
        '&lt;b&gt;\\n'
    """
    return escape(in_one_line(text, longest=None))


def section(title: str, *parts: str, kind: str | None = None) -> str:
    """A section with a heading; its kind is its class in the style sheet."""
    attribute = "" if kind is None else f' class="{kind}"'
    return f"<section{attribute}><h2>{plain(title)}</h2>{''.join(parts)}</section>"


def paragraph(text: str, *, soft: bool = False) -> str:
    """A paragraph of plain text, in gray if it is soft."""
    attribute = ' class="soft"' if soft else ""
    return f"<p{attribute}>{plain(sentence(text))}</p>"


def bullets(texts: Iterable[str]) -> str:
    """A list of sentences."""
    return f"<ul>{''.join(f'<li>{plain(sentence(text))}</li>' for text in texts)}</ul>"


def sentence(text: str) -> str:
    """Text with a capital at its start and a stop at its end.

    Example:
        >>> sentence("the gate is uncertain")
        'The gate is uncertain.'
    """
    return text[:1].upper() + text[1:] + ("" if text.endswith((".", ":")) else ".")


def block(title: str, content: str) -> str:
    """A part of a section with a heading of its own, which stays in one column."""
    return f'<div class="block"><h3>{plain(title)}</h3>{content}</div>'


def columns(*parts: str) -> str:
    """Parts beside one another, where the window is wide enough."""
    cells = "".join(f"<div>{part}</div>" for part in parts if part)
    return f'<div class="columns">{cells}</div>' if cells else ""


def equations(lines: Iterable[str]) -> str:
    """Lines of an equation."""
    return '<div class="equations">' + "".join(f"<p>{plain(line)}</p>" for line in lines) + "</div>"


def facts(values: dict[str, Any]) -> str:
    """A table of names and their values, without a head."""
    rows = "".join(_row((name, str(value)), (True, True)) for name, value in values.items())
    return _scrolled(rows, "facts")


def table(frame: pd.DataFrame) -> str:
    """A data frame without its index: columns of text to the left, numbers to the right."""
    texts = [_has_text(frame[name]) for name in frame.columns]
    names = (str(name).replace("_", " ") for name in frame.columns)
    head = "".join(
        f'<th class="{"text" if text else "number"}">{plain(name)}</th>'
        for name, text in zip(names, texts, strict=True)
    )
    rows = (_row(row, texts) for row in frame.itertuples(index=False))
    return _scrolled(f"<tr>{head}</tr>" + "".join(rows))


def _has_text(column: pd.Series) -> bool:
    """Whether a value is neither a number nor one that is already written."""
    return any(isinstance(each, str) and each and not NUMBER.fullmatch(each) for each in column)


def _scrolled(rows: str, kind: str = "table") -> str:
    return f'<div class="scroll" tabindex="0"><table class="{kind}">{rows}</table></div>'


def _row(values: Iterable[Any], texts: Iterable[bool]) -> str:
    return f"<tr>{''.join(_cell(*pair) for pair in zip(values, texts, strict=True))}</tr>"


def _cell(value: Any, text: bool) -> str:
    if pd.isna(value):
        return "<td></td>"
    shown = f"{value:.4g}" if isinstance(value, float) else str(value)
    span = " range" if " to " in shown else ""  # which may break where the window is narrow
    kind = f"number{span}" if not text else "text long" if len(shown) > LONG else "text"
    return f'<td class="{kind}">{plain(shown)}</td>'


def picture(figure: Figure, caption: str) -> str:
    """A picture within the page; one that is wide keeps its size on a narrow screen."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150)
    data = base64.b64encode(buffer.getvalue()).decode("ascii")
    inches = figure.get_size_inches()[0]
    wide = ' class="wide"' if inches > WIDE else ""
    return (
        f'<figure><div class="scroll"><img{wide} width="{inches * 96:.0f}" alt="{plain(caption)}" '
        f'src="data:image/png;base64,{data}"></div>'
        f"<figcaption>{plain(caption)}</figcaption></figure>"
    )
