"""Recorded graphs of copies of one model, whose operations are done for all copies at once."""

from collections.abc import Sequence

import torch
from torch.fx import Graph, GraphModule, Node

from .simplify import changed_in_place, traced


def stacked(
    graph: GraphModule, tensors: Sequence[torch.Tensor], shared: Sequence[bool]
) -> tuple[GraphModule, GraphModule] | None:
    r"""Two graphs for S copies: :math:`\epsilon \sim p(\epsilon)`, and the results given ε.

    The first draws the random numbers of one copy, in the order of the given graph. The second
    has them as its last arguments, one tensor (S, ...) for each draw, and all results are (S, ...).

    Args:
        graph: The operations for one copy.
        tensors: Its arguments for all copies, (S, ...) if they are not shared.
        shared: Which of them are one tensor for all copies.

    Returns:
        The graphs, or None if random numbers depend on the arguments.

    Raises:
        Exception: Whatever `torch.func.vmap` raises, for example of an operation that it lacks.
    """
    parts = without_noise(graph)
    if parts is None:
        return None
    draw, rest = parts
    copies = next(len(value) for value, one in zip(tensors, shared, strict=True) if not one)
    with torch.no_grad(), torch.random.fork_rng(devices=()):
        noise = [torch.stack([value] * copies) for value in draw()]
        axes = [None if one else 0 for one in shared] + [0] * len(noise)
        function = torch.func.vmap(lambda *values: tuple(rest(*values)), in_dims=tuple(axes))
        return draw, traced(function, *tensors, *noise)


def without_noise(graph: GraphModule) -> tuple[GraphModule, GraphModule] | None:
    """A graph that draws the random numbers, and one that has them as its last arguments.

    A tensor that is filled with random numbers is one of these arguments, too.
    """
    nodes = list(graph.graph.nodes)
    draws = [node for node in nodes if torch.Tag.nondeterministic_seeded in _tags(node)]
    if not any(node.users or changed_in_place(node) for node in draws):
        nodes, draws = [node for node in nodes if node not in draws], []
    filled = {value for node in draws for value in changed_in_place(node)}
    sources = _sources(draws, filled)
    if any(node.op == "placeholder" for node in sources | filled):
        return None
    drawing, rest = Graph(), Graph()
    drawn: dict[Node, Node] = {}
    for node in nodes:
        if node in filled:
            drawn[node] = _empty(drawing, node)
        elif node in sources:
            drawn[node] = drawing.node_copy(node, drawn.__getitem__)
    drawing.output(tuple(drawn[node] for node in draws))
    values: dict[Node, Node] = {}
    for node in nodes:
        if node.op == "placeholder":
            values[node] = rest.node_copy(node)
    for number, node in enumerate(draws):
        noise = rest.placeholder(f"noise_{number}")
        values |= dict.fromkeys([node, *changed_in_place(node)], noise)
    for node in nodes:
        if node not in values:
            values[node] = rest.node_copy(node, values.__getitem__)
    return GraphModule(graph, drawing), GraphModule(graph, rest)


def _tags(node: Node) -> Sequence[torch.Tag]:
    return getattr(node.target, "tags", ())


def _sources(draws: Sequence[Node], filled: set[Node]) -> set[Node]:
    """Random operations and all that they depend on, but for the tensors that they fill."""
    found: set[Node] = set()
    waiting = list(draws)
    while waiting:
        node = waiting.pop()
        if node not in found | filled:
            found.add(node)
            waiting += node.all_input_nodes
    return found


def _empty(graph: Graph, like: Node) -> Node:
    value = like.meta["val"]
    options = {"dtype": value.dtype, "device": value.device}
    return graph.call_function(torch.empty, (tuple(value.shape),), options)
