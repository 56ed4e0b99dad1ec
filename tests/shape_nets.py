"""Models in text, and the shapes that are found in them."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from graphprune.shapes import infer

FLOAT, INT64, BOOL = ir.DataType.FLOAT, ir.DataType.INT64, ir.DataType.BOOL


def parse(text: str, opset: str = '"" : 18', **weights: tuple[int, ...]) -> ir.Model:
    """Build a model from ONNX's text format, with initializers of zeros."""
    proto = onnx.parser.parse_model(f"<ir_version: 8, opset_import: [{opset}]>\n{text}")
    for name, shape in weights.items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array(np.zeros(shape, np.float32), name))
    return ir.from_proto(proto)


def by_name(model: ir.Model) -> dict[str, ir.Value]:
    found = {v.name: v for g in model.graphs() for v in (*g.inputs, *g.initializers.values())}
    found.update((v.name, v) for n in model.graph.all_nodes() for v in n.outputs)
    return {str(k): v for k, v in found.items()}


def shapes_of(text: str, opset: str = '"" : 18', **inputs: tuple[int, ...]) -> dict[str, Any]:
    model = parse(text, opset)
    facts = infer(model, inputs)
    return {name: facts.partial(v) for name, v in by_name(model).items()}
