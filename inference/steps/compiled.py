"""Compilation of a recorded graph by torch's inductor, and when it pays."""

import hashlib
import operator
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.fx import Graph, GraphModule, Node

from ..context import late_imports

aten = torch.ops.aten
SAVED = 1.5e-6  # seconds of a step for each operation, measured on one core
FRESH, CACHED = 60.0, 6.0  # seconds of a compilation, and of one that inductor has in its cache
NARROW, WIDE = 4, 64

Function = Callable[..., Sequence[torch.Tensor]]


def compiled(graph: GraphModule, inputs: Sequence[torch.Tensor]) -> Function:
    """The function of a recorded graph, compiled for tensors of these shapes.

    Its results are the first of the graph, the loss, and one vector of all others.

    Random numbers are those of the graph. Other results are equal up to rounding, because sums
    have another order.

    Args:
        graph: Operations on tensors. Their results are a list of tensors.
        inputs: Tensors to compile it for.

    Raises:
        Exception: Whatever the compiler raises, for example if there is no C++ compiler.
    """
    from torch._subclasses import FakeTensorMode
    from torch.fx.passes.fake_tensor_prop import FakeTensorProp

    function, constants = _closed(graph)
    _as_one_vector(function)
    tensors = [*inputs, *constants]
    FakeTensorProp(function, FakeTensorMode()).propagate(*tensors)
    _with_small_products(function)
    artifact = inductor(function, tensors)
    marker = _marker(graph, inputs)
    marker.parent.mkdir(parents=True, exist_ok=True)
    marker.touch()
    return lambda *others: artifact(*others, *constants)


def inductor(function: GraphModule, tensors: Sequence[torch.Tensor]) -> Function:
    """Compile a function for tensors of these shapes by torch's inductor."""
    from torch._inductor import standalone_compile

    options = {"config_patches": {"fallback_random": True}}
    with torch.no_grad(), late_imports(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return standalone_compile(
            function, list(tensors), dynamic_shapes="from_example_inputs", options=options
        )


def seconds_to_compile(graph: GraphModule, inputs: Sequence[torch.Tensor]) -> float:
    """The seconds that a compilation is expected to take, which are few for a former graph."""
    return CACHED if _marker(graph, inputs).exists() else FRESH


def seconds_saved(graph: GraphModule) -> float:
    """The seconds that a compiled graph is expected to save at every call."""
    return SAVED * len(graph.graph.nodes)


def _marker(graph: GraphModule, inputs: Sequence[torch.Tensor]) -> Path:
    """An empty file beside inductor's cache, which tells that it has compiled this graph."""
    from torch._inductor.runtime.cache_dir_utils import cache_dir

    shapes = [(tuple(value.shape), str(value.dtype), str(value.device)) for value in inputs]
    words = f"{torch.__version__} {shapes} {graph.code}"
    return Path(cache_dir()) / "pyro_moe" / hashlib.sha256(words.encode()).hexdigest()


def _closed(graph: GraphModule) -> tuple[GraphModule, list[torch.Tensor]]:
    """A copy of a graph that takes its constants as its last arguments, and the constants."""
    copied, values = Graph(), dict[Node, Node]()
    constants = [node for node in graph.graph.nodes if node.op == "get_attr"]
    given = [node for node in graph.graph.nodes if node.op == "placeholder"]
    for node in given:
        values[node] = copied.placeholder(node.name)
    for node in constants:
        values[node] = copied.placeholder(node.name)
    for node in graph.graph.nodes:
        if node not in values:
            values[node] = copied.node_copy(node, values.__getitem__)
    tensors = [operator.attrgetter(str(node.target))(graph) for node in constants]
    return GraphModule(graph, copied), [value.detach() for value in tensors]


def _as_one_vector(function: GraphModule) -> None:
    (output,) = function.graph.find_nodes(op="output")
    value, *gradients = output.args[0]
    with function.graph.inserting_before(output):
        flat = [function.graph.call_function(aten.reshape.default, (g, [-1])) for g in gradients]
        output.args = ([value, function.graph.call_function(aten.cat.default, (flat,))],)
    function.recompile()


def _with_small_products(function: GraphModule) -> None:
    """Write products of matrices with few columns so that they take less time.

    A product with at most four terms is a sum of products, which is fused with its neighbors.
    Libraries are slow at products of few columns, and fast at those of few rows.
    """
    for node in list(function.graph.nodes):
        if node.target not in (aten.mm.default, aten.addmm.default) or node.kwargs:
            continue
        *bias, left, right = node.args
        (rows, terms), columns = left.meta["val"].shape, right.meta["val"].shape[1]
        with function.graph.inserting_before(node):
            if terms <= NARROW:
                product = _sum_of_products(function.graph, left, right, terms)
                if bias:
                    product = function.graph.call_function(aten.add.Tensor, (bias[0], product))
            elif not bias and columns <= NARROW and rows >= WIDE:
                product = _transposed(function.graph, left, right)
            else:
                continue
        node.replace_all_uses_with(product)
    function.graph.eliminate_dead_code()
    function.recompile()


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


def _transposed(graph: Graph, left: Node, right: Node) -> Node:
    factors = [graph.call_function(aten.t.default, (each,)) for each in (right, left)]
    product = graph.call_function(aten.mm.default, tuple(factors))
    return graph.call_function(aten.t.default, (product,))
