"""Make an exported program ready for torch's ONNX exporter, touching only what needs it.

The exporter's own way is to trace the whole program once more, which takes half of the time of an export. Here single
operators are replaced: those that write in place by those that do not, those that the exporter does not know by what
they are made of.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Set
from typing import Any

import torch
from torch.fx import GraphModule, Node
from torch.fx.experimental.proxy_tensor import make_fx

Table = Mapping[Any, Callable[..., Any]]
#: Different operators to trace, above which one trace of the whole is quicker.
_MOST = 16


def prepare(program: Any, table: Table) -> bool:
    """Replace, in the program's graph, the operators of ``table`` and those that write in place.

    Parameters
    ----------
    program
        A ``torch.export.ExportedProgram``; changed in place, also where the answer is no.
    table
        Operator -> function that computes it with others, as ``run_decompositions`` takes it.

    Returns
    -------
    bool
        Whether nothing is left to be replaced; otherwise the whole program must be decomposed.
    """
    root = program.graph_module
    if any(module is not root for module in root.modules()) or _writes_arguments(program):
        return False
    if any(_is_of_operators(node) for node in root.graph.nodes):
        return False
    # The table leaves out what the exporter knows, of the operators that have a decomposition at all.
    known = {target for target in torch.export.default_decompositions() if target not in table}
    traces: dict[Any, GraphModule] = {}
    pending = [node for node in root.graph.nodes if _is_pending(node, table, known)]
    if len({_key(node) for node in pending if not node.target._schema.is_mutable}) > _MOST:
        return False
    if not all(_replaced(root, node, table, traces) for node in pending):
        return False
    if any(_is_pending(node, table, known) for node in root.graph.nodes):
        return False
    root.graph.eliminate_dead_code()
    root.recompile()
    return True


def _writes_arguments(program: Any) -> bool:
    """Whether the program changes its buffers or inputs."""
    signature = program.graph_signature
    return bool(signature.buffers_to_mutate or signature.user_inputs_to_mutate)


def _is_pending(node: Node, table: Table, known: Set[Any]) -> bool:
    if node.op != "call_function" or node.target is operator.getitem:
        return False
    schema = getattr(node.target, "_schema", None)
    if schema is None:
        return False
    return node.target in table or schema.is_mutable or (_is_composite(node.target) and node.target not in known)


def _is_of_operators(node: Node) -> bool:
    """Whether a node is neither an operator nor arithmetic on sizes."""
    if node.op != "call_function" or getattr(node.target, "_schema", None) is not None:
        return False
    return getattr(node.target, "__module__", "") not in ("_operator", "math", "torch", "builtins")


def _key(node: Node) -> Any:
    """What the trace of a node's decomposition depends on."""

    def sort(argument: Node) -> Any:
        value = argument.meta.get("val")
        if isinstance(value, torch.Tensor):
            return tuple(value.shape), value.dtype, value.device, tuple(value.stride())
        return argument

    return node.target, str(torch.fx.map_arg((node.args, node.kwargs), sort))


def _replaced(root: GraphModule, node: Node, table: Table, traces: dict[Any, GraphModule]) -> bool:
    target: Any = node.target
    return _out_of_place(node) if target._schema.is_mutable else _made_of_others(root, node, table, traces)


def _out_of_place(node: Node) -> bool:
    """Replace ``relu_(x)`` by ``relu(x)``, and what reads x behind it by what reads that."""
    target: Any = node.target
    x = node.args[0] if node.args else None
    name = target._schema.name.partition("::")[2]
    written = [a for a in target._schema.arguments if a.alias_info is not None and a.alias_info.is_write]
    if not isinstance(x, Node) or len(written) != 1 or written[0] is not target._schema.arguments[0]:
        return False
    if target is not torch.ops.aten.detach_.default:
        packet = getattr(torch.ops.aten, name.removesuffix("_"), None)
        same = getattr(packet, target._overloadname, None)
        if not name.endswith("_") or same is None or x.op != "call_function" or not _owns(x, node):
            return False
        node.target = same
    else:
        # Detaching changes no number.
        node.replace_all_uses_with(x)
        node.graph.erase_node(node)
        return True
    value, before = node.meta.get("val"), x.meta.get("val")
    if value is None or before is None or value.dtype != before.dtype or value.shape != before.shape:
        return False
    later, seen = set(), False
    for other in node.graph.nodes:
        if seen:
            later.add(other)
        seen = seen or other is node
    x.replace_all_uses_with(node, delete_user_cb=lambda user: user in later)
    return True


def _owns(x: Node, writer: Node) -> bool:
    """Whether the memory of x is its own: x is no view, and no view of it is taken before it is written."""
    if _may_alias(x):
        return False
    for user in x.users:
        if user is writer:
            continue
        if _may_alias(user):
            return False
    return True


def _may_alias(node: Node) -> bool:
    """Whether the result of a node may share the memory of an argument."""
    if node.op != "call_function":
        return node.op != "output"
    schema = getattr(node.target, "_schema", None)
    if schema is None:
        return True
    # reshape, contiguous, to and their like are views or not, as it comes: their schema says nothing.
    return _is_composite(node.target) or any(out.alias_info is not None for out in schema.returns)


def _is_composite(target: Any) -> bool:
    """Whether an operator is defined by others."""
    return bool(target.has_kernel_for_dispatch_key(torch._C.DispatchKey.CompositeImplicitAutograd))


def _is_static(value: torch.Tensor) -> bool:
    return all(isinstance(size, int) for size in value.shape)


def _made_of_others(root: GraphModule, node: Node, table: Table, traces: dict[Any, GraphModule]) -> bool:
    """Replace a node by the graph that its decomposition traces to."""
    inputs: list[Node] = []

    def slot(argument: Node) -> Any:
        if argument not in inputs:
            inputs.append(argument)
        return argument

    torch.fx.map_arg((node.args, node.kwargs), slot)
    values = [argument.meta.get("val") for argument in inputs]
    # Sizes that are still open are arguments too, which only a trace of the whole keeps apart.
    if not all(isinstance(value, torch.Tensor) and _is_static(value) for value in values):
        return False
    target: Any = node.target
    function: Callable[..., Any] = table.get(target, target.decompose)

    def call(*tensors: torch.Tensor) -> Any:
        given = dict(zip(inputs, tensors, strict=True))
        args, kwargs = torch.fx.map_arg((node.args, node.kwargs), given.__getitem__)
        return function(*args, **kwargs)

    key = _key(node)
    if key not in traces:
        traces[key] = make_fx(call, decomposition_table=dict(table))(*values)
    traced = traces[key]
    if any(inner.op in ("get_attr", "call_module") for inner in traced.graph.nodes):
        return False
    placeholders = iter(inputs)
    copies: dict[Node, Any] = {}
    with root.graph.inserting_before(node):
        for inner in traced.graph.nodes:
            if inner.op == "placeholder":
                copies[inner] = next(placeholders)
            elif inner.op == "output":
                result = torch.fx.map_arg(inner.args[0], copies.__getitem__)
            else:
                copies[inner] = root.graph.node_copy(inner, copies.__getitem__)
                for key in ("stack_trace", "nn_module_stack"):
                    if key in node.meta:
                        copies[inner].meta[key] = node.meta[key]
    if not isinstance(result, Node):
        return False
    node.replace_all_uses_with(result)
    root.graph.erase_node(node)
    return True
