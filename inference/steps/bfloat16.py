"""Large products of matrices in a recorded graph, of numbers in bfloat16."""

import copy
from typing import Any

import torch
from torch.fx import Graph, GraphModule, Node

from .products import finished, multiplications, rectified

aten = torch.ops.aten
HALF: dict[str, Any] = {"dtype": torch.bfloat16}
SINGLE: dict[str, Any] = {"dtype": torch.float32}
LARGE = 2**23  # multiplications; for fewer, rounding takes longer than it saves


def with_bfloat16(recorded: GraphModule) -> GraphModule:
    r"""A copy whose large products are of numbers rounded to bfloat16, :math:`|r| \le 2^{-9}|x|`.

    Only products of matrices in single precision are rounded, those of networks. Their terms are
    summed in single precision. Densities, sums over rows, the parameters and what an optimizer
    remembers stay as they are. If there is nothing to change, the graph itself is returned.

    Args:
        recorded: The graph.
    """
    if not any(map(_is_large, recorded.graph.nodes)):
        return recorded
    found, known = copy.deepcopy(recorded), dict[Node, Node]()
    for node in list(filter(_is_large, found.graph.nodes)):
        last = rectified(node)
        value = node.meta["val"].bfloat16()
        with found.graph.inserting_before(node):
            arguments = [_rounded(found.graph, each, known) for each in node.all_input_nodes]
            product = _call(found.graph, node.target, arguments, value)
            if last is not node:
                product = _call(found.graph, aten.relu.default, [product], value)
            result = found.graph.call_function(aten._to_copy.default, (product,), SINGLE)
        result.meta, known[result] = last.meta, product
        last.replace_all_uses_with(result)
    return finished(found)


def _is_large(node: Node) -> bool:
    return multiplications(node) >= LARGE and all(
        each.meta["val"].dtype == torch.float32 for each in node.all_input_nodes
    )


def _rounded(graph: Graph, node: Node, known: dict[Node, Node]) -> Node:
    """A matrix in bfloat16, which is rounded once for all of its products."""
    if node not in known:
        value = node.meta["val"].bfloat16()
        if node.target is aten.t.default:
            source = _rounded(graph, node.all_input_nodes[0], known)
            known[node] = _call(graph, aten.t.default, [source], value)
        else:
            known[node] = graph.call_function(aten._to_copy.default, (node,), HALF)
            known[node].meta = {"val": value}
    return known[node]


def _call(graph: Graph, operation: Any, arguments: list[Node], value: torch.Tensor) -> Node:
    node = graph.call_function(operation, tuple(arguments))
    node.meta = {"val": value}
    return node
