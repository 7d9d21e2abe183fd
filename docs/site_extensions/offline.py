"""A site that opens from disk: MathJax beside its pages, and nothing from elsewhere."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx
from sphinx.errors import ExtensionError
from sphinx.util.fileutil import copy_asset_file

from .remote import remote_references

MATHJAX = "tex-svg.js"  # one file: it draws equations as SVG, without fonts


def setup(app: Sphinx) -> dict[str, Any]:
    """Use the MathJax that is installed, and check the site once it is built."""
    app.config.mathjax_path = MATHJAX
    app.connect("build-finished", _finish)
    return {"parallel_read_safe": True}


def _finish(app: Sphinx, exception: Exception | None) -> None:
    if exception is not None or app.builder.format != "html":
        return
    (package,) = find_spec("sphinx-mathjax-offline").submodule_search_locations
    copy_asset_file(Path(package, "static", "mathjax", MATHJAX), app.outdir / "_static" / MATHJAX)
    found = list(remote_references(app.outdir))
    if found:
        raise ExtensionError("expected pages that fetch nothing; got " + ", ".join(found))
