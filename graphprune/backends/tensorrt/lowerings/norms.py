"""Normalisations, as means over axes."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from graphprune.backends.tensorrt.rewriting import Builder, Values, attribute, given, lowers, used


def _centred(b: Builder, x: ir.Value, axes: Sequence[int]) -> ir.Value:
    return b.op("Sub", x, b.reduce("ReduceMean", x, axes))


def _over_deviation(b: Builder, centred: ir.Value, axes: Sequence[int], epsilon: float) -> ir.Value:
    variance = b.reduce("ReduceMean", b.op("Mul", centred, centred), axes)
    return b.op("Div", centred, b.op("Sqrt", b.op("Add", variance, b.constant(epsilon, centred))))


def _affine(b: Builder, x: ir.Value, scale: ir.Value | None, bias: ir.Value | None) -> ir.Value:
    x = x if scale is None else b.op("Mul", x, scale)
    return x if bias is None else b.op("Add", x, bias)


@lowers("LayerNormalization")
def layer_normalization(node: ir.Node, b: Builder) -> Values | None:
    """Means over the last axes."""
    x = node.inputs[0]
    assert x is not None
    rank = b.rank(x)
    if rank is None or used(node, 1) or used(node, 2):
        return None
    axes = range(attribute(node, "axis", -1) % rank, rank)
    epsilon = float(attribute(node, "epsilon", 1e-5))
    out = _over_deviation(b, _centred(b, x, list(axes)), list(axes), epsilon)
    return _affine(b, out, given(node, 1), given(node, 2))


@lowers("RMSNormalization")
def rms_normalization(node: ir.Node, b: Builder) -> Values | None:
    """The mean square over the last axes."""
    x = node.inputs[0]
    assert x is not None
    rank = b.rank(x)
    if rank is None:
        return None
    axes = list(range(attribute(node, "axis", -1) % rank, rank))
    return _affine(b, _over_deviation(b, x, axes, float(attribute(node, "epsilon", 1e-5))), given(node, 1), None)


@lowers("MeanVarianceNormalization")
def mean_variance_normalization(node: ir.Node, b: Builder) -> Values | None:
    """Means over the given axes."""
    x = node.inputs[0]
    assert x is not None
    axes = attribute(node, "axes", [0, 2, 3])
    return _over_deviation(b, _centred(b, x, axes), axes, 1e-9)


@lowers("GroupNormalization")
def group_normalization(node: ir.Node, b: Builder) -> Values | None:
    """Groups as an axis of their own, means over each."""
    x, scale, bias = node.inputs[0], given(node, 1), given(node, 2)
    assert x is not None and scale is not None and bias is not None
    dims, groups = b.dims(x), int(attribute(node, "num_groups"))
    if dims is None or dims[1] is None:
        return None
    channels = dims[1]
    # Reshape: 0 keeps the batch, -1 takes what is left; the way back needs the sizes, which may be dynamic.
    flat = b.reshape(x, (0, groups, -1))
    out = _over_deviation(b, _centred(b, flat, [2]), [2], float(attribute(node, "epsilon", 1e-5)))
    out = b.op("Reshape", out, b.op("Shape", x)) if b.shape(x) is None else b.reshape(out, b.shape(x) or ())
    ones = (1,) * (len(dims) - 2)
    if b.context.opset_of(node) < 21:  # one scale a group until then, one a channel since

        def spread(value: ir.Value) -> ir.Value:
            column = b.reshape(value, (groups, 1))
            return b.reshape(b.op("Expand", column, b.ints(groups, channels // groups)), (1, channels, *ones))
    else:

        def spread(value: ir.Value) -> ir.Value:
            return b.reshape(value, (1, channels, *ones))

    return _affine(b, out, spread(scale), spread(bias))


@lowers("InstanceNormalization")
def instance_normalization(node: ir.Node, b: Builder) -> Values | None:
    """Means over the spatial axes."""
    x, scale, bias = node.inputs[0], given(node, 1), given(node, 2)
    assert x is not None and scale is not None and bias is not None
    rank = b.rank(x)
    if rank is None or rank < 3:
        return None
    axes = list(range(2, rank))
    out = _over_deviation(b, _centred(b, x, axes), axes, float(attribute(node, "epsilon", 1e-5)))
    column = (1, -1, *(1,) * (rank - 2))
    return _affine(b, out, b.reshape(scale, column), b.reshape(bias, column))
