"""What a built page fetches from the network: nothing, if the site is to open from disk."""

import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

FETCHED = {
    "audio": "src",
    "iframe": "src",
    "img": "src",
    "link": "href",
    "script": "src",
    "source": "src",
    "video": "src",
}
STYLE_REFERENCE = re.compile(r"""(?:url\(|@import)\s*["']?\s*((?:https?:)?//[^"')\s]+)""")


def remote_references(folder: Path) -> Iterator[str]:
    """What pages and style sheets in a folder would fetch from the network, with where."""
    for path in sorted(folder.rglob("*.html")):
        for reference in remote_in_page(path.read_text(encoding="utf-8")):
            yield f"{reference} in {path.relative_to(folder)}"
    for path in sorted(folder.rglob("*.css")):
        for reference in STYLE_REFERENCE.findall(path.read_text(encoding="utf-8")):
            yield f"{reference} in {path.relative_to(folder)}"


def remote_in_page(html: str) -> list[str]:
    """Addresses of scripts, styles, fonts, pictures and frames that a page fetches from elsewhere.

    Links that a reader may follow are none of them.

    Example:
        >>> remote_in_page('<a href="https://a.org">a</a><script src="https://b.org/b.js"></script>')
        ['https://b.org/b.js']
    """
    page = _Page()
    page.feed(html)
    return page.remote + STYLE_REFERENCE.findall(" ".join(page.styles))


class _Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.remote: list[str] = []
        self.styles: list[str] = []
        self._in_style = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self._in_style = tag == "style"
        self.styles.append(given.get("style") or "")
        address = given.get(FETCHED.get(tag, "")) or ""
        followed = tag == "link" and given.get("rel") in ("canonical", "next", "prev", "alternate")
        if re.match(r"(https?:)?//", address) and not followed:
            self.remote.append(address)

    def handle_data(self, data: str) -> None:
        if self._in_style:
            self.styles.append(data)
