"""Docstrings as this library writes them: what Sphinx would get wrong is put right."""

import re
from typing import Any

from docutils import nodes
from numpy.typing import ArrayLike
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.domains.python import PyObject
from sphinx.environment import BuildEnvironment
from sphinx.util.nodes import make_refnode
from sphinx.util.typing import stringify_annotation

from .names import is_called

WRITTEN_OUT = stringify_annotation(ArrayLike, "smart")


def setup(app: Sphinx) -> dict[str, Any]:
    """Before napoleon and autodoc do their part, and where Sphinx found no such name."""
    app.connect("autodoc-process-docstring", _escape, priority=400)
    app.connect("object-description-transform", _abbreviate, priority=400)
    app.connect("missing-reference", _resolve)
    for field in PyObject.doc_field_types:
        if field.name == "variable":
            field.label = "Attributes"
    return {"parallel_read_safe": True}


def _escape(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """``num_components: K.`` is no list of letters, and a property's sentence may have a colon."""
    if what == "property":
        lines.insert(0, "")  # or napoleon takes what is before the colon for a type
    lines[:] = [re.sub(r"^(\s+\w+: [A-Z])\.", r"\1\\.", line) for line in lines]


def _abbreviate(app: Sphinx, domain: str, kind: str, content: nodes.Element) -> None:
    """What numpy reads is called by its name, and not by all that it can be."""
    for annotations in app.env.current_document.autodoc_annotations.values():
        for name, written in annotations.items():
            annotations[name] = written.replace(WRITTEN_OUT, "ArrayLike")


def _resolve(
    app: Sphinx, env: BuildEnvironment, node: pending_xref, content: nodes.TextElement
) -> nodes.reference | None:
    """`gate` becomes a link to pyro_moe.evaluation.gate, by its last part."""
    if node.get("refdomain") != "py" or not node["reftarget"]:
        return None
    objects = env.domains.python_domain.objects
    named = [name for name in objects if is_called(name, node["reftarget"])]
    pages = {(objects[name].docname, objects[name].node_id) for name in named}
    if len(pages) != 1:
        return None
    ((page, anchor),) = pages
    return make_refnode(app.builder, node["refdoc"], page, anchor, content, named[0])
