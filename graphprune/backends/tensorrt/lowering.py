"""Lowering: a model rewritten, node by node, into what one target's parser takes, with what became of each node."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise

import onnx
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

import graphprune.backends.tensorrt.lowerings  # noqa: F401  (registers them)
from graphprune.backends.tensorrt import preparing
from graphprune.backends.tensorrt.legality import Problem, extra_attributes, problem
from graphprune.backends.tensorrt.lowerings.functions import by_definition
from graphprune.backends.tensorrt.lowerings.types import stored_inputs, through_other_type
from graphprune.backends.tensorrt.nms import Tail, lower_tails
from graphprune.backends.tensorrt.rewriting import LOWERINGS, Builder, Context, Lowering, Values, told
from graphprune.backends.tensorrt.verdicts import Verdict
from graphprune.coupling import node_name
from graphprune.devices import Target
from graphprune.errors import ModelError
from graphprune.frontends.onnx import SOURCE_FILES
from graphprune.shapes import infer

#: Lowerings of lowerings, at most.
DEPTH = 12
#: The oldest opset that parsers read.
OLDEST = 9
#: IR version that came with an opset: what a runtime of that time reads.
IR_VERSIONS = ((13, 7), (15, 8), (19, 9), (21, 10), (23, 11))
ADVICE = {
    "op": "replace it in the network, or leave this part to the host",
    "opset": "export the network for an older opset",
    "type": "change its element type in the network",
    "read-by": "quantise to a type that this TensorRT has",
    "constant": "make that input a constant: --static fixes dynamic sizes, which may do it",
    "zero-point": "quantise symmetrically: int8 with zero point 0 (ONNX Runtime: ActivationSymmetric, WeightSymmetric)",
    "static": "fix dynamic sizes: --static",
    "pad-zero-two-axes": "--static fixes dynamic sizes, which lets it be lowered; or take JetPack 4.6.1 or later",
}
#: What helps whatever the problem is, by operator.
ADVICE_BY_OPERATOR = {
    **dict.fromkeys(
        ("ConvInteger", "MatMulInteger", "QLinearConv", "QLinearMatMul", "DynamicQuantizeLinear"),
        "quantise in QDQ format (QuantizeLinear and DequantizeLinear), symmetric, or build the floating-point model",
    ),
    **dict.fromkeys(("NonZero", "Compress", "Unique"), "cut the graph before it and do this step on the host"),
}


@dataclass
class Lowered:
    """A model for a target, and what became of every node of its source.

    Attributes
    ----------
    model
        The lowered model; only complete where no verdict is ``unsupported``.
    verdicts
        One for each node of the source, in its order.
    heads
        Names of values at which a detection tail was replaced or cut; what comes after them cannot be compared.
    """

    model: ir.Model
    target: Target
    verdicts: list[Verdict]
    heads: tuple[str, ...] = ()
    context: Context | None = field(default=None, repr=False)


def lower(
    model: ir.Model, target: Target, *, shapes: Mapping[str, tuple[int, ...]] | None = None, raw_heads: bool = False
) -> Lowered:
    """Rewrite a model for a target; the source is not changed.

    Parameters
    ----------
    model
        In normal form, as `graphprune.frontends.onnx.load` gives it.
    target
        What it is for.
    shapes
        Sizes to fix: inputs with them become static.
    raw_heads
        Cut detection tails off at boxes and scores.
    """
    source = _copy(model)
    opset = source.graph.opset_imports.get("", source.graph.opset_imports.get("ai.onnx", 1))
    if opset < OLDEST:
        source, opset = _raised(source), 13
    _fix_sizes(source, shapes or {})
    names = {node: node_name(node) for node in source.graph.all_nodes()}
    original = [node for node in source.graph.all_nodes() if node.op_type != "Constant"]
    context = Context(source, target, infer(source, {}), min(opset, target.opset), opset)
    changes: dict[ir.Node, list[str]] = {}
    if any(
        context.facts.dtype(v) == ir.DataType.DOUBLE for n in original for v in (*n.inputs, *n.outputs) if v is not None
    ):
        changes = preparing.doubles_to_float(context)
        context.facts = infer(source, {})
    tail = lower_tails(context, raw_heads)
    _join(changes, tail.replaced)
    _join(changes, preparing.fold(context))
    _join(changes, preparing.fold_weights(context))
    _join(changes, preparing.split_sequences(context))
    RemoveUnusedNodesPass()(source)  # what was computed in advance reads constants no more
    narrowed, lost = preparing.narrow_integers(context)
    _join(changes, narrowed)
    failures = {node: Problem("int64", reason) for node, reason in lost.items()}
    failures |= {node: Problem("tail", reason) for node, reason in tail.failed.items()}
    RemoveUnusedNodesPass()(source)
    _join(
        changes,
        {node: ["gone: nothing reads it any more"] for node in original if node.graph is None and node not in changes},
    )
    for node in list(source.graph.all_nodes()):
        _settle(node, context, changes, failures)
    _finish(context)
    return Lowered(source, target, _verdicts(original, names, changes, failures, tail), tail.heads, context)


def _copy(model: ir.Model) -> ir.Model:
    copy = model.clone()
    copy.meta.update({key: value for key, value in model.meta.items() if key == SOURCE_FILES})
    return copy


def _raised(model: ir.Model) -> ir.Model:
    """A model of an opset that parsers no longer read, converted by onnx's own converter."""
    from onnx import version_converter

    from graphprune.backends.onnx import to_proto
    from graphprune.frontends.onnx import load

    try:
        return _copy(load(version_converter.convert_version(to_proto(model), 13)).model)
    except RuntimeError as error:
        raise ModelError(
            f"the model is of an opset below {OLDEST}, and onnx cannot convert it: {error}. Export it anew for opset 13"
        ) from error


