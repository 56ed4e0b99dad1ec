"""Output shapes of operators that have no schema here: the com.microsoft ones of fused and quantised files.

A rule gets the input shapes (None: unknown rank; a None dimension: unknown size) and returns the shapes of
the outputs in order; a shorter list leaves the rest unknown. Rules are tried in any domain, because ONNX
Runtime also writes some of these operators (SimplifiedLayerNormalization) into the default one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import onnx_ir as ir

Dims = tuple[int | None, ...]
Shapes = Sequence[Dims | None]
Rule = Callable[[ir.Node, Shapes], "list[Dims | None]"]


def broadcast(a: Dims | None, b: Dims | None) -> Dims | None:
    """Return the broadcast of two partial shapes."""
    if a is None or b is None:
        return None
    rank = max(len(a), len(b))
    a, b = (1,) * (rank - len(a)) + a, (1,) * (rank - len(b)) + b
    # An unknown size against a known one above 1 can only be that one (or 1, which broadcasts to it).
    return tuple(
        y if x == 1 else x if y == 1 or y is None else y if x is None else x for x, y in zip(a, b, strict=True)
    )


def matmul(a: Dims | None, b: Dims | None) -> Dims | None:
    """Return the partial shape of numpy's ``a @ b``."""
    if not a or not b:
        return None
    left, right = a if len(a) > 1 else (1, *a), b if len(b) > 1 else (*b, 1)
    batch = broadcast(left[:-2], right[:-2])
    if batch is None:
        return None
    return (*batch, *left[-2:-1][: len(a) > 1], *right[-1:][: len(b) > 1])


def _get(shapes: Shapes, index: int) -> Dims | None:
    return shapes[index] if index < len(shapes) else None


def _same(*indices: int) -> Rule:
    return lambda node, shapes: [_get(shapes, i) for i in indices or (0,)]


def _norm_stats(node: ir.Node, shapes: Shapes) -> list[Dims | None]:
    """SkipLayerNormalization: output, mean, inverse deviation, and the sum that was normalised."""
    x = _get(shapes, 0)
    stats = None if x is None else (*x[:-1], 1)
    return [x, stats, stats, x]


def _simplified(node: ir.Node, shapes: Shapes) -> list[Dims | None]:
    x = _get(shapes, 0)
    if x is None:
        return [None]
    axis = int(node.attributes.get_int("axis", -1)) % max(len(x), 1)
    return [x, (*x[:axis], *(1 for _ in x[axis:]))]


def _embed(node: ir.Node, shapes: Shapes) -> list[Dims | None]:
    ids, table = _get(shapes, 0), _get(shapes, 2)
    if ids is None or len(ids) != 2:
        return [None]
    out: Dims = (*ids, table[-1] if table else None)
    return [out, (ids[0],), out]


def _attention(past: int) -> Rule:
    def rule(node: ir.Node, shapes: Shapes) -> list[Dims | None]:
        x, w, before = _get(shapes, 0), _get(shapes, 1), _get(shapes, past)
        sizes = node.attributes.get_ints("qkv_hidden_sizes")
        total = w[-1] if w else None
        width = int(sizes[2]) if sizes else None if total is None else total // 3
        if x is None or len(x) != 3:
            return [None]
        heads = int(node.attributes.get_int("num_heads", 0)) or None
        lanes = width // heads if width and heads else None
        old = before[3] if before is not None and len(before) == 5 else 0
        length = x[1] + old if x[1] is not None and old is not None else None
        return [(x[0], x[1], width), (2, x[0], heads, length, lanes)]

    return rule


