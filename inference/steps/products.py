"""Products of matrices in a recorded graph, by the routine that takes the least time."""

import copy
from typing import Any, cast

import torch
from torch.fx import Graph, GraphModule, Node

from .simplify import must_stay

aten = torch.ops.aten
PRODUCTS = (aten.mm.default, aten.addmm.default)
NARROW, WIDE = 4, 64


def with_linear(recorded: GraphModule) -> GraphModule:
    """A copy that calls ``linear`` for affine maps, with the same results bit for bit.

    TorchScript would split ``addmm`` into a product and a sum, which reads the product again.
    """
    found = copy.deepcopy(recorded)
    for node in found.graph.find_nodes(op="call_function", target=aten.addmm.default):
        bias, rows, weight = node.args
        if not node.kwargs and bias.meta["val"].dim() == 1 and weight.target is aten.t.default:
            node.target, node.args = aten.linear.default, (rows, weight.args[0], bias)
    return finished(found)


def with_small_products(function: GraphModule) -> None:
    """Write products of matrices with few columns so that they take less time.

    A product with at most four terms is a sum of products, which is fused with its neighbors.
    Libraries are slow at products of few columns, and fast at those of few rows.
    """
    for node in list(function.graph.nodes):
        if node.target not in PRODUCTS or node.kwargs:
            continue
        bias, left, right = factors(node)
        (rows, terms), columns = left.meta["val"].shape, right.meta["val"].shape[1]
        with function.graph.inserting_before(node):
            if terms <= NARROW:
                product = _sum_of_products(function.graph, left, right, terms)
                if bias is not None:
                    product = function.graph.call_function(aten.add.Tensor, (bias, product))
            elif bias is None and columns <= NARROW and rows >= WIDE:
                turned = tuple(transposed(function.graph, each) for each in (right, left))
                product = function.graph.call_function(aten.mm.default, turned)
                product = function.graph.call_function(aten.t.default, (product,))
            else:
                continue
        node.replace_all_uses_with(product)
    function.graph.eliminate_dead_code()
    function.recompile()


def factors(node: Any) -> tuple[Node | None, Node, Node]:
    """What is added to a product, or None, and its factors."""
    *added, left, right = node.args
    return (added[0] if added else None), left, right


def rectified(product: Node) -> Node:
    """The rectifier of a product if nothing else reads the product, or the product itself."""
    first, *others = product.users
    return first if first.target is aten.relu.default and not others else product


def largest(recorded: GraphModule) -> int:
    """The multiplications of the largest product of two matrices or convolution."""
    products = [multiplications(node) for node in recorded.graph.nodes]
    convolutions = recorded.graph.find_nodes(op="call_function", target=aten.convolution.default)
    for node in convolutions:
        weight: Any = node.args[1]
        products.append(node.meta["val"].numel() * weight.meta["val"][0].numel())
    return max(products, default=0)


def multiplications(node: Node) -> int:
    """The multiplications of a product of two matrices, or zero."""
    values: list[Any] = [each.meta.get("val") for each in node.all_input_nodes]
    if node.target not in (*PRODUCTS, aten.bmm.default) or node.kwargs:
        return 0
    if len(values) != len(node.args) or any(value is None for value in values):
        return 0
    *_, left, right = values
    return int(left.shape[-2] * left.shape[-1] * right.shape[-1])


def transposed(graph: Graph, matrix: Node) -> Node:
    """The transpose of a matrix, or of each of several."""
    if matrix.target is aten.t.default or _turns_the_last_two(matrix):
        return matrix.all_input_nodes[0]
    return graph.call_function(aten.transpose.int, (matrix, -2, -1))


def _turns_the_last_two(node: Node) -> bool:
    if node.target is not aten.transpose.int:
        return False
    number, dims = node.meta["val"].dim(), cast(tuple[int, ...], node.args[1:])
    return {dim % number for dim in dims} == {number - 2, number - 1}


def finished(graph: GraphModule) -> GraphModule:
    """The graph without operations whose results nothing uses."""
    graph.graph.eliminate_dead_code(must_stay)
    graph.recompile()
    return graph


def _sum_of_products(graph: Graph, left: Node, right: Node, terms: int) -> Any:
    total: Any = None
    for term in range(terms):
        column = graph.call_function(aten.slice.Tensor, (left, 1, term, term + 1))
        row = graph.call_function(aten.slice.Tensor, (right, 0, term, term + 1))
        product = graph.call_function(aten.mul.Tensor, (column, row))
        if total is not None:
            product = graph.call_function(aten.add.Tensor, (total, product))
        total = product
    return total
