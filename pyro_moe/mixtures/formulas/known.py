"""What expressions of a formula read, and which are no programs.

These are expressions of columns, numbers and known functions.
"""

import ast
import re

from formulaic.utils.code import sanitize_variable_names

FUNCTIONS = {
    "log",
    "log10",
    "log2",
    "exp",
    "exp10",
    "exp2",
    "bs",
    "cc",
    "cr",
    "cs",
    "center",
    "lag",
    "poly",
    "scale",
    "standardize",
    "C",
    "I",
    "Treatment",
    "Poly",
    "Sum",
    "Helmert",
    "Diff",
    "abs",
}
OF_NUMPY = {
    "abs",
    "absolute",
    "arccos",
    "arcsin",
    "arcsinh",
    "arctan",
    "arctan2",
    "cbrt",
    "ceil",
    "clip",
    "cos",
    "cosh",
    "exp",
    "exp2",
    "expm1",
    "floor",
    "hypot",
    "isfinite",
    "log",
    "log10",
    "log1p",
    "log2",
    "logical_and",
    "logical_not",
    "logical_or",
    "maximum",
    "minimum",
    "power",
    "round",
    "sign",
    "sin",
    "sinh",
    "sqrt",
    "square",
    "tan",
    "tanh",
    "where",
}
OF_CONTRASTS = {"SAS", "diff", "helmert", "poly", "sum", "treatment"}
MODULES = {"np", "contr"}
LARGEST_POWER = 64
ARITHMETIC = (ast.Add, ast.Sub, ast.Mult, ast.Div, ast.FloorDiv, ast.Mod, ast.Pow)
LOGIC = (ast.BitAnd, ast.BitOr, ast.BitXor)


def unknown_part(expression: str) -> str | None:
    """The first part of an expression that is beyond known functions, None if there is none.

    Args:
        expression: A factor of a formula, as ``"np.log(x)"``.

    Example:
        >>> unknown_part("np.log(`lead time` + 1)"), unknown_part("x.to_pickle('f')")
        (None, "x.to_pickle('f')")
    """
    try:
        tree = ast.parse(sanitize_variable_names(expression, {}, {}), mode="eval")
    except (SyntaxError, ValueError, IndexError, RecursionError, MemoryError):
        return expression
    try:
        return next((ast.unparse(each) for each in strange_nodes(tree.body)), None)
    except RecursionError:
        return expression


def names_of(expression: str) -> set[str]:
    """The variables that an expression reads. A name that is called is none.

    Args:
        expression: A factor of a formula.

    Example:
        >>> sorted(names_of("np.log(scale + `lead time`) * log(Treatment)"))
        ['Treatment', 'lead time', 'scale']
    """
    nodes = list(ast.walk(ast.parse(re.sub("`[^`]+`", "(0)", expression).strip(), mode="eval")))
    others = {id(node.func) for node in nodes if isinstance(node, ast.Call)}
    roots = [node.value for node in nodes if isinstance(node, ast.Attribute)]
    others |= {id(root) for root in roots if isinstance(root, ast.Name) and root.id in MODULES}
    names = {node.id for node in nodes if isinstance(node, ast.Name) and id(node) not in others}
    return names | set(re.findall("`([^`]+)`", expression))


def strange_nodes(node: ast.AST) -> list[ast.AST]:
    """The parts of an expression that are beyond known functions."""
    if isinstance(node, ast.Call):
        strange: list[ast.AST] = [] if is_known(node.func) else [node]
        given = [*node.args, *(keyword.value for keyword in node.keywords)]
        strange += [keyword for keyword in node.keywords if keyword.arg in (None, "out")]
        return strange + within(given)
    if isinstance(node, ast.Name):
        return [node] if node.id.startswith("__") else []
    if isinstance(node, ast.Constant):
        plain = node.value is None or isinstance(node.value, bool | int | float | str)
        return [] if plain else [node]
    if isinstance(node, ast.BinOp):
        fine = isinstance(node.op, (*ARITHMETIC, *LOGIC)) and not (
            isinstance(node.op, ast.Pow) and not is_small(node.right)
        )
        texts = any(is_sequence(each) for each in (node.left, node.right))
        return ([] if fine and not texts else [node]) + within([node.left, node.right])
    if isinstance(node, ast.UnaryOp):
        return within([node.operand])
    if isinstance(node, ast.Compare):
        return within([node.left, *node.comparators])
    if isinstance(node, ast.List | ast.Tuple):
        return within(node.elts)
    if isinstance(node, ast.Attribute):
        return [] if is_known(node) else [node]  # as contr.sum without arguments
    return [node]


def within(nodes: list[ast.expr]) -> list[ast.AST]:
    """The strange parts of several expressions."""
    return [strange for node in nodes for strange in strange_nodes(node)]


def is_known(function: ast.expr) -> bool:
    """Whether a function that is called is a known one, by its name."""
    if isinstance(function, ast.Name):
        return function.id in FUNCTIONS
    if not (isinstance(function, ast.Attribute) and isinstance(function.value, ast.Name)):
        return False
    names = {"np": OF_NUMPY, "contr": OF_CONTRASTS}.get(function.value.id, set())
    return function.attr in names


def is_small(exponent: ast.expr) -> bool:
    """Whether an exponent is a column, or a number that does not let integers explode."""
    if isinstance(exponent, ast.UnaryOp):
        exponent = exponent.operand
    if isinstance(exponent, ast.Constant):
        return isinstance(exponent.value, int | float) and abs(exponent.value) <= LARGEST_POWER
    return isinstance(exponent, ast.Name)


def is_sequence(node: ast.expr) -> bool:
    """Whether an operand is a text or a list, which arithmetic would repeat."""
    if isinstance(node, ast.Constant):
        return isinstance(node.value, str)
    return isinstance(node, ast.List | ast.Tuple)
