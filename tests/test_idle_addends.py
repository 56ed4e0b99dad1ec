"""A bias that is computed and zero goes; any other stays."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

import graphprune as gp

RNG = np.random.default_rng(0)


def network(fill: float, op: str) -> onnx.ModelProto:
    """Conv - Relu - Conv - Relu - GlobalAveragePool; the first has a bias of ``fill``, as long as its weight's shape says."""
    weights = {"w1": RNG.normal(size=(8, 3, 3, 3)), "w2": RNG.normal(size=(4, 8, 3, 3))}
    tensors = [numpy_helper.from_array(value.astype(np.float32), name) for name, value in weights.items()]
    scalar = numpy_helper.from_array(np.array([fill], np.float32), "fill")
    nodes = [helper.make_node("Shape", ["w1"], ["n"], start=0, end=1)]
    if op == "Expand":
        tensors.append(scalar)
        nodes += [helper.make_node("CastLike", ["fill", "x"], ["like"]), helper.make_node("Expand", ["like", "n"], ["b"])]
    else:
        nodes += [helper.make_node("ConstantOfShape", ["n"], ["b"], value=scalar)]
    nodes += [
        helper.make_node("Conv", ["x", "w1", "b"], ["c1"]), helper.make_node("Relu", ["c1"], ["r1"]),
        helper.make_node("Conv", ["r1", "w2"], ["c2"]), helper.make_node("GlobalAveragePool", ["c2"], ["y"]),
    ]  # fmt: skip
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in (("x", [1, 3, 8, 8]), ("y", None)))
    return helper.make_model(helper.make_graph(nodes, "g", [x], [y], tensors), opset_imports=[helper.make_opsetid("", 18)])


@pytest.mark.parametrize("op", ["Expand", "ConstantOfShape"])
@pytest.mark.parametrize("fill", [0.0, 0.5])
def test_only_zeros_go(fill: float, op: str) -> None:
    model = network(fill, op)
    state = gp.inspect(model)
    convs = [node for node in state.model.graph if node.op_type == "Conv"]
    assert len(convs[0].inputs) == (2 if fill == 0 else 3)
    x = RNG.normal(size=(1, 3, 8, 8)).astype(np.float32)
    before = ort.InferenceSession(model.SerializeToString()).run(None, {"x": x})[0]
    result = gp.prune(model, rate=0.5, scope="group")
    after = ort.InferenceSession(result.proto().SerializeToString()).run(None, {"x": x})[0]
    assert result.plan.verify["passed"] and after.shape == before.shape
    assert len(result.plan.tensors["w1"]["kept"]["0"]) == 4
