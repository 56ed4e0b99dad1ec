"""One normal form for what ONNX can write in many ways: constants are initializers, functions are inlined."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import onnx.inliner
import onnx.shape_inference
import onnx_ir as ir

from graphprune.errors import ModelError
from graphprune.frontends.onnx_checks import schema_of
from graphprune.frontends.onnx_proto import attribute_graphs, node_label, scopes
from graphprune.frontends.onnx_tensors import DENSE_LIMIT, Store, to_dense

PLAN_NAME = "graphprune.plan_name"
"""Key in ``Value.meta`` of an initializer whose name is not unique in the model: its name in plans."""

_MIN_IR = 4
_OWN_NAME = "graphprune.own_name"
"""Key in the metadata of Constant nodes of local functions: their output's name in the file."""


def normalize_proto(model: onnx.ModelProto, store: Store) -> None:
    """Rewrite what ``onnx_ir`` does not read: sparse tensors, alias domains, negative sizes."""
    for entry in model.opset_import:
        if entry.domain == "ai.onnx":
            entry.domain = ""
    model.ClearField("training_info")
    budget = DENSE_LIMIT
    for body, _, _ in scopes(model):
        if isinstance(body, onnx.GraphProto):
            for sparse in body.sparse_initializer:
                dense = to_dense(sparse, store, sparse.values.name)
                budget -= len(dense.raw_data)
                _afford(budget)
                body.initializer.append(dense)
            body.ClearField("sparse_initializer")
            for value in (*body.input, *body.output, *body.value_info):
                _clear_any_sizes(value.type)
        for node in body.node:
            for attribute in node.attribute:
                if attribute.type == onnx.AttributeProto.SPARSE_TENSOR and node.op_type == "Constant":
                    dense = to_dense(attribute.sparse_tensor, store, node.output[0])
                    budget -= len(dense.raw_data)
                    _afford(budget)
                    doc = attribute.doc_string
                    attribute.Clear()
                    attribute.name, attribute.type, attribute.doc_string = (
                        "value",
                        onnx.AttributeProto.TENSOR,
                        doc,
                    )
                    attribute.t.CopyFrom(dense)
                elif attribute.type in (
                    onnx.AttributeProto.SPARSE_TENSOR,
                    onnx.AttributeProto.SPARSE_TENSORS,
                ):
                    raise ModelError(
                        f"{node_label(node)}: the sparse attribute '{attribute.name}' is not supported; "
                        "make it a dense tensor"
                    )


def inline_functions(model: onnx.ModelProto) -> onnx.ModelProto:
    """Put the bodies of local functions in the place of their calls, under names used nowhere else."""
    if not model.functions:
        return model
    opset = {entry.domain: entry.version for entry in model.opset_import}.get("", 0)
    imports = [entry for function in model.functions for entry in function.opset_import]
    convert = False
    for function in model.functions:
        if _differs(function, opset):
            convert = True
            continue
        for entry in function.opset_import:
            # The inliner passes over a function of another opset, whether that makes a difference or not.
            if entry.domain in ("", "ai.onnx"):
                entry.version = opset
    _fill_defaults(model)
    _mark_constants(model)
    try:
        if convert:
            # The conversion to the model's opset asks for the types of what the functions are called with.
            model = onnx.shape_inference.infer_shapes(model)
        flat = onnx.inliner.inline_local_functions(model, convert)
    except Exception as error:
        raise ModelError(
            f"the model's local functions cannot be inlined: {str(error).splitlines()[0].rsplit('failed: ', 1)[-1]}"
            + ("; they use another opset than the model: export both with one opset" if convert else "")
        ) from error
    if flat.functions:
        names = ", ".join(f"'{function.name}'" for function in flat.functions[:5])
        raise ModelError(
            f"the model's local functions {names} cannot be inlined: they import other opsets than the model; "
            "export both with one opset"
        )
    own = {function.domain for function in model.functions}
    used = {node.domain for body, _, _ in scopes(flat) for node in body.node}
    opsets = {entry.domain: entry.version for entry in (*imports, *flat.opset_import)}
    flat.ClearField("opset_import")
    for domain, version in opsets.items():
        if domain in used or (domain not in own and domain != "ai.onnx"):
            flat.opset_import.add(domain=domain, version=version)
    return flat


