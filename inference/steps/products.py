"""Products of matrices in a recorded graph, by the routine that takes the least time."""

import copy
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch.fx import Graph, GraphModule, Node

from .simplify import must_stay

aten = torch.ops.aten
PRODUCTS = (aten.mm.default, aten.addmm.default)
NARROW, WIDE = 4, 64
LARGE = 2**21  # multiplications; for fewer, calling oneDNN takes longer than it saves


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


def with_onednn(recorded: GraphModule, *, compiled: bool = False) -> GraphModule:
    """A copy that computes large products by oneDNN, with the same results up to rounding.

    PyTorch calls MKL for them, which leaves half the speed of AMD's processors unused. A rectifier
    of an affine map is part of its product here. If there is nothing to change, the graph itself is
    returned.

    Args:
        recorded: The graph.
        compiled: Whether the copy is for torch's inductor, which would ask for constant weights,
            unless it is given an operation that it does not know.
    """
    affine = torch.ops.pyro_moe.affine.default if compiled else affine_by_onednn
    if not _large(recorded):
        return recorded
    found = copy.deepcopy(recorded)
    for node in _large(found):
        bias, left, right = _factors(node)
        last = rectified(node)
        with found.graph.inserting_before(node):
            rows, columns = (_dense(found.graph, each) for each in (left, right))
            weight = _transposed(found.graph, columns)
            args = (rows, weight, bias, "none" if last is node else "relu")
            product = found.graph.call_function(affine, args)
        product.meta = last.meta
        last.replace_all_uses_with(product)
    return finished(found)


def affine_by_onednn(
    rows: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, activation: str
) -> torch.Tensor:
    """An affine map ``rows @ weight.T + bias``, followed by an activation, by oneDNN.

    Args:
        rows: Shape (N, D).
        weight: Shape (M, D).
        bias: Shape (M,), or None.
        activation: ``"relu"`` or ``"none"``.
    """
    if torch._C._get_tracing_state():
        known = [each for each in (rows, weight, bias) if each is not None]
        return _in_torchscript(activation, bias is not None)(*known)
    return torch.ops.mkldnn._linear_pointwise(rows, weight, bias, activation, [], "")


_library = torch.library.Library("pyro_moe", "DEF")
_library.define("affine(Tensor rows, Tensor weight, Tensor? bias, str activation) -> Tensor")
_library.impl("affine", affine_by_onednn, "CPU")


@torch.library.register_fake("pyro_moe::affine")
def _shape(
    rows: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, activation: str
) -> torch.Tensor:
    return rows.new_empty(len(rows), len(weight))


@cache
def _in_torchscript(activation: str, with_bias: bool) -> Callable[..., torch.Tensor]:
    """The same as a function of TorchScript, whose tracing does not know lists of numbers."""
    parsed = torch._C.parse_ir(f"""graph(%x : Tensor, %w : Tensor{", %b : Tensor" * with_bias}):
        %activation : str = prim::Constant[value="{activation}"]()
        %none : NoneType = prim::Constant()
        %scalars : Scalar?[] = prim::ListConstruct()
        %algorithm : str = prim::Constant[value=""]()
        %y : Tensor = mkldnn::_linear_pointwise(
            %x, %w, {"%b" if with_bias else "%none"}, %activation, %scalars, %algorithm)
        return (%y)""")
    return torch._C._create_function_from_graph("affine_by_onednn", parsed)


def with_small_products(function: GraphModule) -> None:
    """Write products of matrices with few columns so that they take less time.

    A product with at most four terms is a sum of products, which is fused with its neighbors.
    Libraries are slow at products of few columns, and fast at those of few rows.
    """
    for node in list(function.graph.nodes):
        if node.target not in PRODUCTS or node.kwargs:
            continue
        bias, left, right = _factors(node)
        (rows, terms), columns = left.meta["val"].shape, right.meta["val"].shape[1]
        with function.graph.inserting_before(node):
            if terms <= NARROW:
                product = _sum_of_products(function.graph, left, right, terms)
                if bias is not None:
                    product = function.graph.call_function(aten.add.Tensor, (bias, product))
            elif bias is None and columns <= NARROW and rows >= WIDE:
                factors = tuple(_transposed(function.graph, each) for each in (right, left))
                product = function.graph.call_function(aten.mm.default, factors)
                product = function.graph.call_function(aten.t.default, (product,))
            else:
                continue
        node.replace_all_uses_with(product)
    function.graph.eliminate_dead_code()
    function.recompile()


def _factors(node: Any) -> tuple[Node | None, Node, Node]:
    """What is added to a product, or None, and its factors."""
    *added, left, right = node.args
    return (added[0] if added else None), left, right


def rectified(product: Node) -> Node:
    """The rectifier of a product if nothing else reads the product, or the product itself."""
    first, *others = product.users
    return first if first.target is aten.relu.default and not others else product


def largest(recorded: GraphModule) -> int:
    """The multiplications of the largest product of matrices or convolution."""
    products = [multiplications(node) for node in recorded.graph.nodes]
    convolutions = recorded.graph.find_nodes(op="call_function", target=aten.convolution.default)
    for node in convolutions:
        weight: Any = node.args[1]
        products.append(node.meta["val"].numel() * weight.meta["val"][0].numel())
    return max(products, default=0)


def _large(recorded: GraphModule) -> list[Node]:
    if not (torch.backends.mkldnn.is_available() and torch.backends.mkldnn.enabled):
        return []
    return [node for node in recorded.graph.nodes if _by_onednn(node) >= LARGE]


def _by_onednn(node: Node) -> int:
    """The multiplications of a product that oneDNN can compute, or zero."""
    number = multiplications(node)
    values: list[Any] = [each.meta["val"] for each in node.all_input_nodes] if number else []
    vector = all(each.dim() == 1 for each in values[:-2])
    return number if vector and all(map(_is_single_on_cpu, values)) else 0


def multiplications(node: Node) -> int:
    """The multiplications of a product of matrices, or zero."""
    values: list[Any] = [each.meta.get("val") for each in node.all_input_nodes]
    if node.target not in PRODUCTS or node.kwargs or len(values) != len(node.args):
        return 0
    if any(value is None for value in values):
        return 0
    *_, left, right = values
    return int(left.shape[0] * left.shape[1] * right.shape[1])


def _is_single_on_cpu(value: torch.Tensor) -> bool:
    return value.dtype == torch.float32 and value.device.type == "cpu"


def _dense(graph: Graph, matrix: Node) -> Node:
    """A matrix whose rows or columns follow each other in memory.

    For others, such as half of the columns of a matrix, oneDNN takes a thousand times as long.
    """
    value = matrix.meta["val"]
    if value.is_contiguous() or value.mT.is_contiguous():
        return matrix
    options: dict[str, Any] = {"memory_format": torch.contiguous_format}
    return graph.call_function(aten.clone.default, (matrix,), options)


def _transposed(graph: Graph, matrix: Node) -> Node:
    if matrix.target is aten.t.default:
        return matrix.all_input_nodes[0]
    return graph.call_function(aten.t.default, (matrix,))


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
