"""Recorded graphs and their simplification, with the same results bit for bit."""

from collections.abc import Callable
from typing import Any

import torch
from torch._guards import TracingContext, tracing
from torch._subclasses import FakeTensorMode
from torch.fx import GraphModule, Node
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.node import map_arg

aten = torch.ops.aten
SAME = (aten.detach.default, aten.alias.default, aten.lift_fresh_copy.default)
INVOLUTIONS = (aten.t.default, aten.neg.default)
SHAPES = (aten.view.default, aten._unsafe_view.default, aten.expand.default)


def traced(function: Callable[..., Any], *tensors: torch.Tensor) -> GraphModule:
    """The operations of a function of tensors, simplified.

    Shapes are noted in one mode. Otherwise each result has a mode of its own, whose construction
    takes longer than tracing the operation.
    """
    with tracing(TracingContext(FakeTensorMode(allow_fallback_kernels=True))):
        return simplify(make_fx(function)(*tensors))


def simplify(recorded: GraphModule) -> GraphModule:
    """Remove operations that only gradients needed, repeat others, or have constant results.

    Random operations stay in their order, because the stream of random numbers depends on them.
    Tensors that are changed in place, and their views, stay as they are.
    """
    written = _written(recorded)
    _merge(recorded, written)
    _remove_unused(recorded)
    _fold(recorded, written)
    _remove_unused(recorded)
    recorded.recompile()
    return recorded


def _operation(node: Node) -> torch._ops.OpOverload | None:
    target = node.target
    return target if isinstance(target, torch._ops.OpOverload) else None


def _writes(node: Node) -> bool:
    operation = _operation(node)
    return operation is not None and operation._schema.is_mutable


def must_stay(node: Node) -> bool:
    """Whether a node has an effect besides its result."""
    operation = _operation(node)
    if operation is None:
        return node.op in ("placeholder", "output")
    return _writes(node) or torch.Tag.nondeterministic_seeded in operation.tags


def _may_alias(node: Node) -> bool:
    """Whether the result of a node shares memory with an argument."""
    operation = _operation(node)
    if operation is None:
        return node.op == "call_function"  # an element of several results
    return any(result.alias_info is not None for result in operation._schema.returns)


def changed_in_place(node: Node) -> list[Node]:
    """The arguments that an operation changes in place."""
    operation = _operation(node)
    arguments = [] if operation is None else operation._schema.arguments
    values = [*node.args, *(node.kwargs.get(each.name) for each in arguments[len(node.args) :])]
    return [
        value
        for value, argument in zip(values, arguments, strict=True)
        if isinstance(value, Node) and argument.alias_info and argument.alias_info.is_write
    ]


def _written(recorded: GraphModule) -> set[Node]:
    """The nodes whose memory an operation changes in place."""
    found: set[Node] = set()
    for node in recorded.graph.nodes:
        if _writes(node):
            found |= {node, *changed_in_place(node)}
    before = -1
    while len(found) != before:
        before = len(found)
        for node in filter(_may_alias, recorded.graph.nodes):
            group = {node, *node.all_input_nodes}
            if group & found:
                found |= group
    return found


def _merge(recorded: GraphModule, written: set[Node]) -> None:
    """Let equal operations be one, and remove those that do nothing."""
    first: dict[Any, Node] = {}
    for node in list(recorded.graph.nodes):
        if _operation(node) is None or must_stay(node) or node in written:
            continue
        same = first.setdefault(_key(node), node)
        (source, *_) = node.all_input_nodes or [node]
        if node.target in SAME or _does_nothing(node):
            same = source
        elif node.target in INVOLUTIONS and source.target is node.target:
            same = source.all_input_nodes[0]
        if same is not node:
            node.replace_all_uses_with(same)
            recorded.graph.erase_node(node)


def _does_nothing(node: Node) -> bool:
    """Whether a node gives a tensor the shape that it has, or multiplies it by one."""
    if node.target not in SHAPES and not (node.target is aten.mul.Scalar and node.args[1] == 1):
        return False
    return _layout(node) is not None and _layout(node) == _layout(node.all_input_nodes[0])


def _layout(node: Node) -> Any:
    value = node.meta.get("val")
    return None if value is None else (value.shape, value.stride(), value.dtype)


def _key(node: Node) -> Any:
    """What two equal operations have in common. 1 and 1.0 and True are different arguments."""
    return node.target, _typed(node.args), _typed(tuple(sorted(node.kwargs.items())))


def _typed(argument: Any) -> Any:
    if isinstance(argument, list | tuple):
        return tuple(map(_typed, argument))
    return type(argument), repr(argument) if isinstance(argument, float) else argument


def _fold(recorded: GraphModule, written: set[Node]) -> None:
    """Compute operations of constants once."""
    graph = recorded.graph
    known: dict[Node, Any] = {}
    for node in list(graph.nodes):
        if node.op == "get_attr":
            known[node] = getattr(recorded, node.target)
        operation = _operation(node)
        if operation is None or must_stay(node) or node in written:
            continue
        if all(source in known for source in node.all_input_nodes):
            args, kwargs = map_arg((node.args, node.kwargs), known.__getitem__)
            with torch.no_grad():
                known[node] = operation(*args, **kwargs)
    for number, (node, value) in enumerate(known.items()):
        if node.op == "get_attr" or all(user in known for user in node.users):
            continue
        if torch.is_tensor(value):
            recorded.register_buffer(f"constant_{number}", value, persistent=False)
            with graph.inserting_before(node):
                constant = graph.get_attr(f"constant_{number}")
            node.replace_all_uses_with(constant, lambda user: user not in known)


def _remove_unused(recorded: GraphModule) -> None:
    recorded.graph.eliminate_dead_code(must_stay)
