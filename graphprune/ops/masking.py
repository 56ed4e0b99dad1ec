"""What quantised parameters stand for, where an op takes them as they are: their zero, and their values."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from graphprune.coupler import Operand
from graphprune.facts import Facts
from graphprune.rules import attribute

Array = NDArray[Any]

#: (op, weight input) -> the inputs that hold its scale and its zero point; None where no input has it.
_QUANTISED: dict[tuple[str, int], tuple[int | None, int]] = {
    ("QLinearConv", 3): (4, 5),
    ("QLinearMatMul", 0): (1, 2),
    ("QLinearMatMul", 3): (4, 5),
    ("ConvInteger", 1): (None, 3),
    ("MatMulInteger", 1): (None, 3),
    ("DynamicQuantizeMatMul", 1): (2, 3),
    ("MatMulIntegerToFloat", 1): (3, 5),
    ("QGemm", 0): (1, 2),
    ("QGemm", 3): (4, 5),
    ("QAttention", 1): (4, 7),
    ("QLinearAdd", 0): (1, 2),
    ("QLinearAdd", 3): (4, 5),
    ("QLinearMul", 0): (1, 2),
    ("QLinearMul", 3): (4, 5),
    ("DynamicQuantizeLSTM", 1): (8, 9),
    ("DynamicQuantizeLSTM", 2): (10, 11),
}


def zero_point(operand: Operand, facts: Facts) -> Array | None:
    """The zero point of a quantised operand, shaped to broadcast against it; None for plain 0."""
    return _parameter(operand, 1, facts)


def dequantised(operand: Operand, array: Array, facts: Facts) -> Array:
    """The values that an operand's contents stand for, up to a factor for all of it where no scale is known.

    Parameters
    ----------
    array
        Contents of ``operand.value``, any dtype.

    Returns
    -------
    ndarray
        float32, of the same shape; ``array`` itself where the operand is not quantised.
    """
    if array.dtype.kind not in "iu":
        return array
    zero, scale = _parameter(operand, 1, facts), _parameter(operand, 0, facts)
    values: Array = array.astype(np.float32)
    if zero is not None:
        values -= zero.astype(np.float32)
    if scale is not None:
        values *= scale.astype(np.float32)
    return values


def _parameter(operand: Operand, which: int, facts: Facts) -> Array | None:
    """Scale (0) or zero point (1) of a quantised operand, shaped to broadcast against it."""
    node = operand.node
    places = _QUANTISED.get((node.op_type, operand.index))
    if places is None and node.op_type == "Gather":
        # A quantised table is dequantised behind the Gather.
        users = [user for user, place in node.outputs[0].uses() if user.op_type == "DequantizeLinear" and place == 0]
        node, places = (users[0], (1, 2)) if users else (node, None)
    index = None if places is None else places[which]
    value = node.inputs[index] if index is not None and index < len(node.inputs) else None
    known = None if value is None else facts.known(value)
    if known is None or known.size == 1:
        return known
    rank = facts.rank(operand.value) or 1
    if node.op_type == "DequantizeLinear":
        shape = facts.shape(node.outputs[0]) or ()
        last = bool(shape) and int(attribute(node, "axis", 1)) % len(shape) == len(shape) - 1
        return known if last and known.ndim == 1 else None
    if node.op_type == "DynamicQuantizeLSTM":
        return known.reshape(len(known), 1, -1)
    if node.op_type == "QGemm" and operand.index == 3 and attribute(node, "transB", 0):
        return known.reshape(-1, 1)
    if known.ndim == 1 and node.op_type == "QLinearMatMul" and operand.index == 0:
        return known.reshape(-1, 1)
    if node.op_type.endswith("Conv") or node.op_type == "ConvInteger":
        return known.reshape([-1] + [1] * (rank - 1))
    return known
