"""What the page on known labels and missing values says, from its own code."""

import ast
import re
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "tutorials" / "known_labels.md"
CELL = r"^```\{code-cell\} ipython3\n(.*?)^```$"


def run(code, named):
    """The value of a cell, that of its last line if this is an expression."""
    parsed = ast.parse(code)
    last = parsed.body.pop() if isinstance(parsed.body[-1], ast.Expr) else None
    exec(compile(parsed, str(PAGE), "exec"), named)  # noqa: S102
    if last is None:
        return None
    return eval(compile(ast.Expression(last.value), str(PAGE), "eval"), named)  # noqa: S307


def test_the_page_runs_and_what_it_says_is_so():
    named = {}
    code = re.findall(CELL, PAGE.read_text("utf-8"), re.S | re.M)
    short = (
        each.replace("progress=False", "progress=False, prior='weak', restarts=1") for each in code
    )
    values = [run(each, named) for each in short]
    right, unsure, wider, shapes, finite = (value for value in values if value is not None)
    assert right > 0.8
    assert unsure > 0.8
    assert wider[0] > wider[1]
    assert shapes == ((100, 2), (64, 100, 2))
    assert finite
    known = named["labels"] >= 0
    gate = named["evaluation"].posterior(named["fit"], named["rows"])
    agree = (gate.argmax(-1) == named["component"][:300])[~known].float().mean()
    assert agree > 0.8  # the numbers of components are those of the labels