def _differs(function: onnx.FunctionProto, opset: int) -> bool:
    """Whether an operator in the function means something else in the model's opset."""
    own = {entry.domain: entry.version for entry in function.opset_import}
    version = own.get("", own.get("ai.onnx", opset))
    if version == opset:
        return False
    nodes = list(function.node)
    for node in nodes:
        for _, graph in attribute_graphs(node):
            nodes.extend(graph.node)
        if node.domain in ("", "ai.onnx"):
            there, here = schema_of(node.op_type, version, ""), schema_of(node.op_type, opset, "")
            if there is not None and (here is None or here.since_version != there.since_version):
                return True
    return False


def _mark_constants(model: onnx.ModelProto) -> None:
    """Note the name of each constant of a function, which the inliner changes."""
    for body, _, function in scopes(model):
        if function is None:
            continue
        for node in body.node:
            if node.op_type == "Constant" and node.output:
                node.metadata_props.add(key=_OWN_NAME, value=node.output[0])


def _fill_defaults(model: onnx.ModelProto) -> None:
    """State at every call the attributes it leaves to the function's defaults; the inliner forgets those."""
    defaults = {
        (function.domain, function.name, function.overload): list(function.attribute_proto)
        for function in model.functions
        if function.attribute_proto
    }
    if not defaults:
        return
    for body, _, _ in scopes(model):
        for node in body.node:
            stated = {attribute.name for attribute in node.attribute}
            for attribute in defaults.get((node.domain, node.op_type, node.overload), ()):
                if attribute.name not in stated:
                    node.attribute.append(attribute)


def _afford(budget: int) -> None:
    if budget < 0:
        raise ModelError(f"the sparse tensors of the model would take over {DENSE_LIMIT:,} bytes as dense ones")


def _clear_any_sizes(type_proto: onnx.TypeProto) -> None:
    """A size of -1, or the name ``?``, is how some exporters write "any": make it a size that is not stated.

    Axes of one name have one size; ``?`` (Paddle's) stands for several sizes at once, so it is no name.
    """
    kind = type_proto.WhichOneof("value")
    if kind not in ("tensor_type", "sparse_tensor_type"):
        return
    for dim in getattr(type_proto, kind).shape.dim:
        if dim.WhichOneof("value") == "dim_value" and dim.dim_value < 0:
            dim.ClearField("dim_value")
        elif dim.WhichOneof("value") == "dim_param" and not any(c.isalnum() or c == "_" for c in dim.dim_param):
            dim.ClearField("dim_param")


def normalize(model: ir.Model) -> None:
    """Bring an IR model to normal form, in place: constants as initializers.

    Initializers listed as graph inputs become plain initializers where that listing is the file format's (IR
    version below 4) or the exporter's habit (all of them are listed); otherwise they are defaults that a
    caller may override, and stay inputs.
    """
    _plain_initializers(model)
    _restore_names(model)
    for graph in list(model.graphs()):
        _lift_constants(graph)
    _name_for_plans(model)


def _plain_initializers(model: ir.Model) -> None:
    graph = model.graph
    listed = [value for value in graph.inputs if value.is_initializer()]
    habit = len(listed) == len(graph.initializers) and any(
        value.const_value is not None and len(value.const_value.shape) > 1 for value in listed
    )
    if listed and (model.ir_version < _MIN_IR or habit):
        real = [value for value in graph.inputs if not value.is_initializer()]
        graph.inputs.clear()
        graph.inputs.extend(real)
    model.ir_version = max(model.ir_version, _MIN_IR)


