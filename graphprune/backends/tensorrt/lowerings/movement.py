"""Movement: splits, pads, triangles, one-hot rows and indices."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from graphprune.backends.tensorrt.rewriting import Builder, Values, attribute, given, lowers


@lowers("Split")
def split_sizes(node: ir.Node, b: Builder) -> Values | None:
    """Constant sizes instead of a number of pieces."""
    x, sizes = node.inputs[0], given(node, 1)
    assert x is not None
    if sizes is not None or "split" in node.attributes:
        return None
    axis, dims, n = int(attribute(node, "axis", 0)), b.dims(x), len(node.outputs)
    if dims is None or dims[axis] is None:
        return None
    size = int(dims[axis] or 0)
    piece = -(-size // n)
    return b.split(x, axis, [piece] * (n - 1) + [size - piece * (n - 1)])


@lowers("Shape")
def part_of_shape(node: ir.Node, b: Builder) -> Values | None:
    """The whole shape, sliced."""
    x = node.inputs[0]
    assert x is not None
    rank = b.rank(x)
    if rank is None:
        return None
    start, end, _ = slice(attribute(node, "start", 0), attribute(node, "end")).indices(rank)
    whole = b.op("Shape", x)
    return b.op("Slice", whole, b.ints(start), b.ints(max(end, start)), b.ints(0))


@lowers("Reshape")
def plain_reshape(node: ir.Node, b: Builder) -> Values | None:
    """Without allowzero, where no size is 0."""
    x, sizes = node.inputs[0], given(node, 1)
    known = b.known(sizes)
    # Sizes that are computed are sizes of tensors, and no engine is built for an empty tensor.
    if x is None or sizes is None or (known is not None and not (known != 0).all()):
        return None
    return b.op("Reshape", x, sizes)


@lowers("Trilu")
def triangle(node: ir.Node, b: Builder) -> Values | None:
    """A comparison of row and column numbers, and Where."""
    x = node.inputs[0]
    assert x is not None
    dims, k = b.dims(x), 0
    if given(node, 1) is not None:
        known = b.known(given(node, 1))
        if known is None:
            return None
        k = int(known.reshape(-1)[0])
    if dims is None or len(dims) < 2:
        return None
    upper = int(attribute(node, "upper", 1))
    rows, columns = dims[-2], dims[-1]
    if rows is not None and columns is not None:
        ones = np.ones((rows, columns), np.bool_)
        mask = b.constant(np.triu(ones, k) if upper else np.tril(ones, k))
    else:
        shape = b.op("Shape", x)
        one, zero = b.constant(np.int64(1)), b.constant(np.int64(0))
        numbers = [
            b.op("Range", zero, b.squeeze(b.op("Slice", shape, b.ints(i), b.ints(i + 1)), 0), one)
            for i in (len(dims) - 2, len(dims) - 1)
        ]
        row = b.op("Add", b.unsqueeze(numbers[0], 1), b.constant(np.int64(k)))
        column = b.unsqueeze(numbers[1], 0)
        less = b.op("Less", column, row) if upper else b.op("Greater", column, row)
        mask = b.op("Not", less)
    zeros = b.constant(0, x)
    return b.op("Where", mask, x, zeros)


@lowers("OneHot")
def one_hot(node: ir.Node, b: Builder) -> Values | None:
    """Indices compared with 0, 1, 2, ..., and Where."""
    indices, depth, values = node.inputs
    assert indices is not None and values is not None
    known, rank = b.known(depth), b.rank(indices)
    if known is None or rank is None:
        return None
    n, axis = int(known.reshape(-1)[0]), int(attribute(node, "axis", -1)) % (rank + 1)
    if b.dtype(indices) not in (ir.DataType.INT64, ir.DataType.INT32):
        indices = b.cast(indices, ir.DataType.INT64)
    length = b.constant(n, indices)
    indices = b.op("Where", b.op("Less", indices, b.constant(0, indices)), b.op("Add", indices, length), indices)
    shape = [1] * (rank + 1)
    shape[axis] = n
    numbers = b.constant(np.arange(n).reshape(shape), indices)
    hit = b.op("Equal", b.unsqueeze(indices, axis), numbers)
    off = b.op("Gather", values, b.constant(np.int64(0)), axis=0)
    on = b.op("Gather", values, b.constant(np.int64(1)), axis=0)
    return b.op("Where", hit, on, off)


@lowers("CastLike")
def cast_like(node: ir.Node, b: Builder) -> Values | None:
    """Cast to the type that is known."""
    x, like = node.inputs
    assert x is not None and like is not None
    dtype = b.facts.dtype(like)
    return None if dtype is None else b.op("Cast", x, to=int(dtype))


@lowers("Gather", "GatherElements")
def non_negative_indices(node: ir.Node, b: Builder) -> Values | None:
    """Constant indices counted from the start."""
    x, indices = node.inputs
    assert x is not None and indices is not None
    known, dims, axis = b.known(indices), b.dims(x), int(attribute(node, "axis", 0))
    if known is None or dims is None or dims[axis] is None or not (known < 0).any():
        return None
    size = int(dims[axis] or 0)
    return b.op(node.op_type, x, b.constant(np.where(known < 0, known + size, known), indices), axis=axis)


@lowers("Pad")
def pad_all_axes(node: ir.Node, b: Builder) -> Values | None:
    """Amounts for every axis."""
    x, axes = node.inputs[0], given(node, 3)
    assert x is not None
    amounts, which, rank = b.known(given(node, 1)), b.known(axes), b.rank(x)
    mode = attribute(node, "mode", "constant")
    if axes is None or amounts is None or which is None or rank is None or mode == "wrap":
        return None
    full = np.zeros((2, rank), np.int64)
    full[:, which] = amounts.reshape(2, -1)
    return b.op("Pad", x, b.ints(*full.reshape(-1).tolist()), given(node, 2), mode=mode)


@lowers("Pad")
def pad_by_concat(node: ir.Node, b: Builder) -> Values | None:
    """Concat with what is added, axis by axis."""
    x = node.inputs[0]
    assert x is not None
    second, fill, dims = given(node, 1), given(node, 2), b.dims(x)
    amounts = attribute(node, "pads") if second is None else b.known(second)
    value = attribute(node, "value", 0.0) if fill is None else b.known(fill)
    mode, axes = attribute(node, "mode", "constant"), b.known(given(node, 3))
    if dims is None and amounts is not None and given(node, 3) is None:
        dims = (None,) * (len(amounts) // 2)  # without axes there are two amounts for each
    if amounts is None or value is None or dims is None or mode not in ("constant", "wrap", "edge", "reflect"):
        return None
    pads = np.zeros((2, len(dims)), np.int64)
    pads[:, range(len(dims)) if axes is None else axes] = np.asarray(amounts).reshape(2, -1)
    out = x
    if (pads < 0).any() or (mode != "constant" and any(dims[a] is None for a in np.flatnonzero(pads.any(axis=0)))):
        return None
    for axis in range(len(dims)):
        before, after = map(int, pads[:, axis])
        if not before and not after:
            continue
        if mode == "constant":
            scalar = np.asarray(value).reshape(-1)[0]
            parts = [_block(b, out, axis, n, scalar, len(dims)) if n else None for n in (before, after)]
            out = b.op("Concat", *(v for v in (parts[0], out, parts[1]) if v is not None), axis=axis)
        else:
            rows = np.pad(np.arange(int(dims[axis] or 0)), (before, after), mode)
            out = b.op("Gather", out, b.constant(rows.astype(np.int64)), axis=axis)
    return out


def _block(b: Builder, like: ir.Value, axis: int, n: int, scalar: float, rank: int) -> ir.Value:
    """``n`` along one axis of what ``like`` has along the others, all one number."""
    shape = b.shape(like)
    if shape is not None:
        return b.constant(np.full([*shape[:axis], n, *shape[axis + 1 :]], scalar), like)
    whole = b.op("Shape", like)
    ends = [b.op("Slice", whole, b.ints(i), b.ints(j), b.ints(0)) for i, j in ((0, axis), (axis + 1, rank)) if i < j]
    sizes = [*ends[: axis > 0], b.ints(n), *ends[axis > 0 :]]
    dtype = b.dtype(like).numpy()
    return b.op("ConstantOfShape", b.op("Concat", *sizes, axis=0), value=ir.tensor(np.array([scalar], dtype)))


@lowers("Scatter")
def scatter_elements(node: ir.Node, b: Builder) -> Values | None:
    """ScatterElements, its newer name."""
    return b.op("ScatterElements", *node.inputs, axis=attribute(node, "axis", 0))


@lowers("Upsample")
def upsample(node: ir.Node, b: Builder) -> Values | None:
    """Resize, its newer name."""
    x, scales = node.inputs[0], given(node, 1)
    if scales is None:
        scales = b.constant(np.asarray(attribute(node, "scales"), np.float32))
    return b.op("Resize", x, b.constant(np.zeros(0, np.float32)), scales, mode=attribute(node, "mode", "nearest"),
                coordinate_transformation_mode="asymmetric", nearest_mode="floor")  # fmt: skip


@lowers("GatherND")
def gather_flat(node: ir.Node, b: Builder) -> Values | None:
    """Gather on the indexed axes merged into one."""
    data, indices = node.inputs
    assert data is not None and indices is not None
    shape, index_dims = b.shape(data), b.dims(indices)
    if shape is None or index_dims is None or index_dims[-1] is None or attribute(node, "batch_dims", 0):
        return None
    k = int(index_dims[-1])
    strides = [int(np.prod(shape[i + 1 : k])) for i in range(k)]
    sizes = b.constant(np.array(shape[:k]), indices)
    counted = b.op("Where", b.op("Less", indices, b.constant(0, indices)), b.op("Add", indices, sizes), indices)
    weighed = b.op("Mul", counted, b.constant(np.array(strides), indices))
    flat = b.reduce("ReduceSum", weighed, [len(index_dims) - 1], keepdims=0)
    return b.op("Gather", b.reshape(data, (-1, *shape[k:])), flat, axis=0)