def _fix_sizes(model: ir.Model, shapes: Mapping[str, tuple[int, ...]]) -> None:
    for value in model.graph.inputs:
        if str(value.name) in shapes:
            value.shape = ir.Shape(shapes[str(value.name)])
    if shapes:  # what was declared for dynamic sizes no longer says anything
        for node in model.graph.all_nodes():
            for value in node.outputs:
                if value.shape is not None and not value.shape.is_static():
                    value.shape = None


def _join(changes: dict[ir.Node, list[str]], more: Mapping[ir.Node, list[str]]) -> None:
    for node, texts in more.items():
        known = changes.setdefault(node, [])
        known += [text for text in texts if text not in known]


def _settle(
    node: ir.Node, context: Context, changes: dict[ir.Node, list[str]], failures: dict[ir.Node, Problem], depth: int = 0
) -> None:
    """Lower a node until what stands for it is taken, or note why that cannot be."""
    origin = context.origin(node)
    found = problem(node, context)
    if found is None:
        silent, _ = extra_attributes(node, context)
        for name in silent:
            del node.attributes[name]
        if silent:
            changes.setdefault(origin, []).append(f"without {', '.join(silent)}, at its default")
        return
    if depth >= DEPTH or origin in failures:
        failures.setdefault(origin, found)
        return
    for lowering in _candidates(node, found):
        builder = Builder(context)
        values = lowering(node, builder)
        if values is None:
            _discard(builder)
            continue
        made = _splice(node, values, builder, context)
        _join(changes, {origin: [told(lowering)]} if depth == 0 else {})
        for inner in made:
            _settle(inner, context, changes, failures, depth + 1)
        return
    failures[origin] = found


def _candidates(node: ir.Node, found: Problem) -> list[Lowering]:
    own = list(LOWERINGS.get(node.op_type, []))
    if found.kind == "type":
        return [through_other_type, *own, by_definition]
    if found.kind in ("constant", "float-constants"):
        return [stored_inputs, *own, by_definition]
    return [*own, by_definition]


