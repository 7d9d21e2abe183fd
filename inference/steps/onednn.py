"""Large products of matrices in a recorded graph, by oneDNN."""

import copy
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch.fx import Graph, GraphModule, Node

from .products import factors, finished, multiplications, rectified, transposed

aten = torch.ops.aten
LARGE = 2**20  # multiplications; for fewer, calling oneDNN takes longer than it saves


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
        bias, left, right = factors(node)
        product, added = _with_bias(node)
        last = rectified(product)
        with found.graph.inserting_before(last):
            if added is not None:
                bias = found.graph.call_function(aten.squeeze.dim, (added, 1))
            rows, columns = (_dense(found.graph, each) for each in (left, right))
            weight = transposed(found.graph, columns)
            args = (rows, weight, bias, "none" if last is product else "relu")
            result = found.graph.call_function(affine, args)
        result.meta = last.meta
        last.replace_all_uses_with(result)
    return finished(found)


def _with_bias(node: Node) -> tuple[Node, Node | None]:
    """The sum of products of several matrices and a row for each, and these rows (S, 1, M).

    If there is none, the product itself, and None.
    """
    first, *others = node.users
    if node.target is aten.bmm.default and first.target is aten.add.Tensor and not others:
        added = [each for each in first.all_input_nodes if each is not node]
        value, values = node.meta["val"], [each.meta["val"] for each in added]
        kind = (len(value), 1, value.shape[-1]), value.dtype
        if [(each.shape, each.dtype) for each in values] == [kind] and not first.kwargs:
            return first, added[0]
    return node, None


def affine_by_onednn(
    rows: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, activation: str
) -> torch.Tensor:
    """An affine map ``rows @ weight.T + bias``, followed by an activation, by oneDNN.

    Args:
        rows: Shape (N, D), or (S, N, D) for S maps.
        weight: Shape (M, D), or (S, M, D).
        bias: Shape (M,), or (S, M), or None.
        activation: ``"relu"`` or ``"none"``.
    """
    if rows.dim() == 3:
        biases = [None] * len(rows) if bias is None else bias
        each = zip(rows, weight, biases, strict=True)
        return torch.stack([affine_by_onednn(*one, activation) for one in each])
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
    return rows.new_empty(*rows.shape[:-1], weight.shape[-2])


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


def _large(recorded: GraphModule) -> list[Node]:
    if not (torch.backends.mkldnn.is_available() and torch.backends.mkldnn.enabled):
        return []
    return [node for node in recorded.graph.nodes if _by_onednn(node) >= LARGE]


def _by_onednn(node: Node) -> int:
    """The multiplications of a product that oneDNN can compute, or zero."""
    number = multiplications(node)
    values: list[Any] = [each.meta["val"] for each in node.all_input_nodes] if number else []
    vector = all(each.dim() == 1 for each in values[:-2])  # what is added
    return number if vector and all(map(_is_single_on_cpu, values)) else 0


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
