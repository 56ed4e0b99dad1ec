"""Where a layer's feature map is read: behind the normalisation that follows it, behind the activation after that."""

from __future__ import annotations

import onnx_ir as ir

NORMALISING = frozenset({
    "BatchNormalization", "InstanceNormalization", "GroupNormalization", "LayerNormalization",
    "RMSNormalization", "SimplifiedLayerNormalization",
})  # fmt: skip
ACTIVATIONS = frozenset({
    "Relu", "LeakyRelu", "PRelu", "ThresholdedRelu", "Clip", "Elu", "Selu", "Celu", "Gelu", "FastGelu", "QuickGelu", "BiasGelu",
    "Sigmoid", "HardSigmoid", "HardSwish", "Swish", "Mish", "Softplus", "Softsign", "Tanh",
})  # fmt: skip
#: Followed by a product with what they are of, they make one activation: SiLU, HardSwish.
_GATES = frozenset({"Sigmoid", "HardSigmoid"})


def normalises(node: ir.Node) -> bool:
    """Whether a node is a normalisation, a fused one included."""
    return node.op_type.endswith("Normalization") or node.op_type == "GroupNorm"


def behind_norm(value: ir.Value) -> ir.Value:
    """The output of the normalisation behind a layer, past an addition of a bias; else the layer's own."""
    current = value
    for _ in range(2):
        uses = tuple(current.uses())
        if len(uses) != 1:
            return value
        node = uses[0].node
        if node.op_type in NORMALISING:
            return node.outputs[0]
        if node.op_type not in ("Add", "Reshape") or not _has_constant(node):
            return value
        current = node.outputs[0]
    return value


def behind_activation(value: ir.Value) -> ir.Value:
    """The output of the activation behind a layer and its normalisation, past biases and a residual addition; else theirs."""
    start = current = behind_norm(value)
    for _ in range(3):
        users = [user for user, _ in current.uses()]
        if len(users) == 2:
            return _gated(users) or start
        if len(users) != 1:
            return start
        node = users[0]
        if node.op_type in ACTIVATIONS and node.inputs[0] is current:
            return node.outputs[0]
        if node.op_type != "Add" and not (node.op_type == "Reshape" and _has_constant(node)):
            return start
        current = node.outputs[0]
    return start


def _has_constant(node: ir.Node) -> bool:
    return any(v is not None and v.const_value is not None for v in node.inputs)


def _gated(users: list[ir.Node]) -> ir.Value | None:
    """``x * sigmoid(x)`` written as two nodes."""
    for gate, product in (users, users[::-1]):
        if gate.op_type in _GATES and product.op_type == "Mul" and gate.outputs[0] in product.inputs:
            return product.outputs[0]
    return None