def _discard(builder: Builder) -> None:
    for node in reversed(builder.nodes):
        for index in range(len(node.inputs)):
            node.replace_input_with(index, None)
    for value in builder.constants:
        builder.context.model.graph.initializers.pop(str(value.name), None)


def _splice(node: ir.Node, values: Values, builder: Builder, context: Context) -> list[ir.Node]:
    """Put the builder's nodes in a node's place; its outputs keep their names."""
    graph = node.graph
    assert graph is not None
    new = [values] if isinstance(values, ir.Value) else list(values)
    own = {v for n in builder.nodes for v in n.outputs}
    new = [v if v in own else builder.op("Identity", v) for v in new]
    origin = context.origin(node)
    for made in builder.nodes:
        context.made[made] = origin
    old = list(node.outputs)[: len(new)]
    for was, now in zip(old, new, strict=True):
        kept, found = context.facts.type(was), context.facts.partial(now)
        if kept.dims is not None and (found is None or None in found):
            # What was known of the old value's shape holds for the new one, however it is made.
            known = (
                kept.dims
                if found is None
                else tuple(n if o is None else o for n, o in zip(kept.dims, found, strict=True))
            )
            context.facts.set_shape(now, known, kept.dtype)
    ir.convenience.replace_nodes_and_values(graph, node, [node], builder.nodes, old, new)
    return list(builder.nodes)


def _finish(context: Context) -> None:
    model = context.model
    RemoveUnusedNodesPass()(model)
    model.graph.opset_imports.pop("ai.onnx", None)
    model.graph.opset_imports[""] = context.opset
    used = {node.domain for node in model.graph.all_nodes()}
    for domain in [d for d in model.graph.opset_imports if d and d not in used]:
        del model.graph.opset_imports[domain]
    fitting = next(
        (ir_ for (low, ir_), (high, _) in pairwise((*IR_VERSIONS, (99, 0))) if low <= context.opset < high), 7
    )
    model.ir_version = fitting
    context.facts = infer(model, {})
    for value in model.graph.outputs:
        dims = context.facts.partial(value)
        if value.shape is None and dims is not None:
            value.shape = ir.Shape(dims)
        if value.dtype is None and (dtype := context.facts.dtype(value)) is not None:
            value.type = ir.TensorType(dtype)


def _advice(node: ir.Node, failure: Problem) -> str:
    """What to do about a node that is not taken."""
    if node.domain not in ("", "ai.onnx"):
        return "export the network again without ONNX Runtime's own fusions, for plain ONNX"
    return ADVICE_BY_OPERATOR.get(node.op_type) or ADVICE.get(failure.kind, "change it in the network")


def _verdicts(
    original: list[ir.Node],
    names: Mapping[ir.Node, str],
    changes: Mapping[ir.Node, list[str]],
    failures: Mapping[ir.Node, Problem],
    tail: Tail,
) -> list[Verdict]:
    found = []
    for node in original:
        failure = failures.get(node)
        if failure is not None:
            advice = "" if node in tail.failed else _advice(node, failure)
            found.append(Verdict(names[node], node.op_type, "unsupported", failure.reason, advice))
        elif node in changes:
            found.append(Verdict(names[node], node.op_type, "lowered", "; ".join(changes[node])))
        else:
            found.append(Verdict(names[node], node.op_type, "ok"))
    return found


def is_valid(model: ir.Model) -> str:
    """What onnx's checker says of a lowered model; empty where it is content. Plugin nodes are passed over."""
    from graphprune.backends.onnx import to_proto

    if any(value.shape is None or value.dtype is None for value in model.graph.outputs):
        return ""  # the checker wants every output's rank, which no inference may tell
    try:
        onnx.checker.check_model(to_proto(model))
    except onnx.checker.ValidationError as error:
        return str(error)
    return ""