def _multi_head(node: ir.Node, shapes: Shapes) -> list[Dims | None]:
    query, value = _get(shapes, 0), _get(shapes, 2)
    if query is None:
        return [None]
    if len(query) == 5:  # packed: batch, sequence, heads, 3, lanes
        heads, lanes = query[2], query[4]
        return [(query[0], query[1], heads * lanes if heads and lanes else None)]
    if len(query) != 3:
        return [None]
    heads = int(node.attributes.get_int("num_heads", 0)) or None
    width = query[2]
    if value is not None and len(value) == 3:
        width = value[2]
    elif value is not None and len(value) == 4:
        width = value[1] * value[3] if value[1] is not None and value[3] is not None else None
    present: list[Dims | None] = [
        (query[0], heads, None, w // heads if w and heads else None) for w in (query[2], width)
    ]
    return [(query[0], query[1], width), *present]


def _grouped_query(node: ir.Node, shapes: Shapes) -> list[Dims | None]:
    query, key = _get(shapes, 0), _get(shapes, 1)
    if query is None or len(query) != 3:
        return [None]
    heads = int(node.attributes.get_int("num_heads", 0))
    kv = int(node.attributes.get_int("kv_num_heads", 0))
    width, packed = query[2], key is None
    if width is None or not heads or not kv:
        return [(query[0], query[1], None if packed else width)]
    lanes = width // (heads + 2 * kv if packed else heads)
    present: Dims = (query[0], kv, None, lanes)
    return [(query[0], query[1], heads * lanes), present, present]


def _recurrent(node: ir.Node, shapes: Shapes) -> list[Dims | None]:
    x, w, hidden = _get(shapes, 0), _get(shapes, 1), int(node.attributes.get_int("hidden_size", 0))
    if x is None or w is None or len(x) != 3 or not hidden:
        return [None]
    state: Dims = (w[0], x[1], hidden)
    return [(x[0], *state), state, state]


def _swap(shape: Dims | None, matrix: int, batch: int) -> Dims | None:
    """Apply FusedMatMul's transpose flags: the last two axes, and the batch axes behind the rows."""
    if shape is None or len(shape) < 2:
        return shape
    if batch:
        shape = (*shape[1:-1], shape[0], shape[-1])
    return (*shape[:-2], shape[-1], shape[-2]) if matrix else shape


def _fused_matmul(node: ir.Node, shapes: Shapes) -> list[Dims | None]:
    flag = node.attributes.get_int
    a = _swap(_get(shapes, 0), flag("transA", 0), flag("transBatchA", 0))
    b = _swap(_get(shapes, 1), flag("transB", 0), flag("transBatchB", 0))
    return [matmul(a, b)]


def _gemm(second: int) -> Rule:
    def rule(node: ir.Node, shapes: Shapes) -> list[Dims | None]:
        a = _swap(_get(shapes, 0), node.attributes.get_int("transA", 0), 0)
        return [matmul(a, _swap(_get(shapes, second), node.attributes.get_int("transB", 0), 0))]

    return rule


def _nbits(node: ir.Node, shapes: Shapes) -> list[Dims | None]:
    x, columns = _get(shapes, 0), node.attributes.get_int("N")
    return [None if not x or columns is None else (*x[:-1], int(columns))]


def _concat(node: ir.Node, shapes: Shapes) -> list[Dims | None]:
    parts = [p for p in shapes[2::3] if p is not None]
    if not parts or len(parts) != len(shapes[2::3]):
        return [None]
    axis = int(node.attributes.get_int("axis", 0)) % len(parts[0])
    sizes = [p[axis] for p in parts]
    total = sum(s for s in sizes if s is not None) if None not in sizes else None
    return [(*parts[0][:axis], total, *parts[0][axis + 1 :])]


def _global_pool(node: ir.Node, shapes: Shapes) -> list[Dims | None]:
    x = _get(shapes, 0)
    if x is None or len(x) < 3:
        return [None]
    ones = (1,) * (len(x) - 2)
    return [(x[0], *ones, x[-1]) if node.attributes.get_int("channels_last", 0) else (*x[:2], *ones)]


def _halve(node: ir.Node, shapes: Shapes) -> list[Dims | None]:
    x = _get(shapes, 0)
    return [None if not x else (*x[:-1], None if x[-1] is None else x[-1] // 2)]


def _distance(node: ir.Node, shapes: Shapes) -> list[Dims | None]:
    a, b = _get(shapes, 0), _get(shapes, 1)
    return [None if not a or not b else (a[0], b[0])]


_SAME_SHAPE = [
    "Gelu",
    "FastGelu",
    "BiasGelu",
    "QuickGelu",
    "BiasAdd",
    "BiasSoftmax",
    "BiasDropout",
    "BitmaskDropout",
    "RotaryEmbedding",
    "GroupNorm",
    "Inverse",
    "QLinearLeakyRelu",
    "QLinearSigmoid",
    "QLinearSoftmax",
    "QuantizeLinear",
    "DequantizeLinear",
    "MoE",
    "QMoE",
    "NGramRepeatBlock",
    "GroupNormalization",
    "MeanVarianceNormalization",
    "QuickGeluGrad",
    "FusedLayerNormalization",
    "LongformerAttention",
]

_RULES: Mapping[str, Rule] = {
    **dict.fromkeys(_SAME_SHAPE, _same()),
    "SkipGroupNorm": _same(0, 0),
    "SkipLayerNormalization": _norm_stats,
    "SkipSimplifiedLayerNormalization": _norm_stats,
    "SimplifiedLayerNormalization": _simplified,
    "LayerNormalization": _simplified,
    "EmbedLayerNormalization": _embed,
    "Attention": _attention(4),
    "QAttention": _attention(8),
    "DynamicQuantizeLSTM": _recurrent,
    "MultiHeadAttention": _multi_head,
    "DecoderMaskedMultiHeadAttention": _multi_head,
    "GroupQueryAttention": _grouped_query,
    "SparseAttention": _grouped_query,
    "FusedMatMul": _fused_matmul,
    "TransposeMatMul": _fused_matmul,
    "FusedMatMulActivation": _fused_matmul,
    "GemmFastGelu": _fused_matmul,
    "DynamicQuantizeMatMul": _fused_matmul,
    "MatMulIntegerToFloat": _fused_matmul,
    "MatMulInteger16": _fused_matmul,
    "FusedGemm": _gemm(1),
    "GemmFloat8": _gemm(1),
    "QGemm": _gemm(3),
    "MatMulNBits": _nbits,
    "MatMulBnb4": _nbits,
    "MatMulFpQ4": _nbits,
    "QLinearAdd": lambda node, shapes: [broadcast(_get(shapes, 0), _get(shapes, 3))],
    "QLinearMul": lambda node, shapes: [broadcast(_get(shapes, 0), _get(shapes, 3))],
    "QLinearConcat": _concat,
    "QLinearGlobalAveragePool": _global_pool,
    "BiasSplitGelu": _halve,
    "CDist": _distance,
}

# Operators that a standard one describes, on (some of) the same inputs.
DELEGATES: Mapping[str, tuple[str, tuple[int, ...]]] = {
    "FusedConv": ("Conv", (0, 1, 2)),
    "QLinearAveragePool": ("AveragePool", (0,)),
    "GreaterOrEqual": ("Greater", (0, 1)),
    "LessOrEqual": ("Less", (0, 1)),
    **{name: (name, ()) for name in ("Trilu", "GridSample", "GatherND", "Range", "Pad", "Unique", "IsAllFinite")},
}
# Channels-last convolutions: a standard one between two transposes.
CHANNELS_LAST: Mapping[str, tuple[str, tuple[int, ...]]] = {
    "NhwcConv": ("Conv", (0, 1, 2)),
    "NhwcFusedConv": ("Conv", (0, 1, 2)),
    "NhwcMaxPool": ("MaxPool", (0,)),
}

# Which input gives the element type of output 0; the first where nothing is said.
_TYPE_FROM: Mapping[str, int] = {
    "EmbedLayerNormalization": 2,
    "QuantizeLinear": 2,
    "DequantizeLinear": 1,
    "MatMulIntegerToFloat": 2,
    "QAttention": 3,
}
_TYPE_FIXED: Mapping[str, ir.DataType] = {"MatMulInteger16": ir.DataType.INT32}


def shapes(node: ir.Node, inputs: Shapes) -> list[Dims | None]:
    """Return the output shapes that the table knows; an empty list for an operator it does not have."""
    rule = _RULES.get(node.op_type)
    if rule is None:
        return []
    try:
        return rule(node, inputs)
    except (TypeError, ValueError, IndexError, ZeroDivisionError, AttributeError):
        return []  # attributes of the wrong kind, ranks the operator does not allow


def element_type(node: ir.Node, inputs: Sequence[ir.DataType | None]) -> ir.DataType | None:
    """Return the element type of the node's first output."""
    if node.op_type in _TYPE_FIXED:
        return _TYPE_FIXED[node.op_type]
    index = _TYPE_FROM.get(node.op_type, 0)
    found = inputs[index] if index < len(inputs) else None
    if node.op_type == "QGemm":
        # Without an output zero point the result is not quantised again.
        return inputs[0] if len(inputs) > 8 and inputs[8] is not None else ir.DataType.FLOAT
    return ir.DataType.UINT8 if found is None and node.op_type == "QuantizeLinear" else found
