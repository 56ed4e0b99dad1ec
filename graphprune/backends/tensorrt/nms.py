"""Detection tails: NonMaxSuppression and all that follows it, replaced by EfficientNMS_TRT or cut off."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from graphprune.backends.tensorrt.legality import PLUGINS, problem
from graphprune.backends.tensorrt.rewriting import Builder, Context, attribute, given

#: Detections kept at most: the plugin works through its 4096 best scores, more outputs only cost memory.
MOST = 1000
NAMES = ("num_detections", "detection_boxes", "detection_scores", "detection_classes")
DOMAIN = "TRT"


@dataclass(frozen=True)
class Tail:
    """What became of a detection tail.

    Attributes
    ----------
    replaced
        Nodes that are gone, with what stands for them.
    failed
        Node -> why its tail stays.
    heads
        Names of the values at which the lowered graph ends: equal to the source's values of these names.
    """

    replaced: dict[ir.Node, list[str]]
    failed: dict[ir.Node, str]
    heads: tuple[str, ...]


def lower_tails(context: Context, raw_heads: bool) -> Tail:
    """Replace or cut the tails that a target does not take, or, with ``raw_heads``, all."""
    found = [node for node in context.model.graph if node.op_type == "NonMaxSuppression" and not node.domain]
    found = [node for node in found if raw_heads or problem(node, context) is not None]
    if not found:
        return Tail({}, {}, ())
    graph = context.model.graph
    if len(found) > 1 and not raw_heads:
        return Tail({}, dict.fromkeys(found, "it has several; build with --raw-heads and do this step yourself"), ())
    if not raw_heads and (context.target.rtx or context.target.tensorrt < PLUGINS["EfficientNMS_TRT"]):
        return Tail({}, dict.fromkeys(found, "TensorRT-RTX has no kernel and no plugin for it: build with --raw-heads"), ())
    after = _downstream(found)
    heads: list[ir.Value] = []
    for node in found:
        heads += [v for v in node.inputs[:2] if v is not None]
    kept = [v for v in graph.outputs if v.producer() not in after]
    ends = list(dict.fromkeys(heads)) if raw_heads else None
    if ends is None:
        made = _plugin(found[0], context)
        if isinstance(made, str):
            return Tail({}, {found[0]: made}, ())
        ends = made
    gone = [node for node in graph if node in after]
    how = "cut off: the graph ends at boxes and scores" if raw_heads else "EfficientNMS_TRT"
    graph.outputs[:] = [*kept, *(v for v in ends if v not in kept)]
    for node in reversed(gone):
        graph.remove(node, safe=True)
    return Tail({node: [how] for node in gone}, {}, tuple(str(v.name) for v in heads))


def _downstream(starts: list[ir.Node]) -> set[ir.Node]:
    seen, queue = set(starts), list(starts)
    while queue:
        for value in queue.pop().outputs:
            for use in value.uses():
                if use.node not in seen:
                    seen.add(use.node)
                    queue.append(use.node)
    return seen


def _scalar(context: Context, node: ir.Node, index: int, default: float) -> float | None:
    value = given(node, index)
    if value is None:
        return default
    known = context.facts.known(value)
    return None if known is None or not known.size else float(np.asarray(known).reshape(-1)[0])


def _plugin(node: ir.Node, context: Context) -> list[ir.Value] | str:
    """The plugin node and its outputs, or why it cannot be had."""
    boxes, scores = node.inputs[0], node.inputs[1]
    assert boxes is not None and scores is not None
    most, overlap, score = (_scalar(context, node, i, d) for i, d in ((2, 0.0), (3, 0.0), (4, 0.0)))
    if most is None or overlap is None or score is None:
        return "its limits are computed at run time: make them constants, or build with --raw-heads"
    dims, score_dims = context.facts.partial(boxes), context.facts.partial(scores)
    if dims is None or score_dims is None:
        return "the shapes of its boxes and scores are not known: give --shape"
    classes, n = score_dims[1], dims[1]
    limit = int(min(v for v in (most * classes if classes else None, n, MOST) if v is not None))
    b = Builder(context)
    ordered = b.op("Transpose", scores, perm=[0, 2, 1])
    outputs = [ir.Value(name=_free(context, name)) for name in NAMES]
    plugin = ir.node(
        "EfficientNMS_TRT", [boxes, ordered],
        {"plugin_version": "1", "background_class": -1, "max_output_boxes": limit, "score_threshold": score,
         "iou_threshold": overlap, "score_activation": 0, "box_coding": int(attribute(node, "center_point_box", 0))},
        outputs=outputs, domain=DOMAIN, name=f"{node.name or 'nms'}_EfficientNMS_TRT",
    )  # fmt: skip
    batch = dims[0]
    sizes: tuple[tuple[ir.DataType, tuple[int | None, ...]], ...] = (
        (ir.DataType.INT32, (batch, 1)), (ir.DataType.FLOAT, (batch, limit, 4)), (ir.DataType.FLOAT, (batch, limit)),
        (ir.DataType.INT32, (batch, limit)),
    )  # fmt: skip
    declared = boxes.shape[0] if batch is None and boxes.shape is not None else batch
    for value, (dtype, size) in zip(outputs, sizes, strict=True):
        value.type = ir.TensorType(dtype)
        value.shape = ir.Shape([declared, *size[1:]])
        context.facts.set_shape(value, size, dtype)
    context.model.graph.insert_after(node, [*b.nodes, plugin])
    context.model.graph.opset_imports[DOMAIN] = 1
    for made in (*b.nodes, plugin):
        context.made[made] = node
    return outputs


def _free(context: Context, name: str) -> str:
    taken = {v.name for n in context.model.graph.all_nodes() for v in n.outputs} | set(context.model.graph.initializers)
    taken |= {v.name for v in context.model.graph.inputs}
    while name in taken:
        name += "_"
    return name
