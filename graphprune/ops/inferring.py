"""What ONNX's own shape inference passes over or gets wrong, op by op: what does not fit, and sizes that it leaves open."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from graphprune.ops.traits import weight_input

Dims = tuple[int | None, ...]
Array = NDArray[Any]
#: Shapes of the inputs and of the first output, as far as they are known -> what is wrong with them.
Check = Callable[[ir.Node, Sequence[Dims | None], Dims | None], str | None]

#: Attributes whose default inference takes for another one.
MISREAD: Mapping[str, Mapping[str, int]] = {"STFT": {"onesided": 1}}
#: Ops that runtimes give one-element vectors as well, the schema only scalars.
_SCALARS = frozenset({"Range"})
#: Inputs that hold the shape of the output, which inference leaves unread.
_OUTPUT_SHAPES = {"MaxUnpool": 2}
#: Ops whose output has nothing left where the input is too small.
_SPATIAL = frozenset({
    "Conv", "ConvInteger", "QLinearConv", "ConvTranspose", "MaxPool", "AveragePool", "LpPool", "FusedConv", "NhwcConv",
})  # fmt: skip


def takes_vectors(node: ir.Node) -> bool:
    """Whether vectors of one element serve as the scalars that the schema asks for."""
    return node.op_type in _SCALARS


def told_shape(node: ir.Node, data: Sequence[Array | None]) -> Dims | None:
    """The shape of the output that an input gives, which inference does not read."""
    index = None if node.domain else _OUTPUT_SHAPES.get(node.op_type)
    array = None if index is None or index >= len(data) else data[index]
    return None if array is None else tuple(int(d) for d in array)


def needs_room(node: ir.Node) -> bool:
    """Whether an empty output means that the input is too small."""
    return node.op_type in _SPATIAL


def read_sizes(node: ir.Node, dims: Dims) -> Array | None:
    """What Shape or Size gives for an input of this shape, int64; None where it is not all known."""
    if node.op_type == "Shape":
        dims = dims[node.attributes.get_int("start", 0) : node.attributes.get_int("end", None)]
    known = [d for d in dims if d is not None]
    if len(known) < len(dims):
        return None
    if node.op_type == "Shape":
        return np.array(known, np.int64)
    size = math.prod(known)
    return np.array(size, np.int64) if size < 2**63 else None


def misfit(node: ir.Node, inputs: Sequence[Dims | None], output: Dims | None) -> str | None:
    """What does not fit in a node's shapes though inference lets it pass: windows, contractions, numbers of elements."""
    checks = () if node.domain else _CHECKS.get(node.op_type, ())
    return next((message for check in checks if (message := check(node, inputs, output))), None)


def _elements(node: ir.Node, inputs: Sequence[Dims | None], output: Dims | None) -> str | None:
    a = inputs[0]
    if len(inputs) < 2 or a is None or output is None or None in a or None in output:
        return None
    old, new = (math.prod(d for d in dims if d is not None) for dims in (a, output))
    return None if old == new else f"Reshape of {list(a)}, {old} elements, to {list(output)}, {new} elements"


def _contraction(node: ir.Node, inputs: Sequence[Dims | None], output: Dims | None) -> str | None:
    a, b = (*inputs, None, None)[:2]
    if not a or not b or len(a) < 2 or len(b) < 2:
        return None
    get = node.attributes.get_int
    if node.op_type == "Gemm":
        left, right = a[0] if get("transA", 0) else a[1], b[1] if get("transB", 0) else b[0]
    else:
        left, right = a[1], b[1] and b[1] * int(get("group", 1))
    if left is None or right is None or left == right:
        return None
    return f"{node.op_type} contracts {left} of shape {list(a)} with {right} of shape {list(b)}"


def _window(node: ir.Node, inputs: Sequence[Dims | None], output: Dims | None) -> str | None:
    """Say where a window is larger than its padded input: inference rounds that towards one output.

    Runtimes let a pool's window hang over the end of its input, a convolution's not.
    """
    index, get = weight_input(node), node.attributes.get_ints
    x = inputs[0] if inputs else None
    weight = inputs[index] if len(inputs) > index else None
    kernel = get("kernel_shape") or (weight[2:] if weight else None)
    if x is None or kernel is None or node.attributes.get_string("auto_pad", "NOTSET").startswith("SAME"):
        return None
    rank = len(kernel)
    dilations, pads = get("dilations") or [1] * rank, get("pads") or [0] * 2 * rank
    if len(x) != rank + 2 or len(dilations) != rank or len(pads) != 2 * rank:
        return None  # inference has said so
    for axis, (size, window) in enumerate(zip(x[2:], kernel, strict=True)):
        if size is None or window is None:
            continue
        if 0 < size + pads[axis] + pads[rank + axis] < (window - 1) * dilations[axis] + 1:
            return f"the input {list(x)} is too small for the window {list(kernel)} of {node.op_type}"
    return None


_CHECKS: Mapping[str, tuple[Check, ...]] = {
    "Conv": (_window, _contraction), "ConvInteger": (_window,), "QLinearConv": (_window,),
    "Gemm": (_contraction,), "Reshape": (_elements,),
}  # fmt: skip
