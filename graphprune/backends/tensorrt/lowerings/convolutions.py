"""Windows over one spatial axis, as windows over two of which one has size 1."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir

from graphprune.backends.tensorrt.rewriting import Builder, Values, attribute, lowers, schema, used

#: Attributes that hold one number an axis, with what a new first axis gets.
_PER_AXIS = {"kernel_shape": 1, "strides": 1, "dilations": 1, "output_padding": 0}


@lowers("Conv", "ConvTranspose", "MaxPool", "AveragePool", "LpPool")
def as_two_dimensional(node: ir.Node, b: Builder) -> Values | None:
    """A spatial axis of size 1 before the only one."""
    x = node.inputs[0]
    assert x is not None
    if b.rank(x) != 3 or used(node, 1) or "output_shape" in node.attributes:
        return None
    attributes: dict[str, Any] = {name: attribute(node, name) for name in node.attributes}
    for name, fill in _PER_AXIS.items():
        if name in attributes:
            attributes[name] = [fill, *attributes[name]]
    if "pads" in attributes:
        start, end = attributes["pads"]
        attributes["pads"] = [0, start, 0, end]
    if not _known_here(node.op_type, attributes, b):
        return None
    inputs: list[ir.Value | None] = [b.unsqueeze(x, 2)]
    if node.op_type.startswith("Conv"):
        weight = node.inputs[1]
        assert weight is not None
        known = b.facts.constant(weight)
        if known is not None:
            inputs.append(b.constant(known[:, :, None]))
        else:
            inputs.append(b.unsqueeze(weight, 2))
        inputs.extend(node.inputs[2:])
    return b.squeeze(b.op(node.op_type, *inputs, **attributes), 2)


@lowers("AveragePool", "MaxPool")
def over_everything(node: ir.Node, b: Builder) -> Values | None:
    """The mean or the largest of all, where the window reaches over all."""
    x, window = node.inputs[0], attribute(node, "kernel_shape") or []
    assert x is not None
    before, after = b.shape(x), b.shape(node.outputs[0])
    if before is None or after is None or used(node, 1) or any(attribute(node, "pads") or ()):
        return None
    if any(size != 1 for size in after[2:]) or any(w < n for w, n in zip(window, before[2:], strict=True)):
        return None
    # Nothing is padded, so what the window holds beyond the end (ceil_mode) counts for neither.
    return b.op(f"Global{node.op_type}", x)


def _known_here(op_type: str, attributes: dict[str, Any], b: Builder) -> bool:
    """Leave out what says nothing; False where the target's opset lacks what says something."""
    to = schema(op_type, b.opset)
    if to is None:
        return False
    for name in [name for name in attributes if name not in to.attributes]:
        if any(int(v) != 1 for v in attributes.pop(name)):
            return False
    return True
