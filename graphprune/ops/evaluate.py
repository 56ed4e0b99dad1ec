"""Compute one ONNX node on small known arrays: the arithmetic that real files do on shapes at run time.

The common operators are a table of short numpy functions; what is not in the table goes to the ONNX
reference evaluator. Nothing here raises on odd input: a node that cannot be computed has no known value.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir

Array = npt.NDArray[Any]
Arrays = Sequence[Array | None]

# Random by definition, or costly in plain Python while never part of shape arithmetic.
_NEVER = frozenset(
    [
        "Bernoulli",
        "Multinomial",
        "RandomNormal",
        "RandomNormalLike",
        "RandomUniform",
        "RandomUniformLike",
        "Dropout",
        "If",
        "Loop",
        "Scan",
        "SequenceMap",
        "Conv",
        "ConvInteger",
        "ConvTranspose",
        "QLinearConv",
        "DeformConv",
        "LSTM",
        "GRU",
        "RNN",
        "NonMaxSuppression",
        "RoiAlign",
        "MaxRoiPool",
        "Attention",
        "ImageDecoder",
        "Optional",
        "OptionalGetElement",
        "OptionalHasElement",
        "Loss",
    ]
)
# Outputs whose size only the data tell, yet never above the inputs' own size times their rank.
_BOUNDED = frozenset({"NonZero", "Compress", "Unique"})


def _ints(node: ir.Node, xs: Arrays, index: int, name: str) -> list[int] | None:
    """Read a list of integers from input ``index`` (newer opsets) or from the attribute ``name`` (older)."""
    if index < len(xs) and (array := xs[index]) is not None:
        return [int(i) for i in array.reshape(-1)]
    values = node.attributes.get_ints(name)
    return None if values is None else [int(i) for i in values]


def _axis(node: ir.Node, default: int = 0) -> int:
    return int(node.attributes.get_int("axis", default))


def _need(xs: Arrays, index: int) -> Array:
    array = xs[index] if index < len(xs) else None
    if array is None:
        raise ValueError(f"input {index} is missing")
    return array


def _unary(function: Callable[..., Any]) -> Callable[[ir.Node, Arrays], Any]:
    return lambda node, xs: function(_need(xs, 0))


def _binary(function: Callable[..., Any]) -> Callable[[ir.Node, Arrays], Any]:
    return lambda node, xs: function(_need(xs, 0), _need(xs, 1))


def _fold(function: Callable[..., Any]) -> Callable[[ir.Node, Arrays], Any]:
    def run(node: ir.Node, xs: Arrays) -> Any:
        total = _need(xs, 0)
        for i in range(1, len(xs)):
            total = function(total, _need(xs, i))
        return total

    return run


def _div(a: Array, b: Array) -> Array:
    if a.dtype.kind not in "iu":
        return np.asarray(a / b)
    if not np.all(b):
        raise ZeroDivisionError
    # Integer division of ONNX truncates towards zero; numpy's floors.
    quotient = a // b
    return np.asarray(quotient + ((a % b != 0) & ((a < 0) != (b < 0))), dtype=a.dtype)


def _mod(node: ir.Node, xs: Arrays) -> Any:
    a, b = _need(xs, 0), _need(xs, 1)
    if a.dtype.kind in "iu" and not np.all(b):
        raise ZeroDivisionError
    return np.fmod(a, b) if node.attributes.get_int("fmod", 0) else np.mod(a, b)


def _cast(node: ir.Node, xs: Arrays) -> Any:
    target = ir.DataType(node.attributes["to"].as_int())
    return _convert(_need(xs, 0), target.numpy())


def _convert(array: Array, dtype: np.dtype[Any]) -> Array:
    if dtype.kind in "OSU" or array.dtype.kind in "OSU":
        raise TypeError("strings are not shape arithmetic")
    if array.dtype.kind == "f" and dtype.kind in "iu":
        array = np.trunc(array)
    return array.astype(dtype)


def _gather(node: ir.Node, xs: Arrays) -> Any:
    return np.take(_need(xs, 0), _need(xs, 1).astype(np.int64), axis=_axis(node))


def _slice(node: ir.Node, xs: Arrays) -> Any:
    data = _need(xs, 0)
    starts, ends = _ints(node, xs, 1, "starts"), _ints(node, xs, 2, "ends")
    if starts is None or ends is None:
        raise ValueError("no bounds")
    axes = _ints(node, xs, 3, "axes") or list(range(len(starts)))
    steps = _ints(node, xs, 4, "steps") or [1] * len(starts)
    index: list[slice] = [slice(None)] * data.ndim
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        index[axis] = slice_of(start, end, step, data.shape[axis])
    return data[tuple(index)]


def slice_of(start: int, end: int, step: int, size: int) -> slice:
    """Return the Python slice that an ONNX Slice with these bounds takes of an axis of ``size``."""
    start += size if start < 0 else 0
    end += size if end < 0 else 0
    if step > 0:
        return slice(min(max(start, 0), size), min(max(end, 0), size), step)
    start, end = min(max(start, 0), size - 1), min(max(end, -1), size - 1)
    # -1 as an end means "up to and with index 0", which Python spells None.
    return slice(start, None if end < 0 else end, step)


def _concat(node: ir.Node, xs: Arrays) -> Any:
    return np.concatenate([_need(xs, i) for i in range(len(xs))], axis=_axis(node, 1))


def _unsqueeze(node: ir.Node, xs: Arrays) -> Any:
    data, axes = _need(xs, 0), _ints(node, xs, 1, "axes") or []
    return np.expand_dims(data, tuple(axes))


def _squeeze(node: ir.Node, xs: Arrays) -> Any:
    axes = _ints(node, xs, 1, "axes")
    return np.squeeze(_need(xs, 0), None if axes is None else tuple(axes))


def _reshape(node: ir.Node, xs: Arrays) -> Any:
    data, target = _need(xs, 0), _ints(node, xs, 1, "shape") or []
    if not node.attributes.get_int("allowzero", 0):
        target = [data.shape[i] if d == 0 else d for i, d in enumerate(target)]
    return data.reshape(target)


def _flatten(node: ir.Node, xs: Arrays) -> Any:
    data, axis = _need(xs, 0), _axis(node, 1)
    return data.reshape(int(np.prod(data.shape[:axis])), -1)


def _reduce(function: Callable[..., Any]) -> Callable[[ir.Node, Arrays], Any]:
    def run(node: ir.Node, xs: Arrays) -> Any:
        data, axes = _need(xs, 0), _ints(node, xs, 1, "axes")
        if not axes and node.attributes.get_int("noop_with_empty_axes", 0) == 1:
            return data
        keep = bool(node.attributes.get_int("keepdims", 1))
        return function(data, axis=tuple(axes) if axes else None, keepdims=keep)

    return run


def _arg(function: Callable[..., Any]) -> Callable[[ir.Node, Arrays], Any]:
    def run(node: ir.Node, xs: Arrays) -> Any:
        if node.attributes.get_int("select_last_index", 0):
            raise NotImplementedError
        keep = bool(node.attributes.get_int("keepdims", 1))
        return function(_need(xs, 0), axis=_axis(node), keepdims=keep)

    return run


def is_bounded(node: ir.Node, inputs: Arrays, limit: int) -> bool:
    """Whether a node whose outputs have no known shape makes no more than ``limit`` elements of small inputs."""
    return node.op_type in _BOUNDED or (node.op_type == "Range" and _range_size(inputs) <= limit)


def _range_size(xs: Arrays) -> float:
    """Return how many elements a Range over these inputs has; infinity where they make no range."""
    try:
        start, limit, delta = (float(_need(xs, i).reshape(-1)[0]) for i in range(3))
        return max((limit - start) / delta, 0.0)
    except (ValueError, TypeError, IndexError, ZeroDivisionError):
        return float("inf")


def _constant_of_shape(node: ir.Node, xs: Arrays) -> Any:
    fill = node.attributes.get_tensor("value")
    scalar = np.zeros(1, np.float32) if fill is None else fill.numpy()
    return np.full([int(i) for i in _need(xs, 0)], scalar.reshape(-1)[0], dtype=scalar.dtype)


def _expand(node: ir.Node, xs: Arrays) -> Any:
    data = _need(xs, 0)
    return np.broadcast_to(data, np.broadcast_shapes(data.shape, tuple(int(i) for i in _need(xs, 1)))).copy()


def _split(node: ir.Node, xs: Arrays) -> Any:
    data, axis = _need(xs, 0), _axis(node)
    sizes = _ints(node, xs, 1, "split")
    if sizes is None:
        parts = int(node.attributes.get_int("num_outputs", 0)) or len(node.outputs)
        if parts != len(node.outputs):
            raise ValueError("num_outputs")
        chunk = -(-data.shape[axis] // parts)
        sizes = [chunk] * (parts - 1)
    return np.split(data, np.cumsum(sizes)[: len(node.outputs) - 1], axis=axis)


def _scatter_nd(node: ir.Node, xs: Arrays) -> Any:
    if node.attributes.get_string("reduction", "none") != "none":
        raise NotImplementedError
    out, indices = _need(xs, 0).copy(), _need(xs, 1).astype(np.int64)
    out[tuple(np.moveaxis(indices, -1, 0))] = _need(xs, 2)
    return out


def _tile(node: ir.Node, xs: Arrays) -> Any:
    return np.tile(_need(xs, 0), [int(i) for i in _need(xs, 1)])


def _clip(node: ir.Node, xs: Arrays) -> Any:
    if "min" in node.attributes or "max" in node.attributes:
        raise NotImplementedError
    low, high = (xs[i] if i < len(xs) else None for i in (1, 2))
    data = _need(xs, 0)
    data = data if low is None else np.maximum(data, low)
    return data if high is None else np.minimum(data, high)


def _cumsum(node: ir.Node, xs: Arrays) -> Any:
    if node.attributes.get_int("exclusive", 0) or node.attributes.get_int("reverse", 0):
        raise NotImplementedError
    return np.cumsum(_need(xs, 0), axis=int(_need(xs, 1).reshape(-1)[0]))


_TABLE: Mapping[str, Callable[[ir.Node, Arrays], Any]] = {
    "Identity": _unary(lambda x: x),
    "Neg": _unary(np.negative),
    "Abs": _unary(np.abs),
    "Sign": _unary(np.sign),
    "Floor": _unary(np.floor),
    "Ceil": _unary(np.ceil),
    "Round": _unary(np.round),
    "Sqrt": _unary(np.sqrt),
    "Exp": _unary(np.exp),
    "Log": _unary(np.log),
    "Not": _unary(np.logical_not),
    "NonZero": _unary(lambda x: np.stack(np.nonzero(x)).astype(np.int64)),
    "Add": _binary(np.add),
    "Sub": _binary(np.subtract),
    "Mul": _binary(np.multiply),
    "Div": _binary(_div),
    "Pow": _binary(lambda a, b: np.power(a, b).astype(a.dtype)),
    "Equal": _binary(np.equal),
    "Less": _binary(np.less),
    "LessOrEqual": _binary(np.less_equal),
    "Greater": _binary(np.greater),
    "GreaterOrEqual": _binary(np.greater_equal),
    "And": _binary(np.logical_and),
    "Or": _binary(np.logical_or),
    "Xor": _binary(np.logical_xor),
    "CastLike": _binary(lambda x, like: _convert(x, like.dtype)),
    "Min": _fold(np.minimum),
    "Max": _fold(np.maximum),
    "Sum": _fold(np.add),
    "Mod": _mod,
    "Cast": _cast,
    "Gather": _gather,
    "Slice": _slice,
    "Concat": _concat,
    "Unsqueeze": _unsqueeze,
    "Squeeze": _squeeze,
    "Reshape": _reshape,
    "Flatten": _flatten,
    "Transpose": lambda node, xs: np.transpose(_need(xs, 0), node.attributes.get_ints("perm")),
    "Range": lambda node, xs: np.arange(*(_need(xs, i).reshape(-1)[0] for i in range(3))),
    "Where": lambda node, xs: np.where(_need(xs, 0), _need(xs, 1), _need(xs, 2)),
    "ConstantOfShape": _constant_of_shape,
    "Expand": _expand,
    "Split": _split,
    "ScatterND": _scatter_nd,
    "Tile": _tile,
    "Clip": _clip,
    "CumSum": _cumsum,
    "ReduceProd": _reduce(np.prod),
    "ReduceSum": _reduce(np.sum),
    "ReduceMin": _reduce(np.min),
    "ReduceMax": _reduce(np.max),
    "ArgMax": _arg(np.argmax),
    "ArgMin": _arg(np.argmin),
}


def evaluate(node: ir.Node, inputs: Arrays, opsets: Mapping[str, int]) -> list[Array] | None:
    """Compute ``node`` on known ``inputs``.

    Parameters
    ----------
    node
        A node without sub-graphs.
    inputs
        One array per node input, of the dtype the model declares; None where the input is left out.
    opsets
        Domain to version.

    Returns
    -------
    list of arrays or None
        One array per output, or None where the node cannot be computed here.
    """
    if node.domain or node.op_type in _NEVER:
        return None
    rule = _TABLE.get(node.op_type)
    with np.errstate(all="ignore"):
        try:
            result = _reference(node, inputs, opsets) if rule is None else rule(node, inputs)
        except NotImplementedError:
            result = _reference(node, inputs, opsets)
        # Inputs come from any file: whatever numpy makes of them, the answer is only "not known".
        except Exception:
            return None
    if result is None:
        return None
    return [np.asarray(r) for r in (result if isinstance(result, (list, tuple)) else [result])]


def _reference(node: ir.Node, inputs: Arrays, opsets: Mapping[str, int]) -> list[Array] | None:
    """Run the node in the ONNX reference evaluator, in a graph of its own with positional names."""
    try:
        names = ["" if x is None else f"i{k}" for k, x in enumerate(inputs)]
        outputs = ["" if v.name == "" else f"o{k}" for k, v in enumerate(node.outputs)]
        proto = onnx.NodeProto(op_type=node.op_type, input=names, output=outputs)
        proto.attribute.extend(ir.serde.serialize_attribute(a) for a in node.attributes.values())
        unknown = onnx.TypeProto()
        graph = onnx.helper.make_graph(
            [proto],
            "one",
            [onnx.helper.make_value_info(n, unknown) for n in names if n],
            [onnx.helper.make_value_info(n, unknown) for n in outputs if n],
        )
        version = min(opsets.get("", onnx.defs.onnx_opset_version()), onnx.defs.onnx_opset_version())
        from onnx.reference import ReferenceEvaluator  # slow to import, and few models need it

        runner = ReferenceEvaluator(graph, opsets={"": version})
        feeds = {n: x for n, x in zip(names, inputs, strict=True) if n}
        results = iter(runner.run(None, feeds))
        # An optional output that is left out keeps its place so that positions match the node's.
        return [np.asarray(next(results)) if n else np.empty(0) for n in outputs]
    except Exception:
        return None
