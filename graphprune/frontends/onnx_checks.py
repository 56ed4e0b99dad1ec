"""Is the graph a graph: names defined once, inputs produced, no cycle, nodes as their schema wants them."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable

import onnx
import onnx.defs

from graphprune.errors import ModelError
from graphprune.frontends.onnx_proto import Scope, attribute_graphs, node_label, scopes

OLDEST_OPSET = 7

_UNSET = onnx.AttributeProto.UNDEFINED
_SCHEMA_DOMAINS = ("", "ai.onnx.ml", "ai.onnx.preview.training", "ai.onnx.training")


def check_versions(model: onnx.ModelProto) -> dict[str, int]:
    """Check IR version and opsets; return domain -> opset, the default domain as ""."""
    if not model.ir_version:
        raise ModelError("the model states no IR version: the file is damaged, export it again")
    if model.ir_version > onnx.IR_VERSION:
        raise ModelError(
            f"the model has IR version {model.ir_version}, the installed onnx {onnx.__version__} knows up to "
            f"{onnx.IR_VERSION}: upgrade onnx, or export the model for an older version"
        )
    if not model.opset_import:
        raise ModelError("the model imports no opset: the file is damaged, export it again")
    opsets: dict[str, int] = {}
    for entry in model.opset_import:
        domain = "" if entry.domain == "ai.onnx" else entry.domain
        if opsets.setdefault(domain, entry.version) != entry.version:
            raise ModelError(
                f"the model imports two opsets of domain '{entry.domain}': {opsets[domain]} and {entry.version}"
            )
    newest = onnx.defs.onnx_opset_version()
    opset = opsets.get("")
    if opset is None:
        return opsets
    if opset > newest:
        raise ModelError(
            f"the model uses opset {opset}, the installed onnx {onnx.__version__} knows up to {newest}: "
            "upgrade onnx, or export the model with an older opset"
        )
    if opset < 1:
        raise ModelError(f"the model imports opset {opset}, which does not exist")
    if opset < OLDEST_OPSET:
        raise ModelError(
            f"the model uses opset {opset}; graphprune reads opset {OLDEST_OPSET} and newer. "
            "Convert it first with onnx.version_converter.convert_version(model, 13)"
        )
    return opsets


def check_structure(model: onnx.ModelProto, opsets: dict[str, int]) -> None:
    """Check names, edges and nodes of every scope; put nodes that are out of order in order.

    Raises
    ------
    ModelError
        Naming the node and the value.
    """
    graph = model.graph
    if not graph.node:
        raise ModelError("the model has no nodes: there is nothing to prune")
    _unique((value.name for value in graph.input), "graph input")
    if not graph.output:
        raise ModelError("the model has no outputs")
    _check_functions(model)
    functions = {(function.domain, function.name) for function in model.functions}
    for scope in scopes(model):
        imports = opsets
        if scope.function is not None:
            imports = {**opsets, **{entry.domain: entry.version for entry in scope.function.opset_import}}
        for node in scope.body.node:
            if (node.domain, node.op_type) not in functions:
                _check_node(node, imports)
            if scope.function is None:
                _check_no_references(node)
    _check_scope(Scope(graph, ""), set())
    for function in model.functions:
        _check_scope(Scope(function, f"function '{function.name}'"), set())


def _unique(names: Iterable[str], what: str, where: str = "") -> None:
    seen: set[str] = set()
    for name in names:
        if not name:
            raise ModelError(f"a {what}{where} has no name")
        if name in seen:
            raise ModelError(f"two {what}s{where} have the same name '{name}'")
        seen.add(name)


def _check_functions(model: onnx.ModelProto) -> None:
    """Local functions: defined once, not calling themselves, directly or through others."""
    calls: dict[tuple[str, str, str], list[tuple[str, str, str]]] = {}
    for function in model.functions:
        key = (function.domain, function.name, function.overload)
        if key in calls:
            raise ModelError(f"the local function '{function.domain}::{function.name}' is defined twice")
        calls[key] = []
    for function in model.functions:
        key = (function.domain, function.name, function.overload)
        stack = list(function.node)
        while stack:
            node = stack.pop()
            callee = (node.domain, node.op_type, node.overload)
            if callee in calls:
                calls[key].append(callee)
            for _, graph in attribute_graphs(node):
                stack.extend(graph.node)
    done: set[tuple[str, str, str]] = set()
    for root in calls:
        path: list[tuple[tuple[str, str, str], int]] = [(root, 0)]
        active = {root}
        while path:
            key, at = path.pop()
            if key in done or at >= len(calls[key]):
                done.add(key)
                active.discard(key)
                continue
            path.append((key, at + 1))
            callee = calls[key][at]
            if callee in active:
                raise ModelError(f"the local function '{callee[0]}::{callee[1]}' calls itself")
            if callee not in done:
                active.add(callee)
                path.append((callee, 0))


def _check_no_references(node: onnx.NodeProto) -> None:
    for attribute in node.attribute:
        if attribute.ref_attr_name:
            raise ModelError(
                f"{node_label(node)}: attribute '{attribute.name}' refers to the attribute "
                f"'{attribute.ref_attr_name}' of a function, but the node is in none"
            )


@functools.lru_cache(maxsize=4096)
def schema_of(op_type: str, version: int, domain: str) -> onnx.defs.OpSchema | None:
    """The schema of an operator in an opset; None where ONNX defines none."""
    try:
        return onnx.defs.get_schema(op_type, version, domain)
    except onnx.defs.SchemaError:
        return None


def _check_node(node: onnx.NodeProto, imports: dict[str, int]) -> None:
    """Check a node against its schema: counts of inputs and outputs, attribute names and types."""
    if not node.op_type:
        raise ModelError(f"the node '{node.name or (node.output[0] if node.output else '')}' has no operator type")
    domain = "" if node.domain == "ai.onnx" else node.domain
    if domain == "" and "" not in imports:
        raise ModelError(f"{node_label(node)} is a standard operator, but the model imports no standard opset")
    seen: set[str] = set()
    for attribute in node.attribute:
        if attribute.name in seen:
            raise ModelError(f"{node_label(node)} has the attribute '{attribute.name}' twice")
        seen.add(attribute.name)
        if attribute.type == _UNSET:
            _infer_type(attribute, node)
    schema = schema_of(node.op_type, imports.get(domain, 0), domain) if domain in _SCHEMA_DOMAINS else None
    if schema is None:
        return
    for what, count, low, high in (
        ("inputs", len(node.input), schema.min_input, schema.max_input),
        ("outputs", len(node.output), schema.min_output, schema.max_output),
    ):
        if not low <= count <= high:
            span = f"{low}" if low == high else f"{low} or more" if high > 10**6 else f"{low} to {high}"
            raise ModelError(f"{node_label(node)} has {count} {what}, opset {imports[domain]} wants {span}")
    for attribute in node.attribute:
        declared = schema.attributes.get(attribute.name)
        if declared is None:
            continue
        wanted = int(getattr(declared.type, "value", 0))
        if wanted != attribute.type:
            name_of = onnx.AttributeProto.AttributeType.Name
            raise ModelError(
                f"{node_label(node)}: attribute '{attribute.name}' has type "
                f"{name_of(attribute.type)}, opset {imports[domain]} wants {name_of(wanted)}"
            )


_VALUE_FIELDS = {
    "f": onnx.AttributeProto.FLOAT,
    "i": onnx.AttributeProto.INT,
    "s": onnx.AttributeProto.STRING,
    "t": onnx.AttributeProto.TENSOR,
    "g": onnx.AttributeProto.GRAPH,
    "sparse_tensor": onnx.AttributeProto.SPARSE_TENSOR,
    "tp": onnx.AttributeProto.TYPE_PROTO,
    "floats": onnx.AttributeProto.FLOATS,
    "ints": onnx.AttributeProto.INTS,
    "strings": onnx.AttributeProto.STRINGS,
    "tensors": onnx.AttributeProto.TENSORS,
    "graphs": onnx.AttributeProto.GRAPHS,
}


def _infer_type(attribute: onnx.AttributeProto, node: onnx.NodeProto) -> None:
    """Set the type of an attribute that states none (old files), where its value tells."""
    held = {field.name for field, _ in attribute.ListFields()} & _VALUE_FIELDS.keys()
    if len(held) != 1:
        raise ModelError(f"{node_label(node)}: attribute '{attribute.name}' is of an unknown type")
    attribute.type = _VALUE_FIELDS[held.pop()]


def _check_scope(scope: Scope, outer: set[str]) -> None:
    """Check names and edges of one body and of those nested in it. ``outer``: names visible from outside."""
    body, label, _ = scope
    where = f" in the {label}" if label else ""
    if isinstance(body, onnx.FunctionProto):
        inputs, outputs, constants = list(body.input), list(body.output), []
    else:
        inputs = [value.name for value in body.input]
        outputs = [value.name for value in body.output]
        constants = [tensor.name for tensor in body.initializer]
        constants += [sparse.values.name for sparse in body.sparse_initializer]
    _unique(inputs, "graph input", where)
    _unique(constants, "initializer", where)
    producer: dict[str, int] = {}
    known = {*inputs, *constants}
    for index, node in enumerate(body.node):
        for name in node.output:
            if not name:
                continue
            if name in producer:
                first = node_label(body.node[producer[name]])
                raise ModelError(f"the value '{name}' is produced twice{where}: by {first} and by {node_label(node)}")
            if name in known or name in outer:
                what = "a graph input or initializer" if name in known else "a value of the graph around it"
                raise ModelError(f"the value '{name}'{where} is produced by {node_label(node)}, but it is {what}")
            producer[name] = index
    for name in outputs:
        if name not in producer and name not in known and name not in outer:
            raise ModelError(f"nothing produces the graph output '{name}'{where}")
    needs: list[set[int]] = []
    ordered = True
    for index, node in enumerate(body.node):
        wanted: set[int] = set()
        for name in _uses(node):
            if name in producer:
                wanted.add(producer[name])
            elif name not in known and name not in outer and name in node.input:
                raise ModelError(f"nothing produces '{name}', an input of {node_label(node)}{where}")
        ordered = ordered and all(source < index for source in wanted)
        needs.append(wanted)
    if not ordered:
        order = _order(needs, body, where)
        nodes = [onnx.NodeProto.FromString(body.node[index].SerializeToString()) for index in order]
        del body.node[:]
        body.node.extend(nodes)
    visible: set[str] | None = None
    for node in body.node:
        for name, graph in attribute_graphs(node):
            if visible is None:
                visible = outer | known | producer.keys()
            _check_scope(Scope(graph, f"{name} of {node_label(node)}"), visible)


def _uses(node: onnx.NodeProto) -> set[str]:
    """Names a node reads: its inputs, and what the graphs it holds read from outside themselves."""
    names = {name for name in node.input if name}
    for _, graph in attribute_graphs(node):
        names |= _free_names(graph)
    return names


def _free_names(graph: onnx.GraphProto) -> set[str]:
    own = {value.name for value in graph.input}
    own.update(tensor.name for tensor in graph.initializer)
    own.update(sparse.values.name for sparse in graph.sparse_initializer)
    used = {value.name for value in graph.output}
    for node in graph.node:
        own.update(node.output)
        used |= _uses(node)
    return used - own


def _order(needs: list[set[int]], body: onnx.GraphProto | onnx.FunctionProto, where: str) -> list[int]:
    """A topological order that keeps to the given one where it can; ModelError when there is a cycle."""
    users: list[list[int]] = [[] for _ in needs]
    missing = [len(wanted) for wanted in needs]
    for index, wanted in enumerate(needs):
        for source in wanted:
            users[source].append(index)
    order = [index for index, count in enumerate(missing) if count == 0]
    at = 0
    while at < len(order):
        for user in users[order[at]]:
            missing[user] -= 1
            if missing[user] == 0:
                order.append(user)
        at += 1
    if len(order) == len(needs):
        return order
    # Every node left waits for another node left: walking back from any of them ends in a cycle.
    step = next(index for index, count in enumerate(missing) if count)
    trail: dict[int, int] = {}
    while step not in trail:
        trail[step] = len(trail)
        step = next(source for source in sorted(needs[step]) if missing[source])
    cycle = [node_label(body.node[index]) for index in list(trail)[trail[step] :][::-1]]
    shown = cycle[:4] + (["..."] if len(cycle) > 4 else [])
    raise ModelError(f"the graph has a cycle{where}: " + " -> ".join([*shown, cycle[0]]))


_CONTEXT = re.compile(r"Name:\s*(.*?)\s*OpType:\s*(\S+)")


def checker_message(error: Exception) -> str:
    """What ONNX's checker complains about, in one line, with the node it names."""
    text = str(error)
    context = _CONTEXT.search(text)
    first = text.split("==> Context", maxsplit=1)[0].strip().splitlines()
    message = " ".join(line.strip() for line in first) or type(error).__name__
    if context:
        name = context[1] if context[1].startswith("(output") else f"'{context[1]}'"
        return f"{context[2]} {name}: {message}"
    return message
