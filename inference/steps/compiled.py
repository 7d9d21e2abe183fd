"""Compilation of a recorded graph by torch's inductor, and when it pays."""

import hashlib
import operator
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch.fx import Graph, GraphModule, Node

from ..context import late_imports
from .onednn import with_onednn
from .products import with_small_products

aten = torch.ops.aten
SAVED = 1.5e-6  # seconds of a step for each operation, measured on one core
FRESH, CACHED = 60.0, 6.0  # seconds of a compilation, and of one that inductor has in its cache

Function = Callable[..., Sequence[torch.Tensor]]


def compiled(
    graph: GraphModule, inputs: Sequence[torch.Tensor], *, onednn: bool = False
) -> Function:
    """The function of a recorded graph, compiled for tensors of these shapes.

    Its results are the first of the graph, the loss, and one vector of all others.

    Random numbers are those of the graph. Other results are equal up to rounding, because sums
    have another order.

    Args:
        graph: Operations on tensors. Their results are a list of tensors.
        inputs: Tensors to compile it for.
        onednn: Whether oneDNN computes large products, see `with_onednn`.

    Raises:
        Exception: Whatever the compiler raises, for example if there is no C++ compiler.
    """
    from torch._subclasses import FakeTensorMode
    from torch.fx.passes.fake_tensor_prop import FakeTensorProp

    function, constants = _closed(with_onednn(graph, compiled=True) if onednn else graph)
    _as_one_vector(function)
    tensors = [*inputs, *constants]
    FakeTensorProp(function, FakeTensorMode()).propagate(*tensors)
    with_small_products(function)
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
