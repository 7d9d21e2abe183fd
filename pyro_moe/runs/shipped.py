"""The source code of shipped stories as files to be edited."""

import ast
import inspect
import re
import sys
from collections.abc import Iterable

from pyro_moe.stories import shipped

WIDTH, BREAK = 100, ",\n    "
HEADER = '''"""{title}, to be edited.

`pyro-moe fit FILE --data table.csv` constructs a `Story`, whose arguments it passes by name, and
fits its model and guide. You may change every line. Comments that begin with "Assumption" mark
the assumptions about the data. Do not change these names: Story, model, guide, the plate "data",
and the sites c (one-hot, or relaxed if Pyro's own SVI trains it), z, x and y.
"""'''


def source_of(name: str) -> str:
    """The source code of a shipped story as a self-contained file with a class ``Story``.

    Args:
        name: One of `STORIES`.

    Raises:
        ValueError: If there is no such story.

    Example:
        >>> "class Story(VAE):" in source_of("dmvae")
        True
    """
    story = shipped(name)
    module = sys.modules[story.__module__]
    text = inspect.getsource(module)
    tree = ast.parse(text)
    lines = text.splitlines()
    in_file = {each.__name__ for each in story.__mro__ if each.__module__ == module.__name__}
    classes = [n for n in tree.body if isinstance(n, ast.ClassDef) and n.name in in_file]
    used = {n.id for each in classes for n in ast.walk(each) if isinstance(n, ast.Name)}
    imports = [n for n in tree.body if isinstance(n, ast.Import | ast.ImportFrom)]
    defined = {n.name for n in tree.body if isinstance(n, ast.ClassDef | ast.FunctionDef)}
    beside = defined & used - in_file
    names = [ast.alias(name) for name in sorted(beside)]
    imports.append(ast.ImportFrom(module.__name__, names, 0))
    bodies = ["\n".join(lines[each.lineno - 1 : each.end_lineno]) for each in classes]
    code = re.sub(rf"\b{story.__name__}\b", "Story", "\n\n\n".join(bodies))
    title = (ast.get_docstring(tree) or "").split("\n")[0].rstrip(".")
    head = HEADER.format(title=re.sub(r" \(paper.*?\)", "", title))
    return "\n".join([head, "", *_import_lines(imports, used), "", code, ""])


def _import_lines(nodes: Iterable[ast.Import | ast.ImportFrom], used: set[str]) -> list[str]:
    """Import statements, those of Python, of other packages and of this one apart."""
    groups: dict[int, list[str]] = {0: [], 1: [], 2: []}
    for line in filter(None, (_import(node, used) for node in nodes)):
        root = line.split()[1].split(".")[0]
        groups[0 if root in sys.stdlib_module_names else 2 if root == "pyro_moe" else 1].append(
            line
        )
    return [line for group in groups.values() if group for line in (*group, "")]


def _import(node: ast.Import | ast.ImportFrom, used: set[str]) -> str:
    """An absolute import of the names that are used, or an empty string if none is used."""
    kept = [a for a in node.names if (a.asname or a.name).split(".")[0] in used]
    if not kept:
        return ""
    names = ", ".join(a.name + (f" as {a.asname}" if a.asname else "") for a in kept)
    if isinstance(node, ast.Import):
        return f"import {names}"
    module = f"pyro_moe.models.{node.module}" if node.level else node.module
    line = f"from {module} import {names}"
    return (
        line
        if len(line) <= WIDTH
        else f"from {module} import (\n    {names.replace(', ', BREAK)},\n)"
    )