def _restore_names(model: ir.Model) -> None:
    """Give constants of local functions back their names in the file, where one call alone was inlined."""
    marked = [(node, node.metadata_props.pop(_OWN_NAME)) for node in model.graph.all_nodes()
              if _OWN_NAME in node.metadata_props]  # fmt: skip
    if not marked:
        return
    taken = {value.name for node in model.graph.all_nodes() for value in node.outputs}
    for graph in model.graphs():
        taken.update(value.name for value in (*graph.inputs, *graph.initializers.values()))
    calls = Counter(name for _, name in marked)
    for node, name in marked:
        if calls[name] == 1 and name not in taken:
            node.outputs[0].name = name


def _lift_constants(graph: ir.Graph) -> None:
    """Turn Constant nodes into initializers of the same name and graph.

    A constant that is itself an output of its graph stays a node: an initializer as a graph output is
    not valid everywhere.
    """
    for node in list(graph):
        if node.op_type != "Constant" or node.domain != "":
            continue
        output = node.outputs[0]
        if output.is_graph_output():
            continue
        tensor = _constant(node, output.name or "")
        value = ir.Value(
            name=output.name,
            shape=ir.Shape(tensor.shape.numpy()),
            type=ir.TensorType(tensor.dtype),
            const_value=tensor,
            doc_string=output.doc_string or node.doc_string,
            metadata_props=dict(output.metadata_props),
        )
        value.meta.update(output.meta)
        output.replace_all_uses_with(value)
        graph.remove(node, safe=True)
        graph.register_initializer(value)


def _constant(node: ir.Node, name: str) -> ir.TensorProtocol:
    """The tensor a Constant node stands for, whichever attribute states it."""
    if len(node.attributes) != 1:
        raise ModelError(f"Constant (output '{name}') must have one attribute, it has {len(node.attributes)}")
    attribute = next(iter(node.attributes.values()))
    if attribute.is_ref():
        raise ModelError(f"Constant (output '{name}') refers to an attribute of a function it is not in")
    value = attribute.value
    match attribute.name:
        case "value":
            if attribute.type != ir.AttributeType.TENSOR:
                raise ModelError(f"Constant (output '{name}') has a 'value' that is not a tensor")
            tensor: ir.TensorProtocol = value
            return tensor
        case "value_int" | "value_ints":
            return ir.Tensor(np.asarray(value, np.int64), name=name)
        case "value_float" | "value_floats":
            return ir.Tensor(np.asarray(value, np.float32), name=name)
        case "value_string":
            return ir.StringTensor([_bytes(value)], shape=ir.Shape([]), name=name)
        case "value_strings":
            items = [_bytes(item) for item in value]
            return ir.StringTensor(items, shape=ir.Shape([len(items)]), name=name)
    raise ModelError(f"Constant (output '{name}') has the attribute '{attribute.name}', which Constant does not")


def _bytes(value: str | bytes) -> bytes:
    return value if isinstance(value, bytes) else value.encode()


def _name_for_plans(model: ir.Model) -> None:
    """Give initializers that share their name (in sibling subgraphs) a name of their own for plans."""
    count: dict[str, int] = {}
    holders: list[tuple[ir.Value, str]] = []
    stack: list[tuple[ir.Graph, str]] = [(model.graph, "")]
    while stack:
        graph, path = stack.pop()
        for value in graph.initializers.values():
            name = value.name or ""
            count[name] = count.get(name, 0) + 1
            holders.append((value, path))
        for node in graph:
            for attribute in node.attributes.values():
                if attribute.type == ir.AttributeType.GRAPH:
                    inner = [attribute.as_graph()]
                elif attribute.type == ir.AttributeType.GRAPHS:
                    inner = list(attribute.as_graphs())
                else:
                    continue
                label = node.name or next((value.name for value in node.outputs if value.name), node.op_type)
                for index, nested in enumerate(inner):
                    tail = f"{attribute.name}[{index}]" if len(inner) > 1 else attribute.name
                    stack.append((nested, f"{path}{label}/{tail}/"))
    taken = set(count)
    for value, path in holders:
        name = value.name or ""
        if count[name] < 2 or not path:
            continue
        fresh, number = f"{path}{name}", 1
        while fresh in taken:
            number += 1
            fresh = f"{path}{name}_{number}"
        taken.add(fresh)
        value.meta[PLAN_NAME] = fresh
