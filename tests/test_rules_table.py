"""Every op of the default domain, a line each: see tests/rule_harness.py for the notation.

Recurrent, attention, quantised and fused ops stand in test_rules_table_more.py.
"""

from __future__ import annotations

import importlib

import numpy as np
import pytest
from onnx import TensorProto, helper

from graphprune.ops import coverage
from graphprune.rules import load_rules
from tests.rule_cases import CONTROL, FROZEN, SEQUENCES, node
from tests.rule_harness import Case, case, check, check_cut, registered

MS = "com.microsoft::"
F = TensorProto.FLOAT
ZERO = [
    "Abs", "Asin", "Asinh", "Atan", "Atanh", "Ceil", "Celu", "Elu", "Erf", "Floor", "Gelu", "HardSwish", "Identity",
    "LeakyRelu", "Mish", "Neg", "Relu", "Round", "Selu", "Shrink", "Sign", "Sin", "Sinh", "Softsign", "Sqrt", "Swish",
    "Tan", "Tanh", "ThresholdedRelu",
]  # fmt: skip
NOT_ZERO = ["Acos", "Acosh", "Cos", "Cosh", "Exp", "HardSigmoid", "Log", "Reciprocal", "Sigmoid", "Softplus"]

POINTWISE = [
    *(case(op, "3x4", "a b -> a b") for op in ZERO),
    *(case(op, "3x4", "a b -> a! b!") for op in NOT_ZERO),
    case("Cast", "3x4", "a b -> a b", to=TensorProto.DOUBLE),
    case("IsInf", "3x4", "a b -> a! b!"),
    case("IsNaN", "3x4", "a b -> a! b!"),
    case("Not", "bool:3x4", "a b -> a! b!"),
    case("BitwiseNot", "i32:3x4", "a b -> a! b!"),
    case("CastLike", ["3x4", np.float32(1)], "a b, - -> a b"),
    case("BitCast", "3x4", "a b -> a! b!", to=TensorProto.INT32),
    case("Dropout", "3x4", "a b -> a b, a! b!"),
    case("Dropout", "3x4", "a b -> a b", opset=10, ratio=0.5),
    case("Clip", ["3x4", np.float32(0), np.float32(6)], "a b, -, - -> a b"),
    case("Clip", ["3x4", np.float32(0.5), None], "a b, -, - -> a! b!"),
    case("Clip", "3x4", "a b -> a b", opset=6, min=-1.0, max=1.0),
    case("Add", "3x4 3x4", "a b, a b -> a b"),
    case("Add", "3x4 4", "a b, b -> a! b"),
    case("Add", "3x4 4*", "a b, b -> a! b", roles="1:shift"),
    case("Add", "3x1 1x4", "a 1, 1 b -> a! b!"),
    case("Add", "3x4 3x4", "a b!, a b -> a b!"),
    case("Sub", "2x3x4 3x1", "a b c, b 1 -> a! b c!"),
    case("Sum", "3x4 3x4 4", "a b, a b, b -> a! b"),
    case("Max", "3x4 3x4", "a b, a b -> a b"),
    case("Min", "3x4 3x4", "a b, a b -> a b"),
    case("Mean", "3x4 3x4", "a b, a b -> a b"),
    case("Or", "bool:3x4 bool:3x4", "a b, a b -> a b", integers=True),
    case("Xor", "bool:3x4 bool:3x4", "a b, a b -> a b", integers=True),
    case("BitwiseOr", "i32:3x4 i32:3x4", "a b, a b -> a b", integers=True),
    case("BitwiseXor", "i32:3x4 i32:3x4", "a b, a b -> a b", integers=True),
    case("And", "bool:3x4 bool:4", "a b, b -> a b", integers=True),
    case("BitwiseAnd", "i32:3x4 i32:3x4", "a b, a b -> a b", integers=True),
    case("Mul", "3x4 3x4", "a b, a b! -> a b"),
    case("Mul", "3x4 4*", "a b!, b -> a b", roles="1:gain"),
    case("Mul", "2x3x4x4 2x3x1x1", "n c h w, n c 1 1 -> n c h w"),
    case("SwiGLU", "3x4 3x4", "a b, a! b -> a b"),
    case("Equal", "3x4 3x4", "a b, a b -> a! b!"),
    case("Greater", "3x4 4", "a b, b -> a! b!"),
    case("GreaterOrEqual", "3x4 3x4", "a b, a b -> a! b!"),
    case("Less", "3x4 3x4", "a b, a b -> a! b!"),
    case("LessOrEqual", "3x4 3x4", "a b, a b -> a! b!"),
    case("Pow", ["3x4", np.float32(2)], "a b, - -> a b"),
    case("Pow", ["3x4", np.float32(0)], "a b, - -> a! b!"),
    case("Where", "bool:3x4 3x4 3x4", "a b, a b, a b -> a! b!"),
    case("Where", ["bool:3x1", "3x4", np.float32(0)], "a 1, a b, - -> a! b!"),
    *(case(MS + op, "3x4", "a b -> a b") for op in ("FastGelu", "Gelu", "QuickGelu")),
    case(MS + "BiasGelu", "2x3x4 4*", "a b c, c -> a! b! c", roles="1:bias"),
]  # fmt: skip

POINTWISE += [
    case("Div", "3x4 3x4", "a b, a! b! -> a b"),
    case("Mod", "i32:3x4 i32:3x4", "a b, a b -> a b", runs=False, integers=True),
    case("BitShift", "u8:3x4 u8:3x4", "a b, a b -> a b", direction="LEFT", integers=True),
    case("PRelu", "2x3x4 3x1*", "a b c, b 1 -> a b c"),
    case("Max", "3x4 4*", "a b, b -> a! b!"),
    case("Div", "3x4* 3x4", "a b, a! b! -> a! b!"),
    case("Det", "2x3x3", "a _ _ -> a"),
    case(MS + "Inverse", "2x3x3", "a _ _ -> a! _ _"),
    case(MS + "BiasDropout", "2x3x4 4*", "a b c, c -> a! b! c", outputs=1, runs=False),
]  # fmt: skip

LINEAR = [
    case("Conv", "2x6x5x5 4x6x3x3* 4*", "b i _ _, o i _ _, o -> b! o _ _", roles="1:weight 2:bias"),
    case("Conv", "2x6x5x5 4x3x3x3* 4*", "b (g i) _ _, (g o) i _ _, (g o) -> b! (g o) _ _ | g=2", group=2),
    case("Conv", "2x6x5x5 6x1x3x3* 6*", "b c _ _, c _ _ _, c -> b! c _ _", group=6),
    case("Conv", "2x6x5x5 12x1x3x3*", "b g _ _, (g o) _ _ _ -> b (g o) _ _", group=6),
    case("Conv", "2x6x5 4x6x3", "b ~i! _, o! ~i! _ -> b o! _", why="spatial axis"),
    case("ConvInteger", "u8:2x6x5x5 u8:4x3x3x3*", "b (g i) _ _, (g o) i _ _ -> b (g o) _ _ | g=2", group=2, integers=True),
    case("ConvTranspose", "2x6x5x5 6x4x3x3* 4*", "b i _ _, i o _ _, o -> b! o _ _"),
    case("ConvTranspose", "2x6x5x5 6x2x3x3* 4*", "b (g i) _ _, (g i) o _ _, (g o) -> b! (g o) _ _ | g=2", group=2),
    case("DeformConv", "2x6x5x5 4x3x3x3* 2x18x3x3 4*", "b (g i) _ _, (g o) i _ _, b _ _ _, (g o) -> b! (g o) _ _ | g=2",
         group=2, opset=19),
    case("MatMul", "2x3x4 4x5*", "b i k, k j -> b i j", roles="1:weight"),
    case("MatMul", "2x3x4 2x4x5", "b i ~k!, b k! j -> b i j"),
    case("MatMul", "2x3x4 2x4x5", "b i k!, b k j -> b i j"),
    case("MatMul", "4 4x5*", "k, k j -> j"),
    case("MatMul", "3x4 4", "i k, k -> i"),
    case("MatMul", "2x1x3x4 6x4x5", "b 1 i k, h k j -> b h i j"),
    case("MatMulInteger", "u8:3x4 u8:4x5*", "i k, k j -> i j", integers=True),
    case(MS + "MatMulInteger16", ["i32:3x4", np.ones((4, 5), np.int16)], "i k, k j -> i j", runs=False),
    case(MS + "FusedMatMul", "2x4x3 2x5x4", "b k i, b j k -> b i j", transA=1, transB=1),
    case(MS + "TransposeMatMul", "2x3x4 2x5x4", "b i k, b j k -> b i j", transB=1),
    case("Gemm", "3x4 4x5* 5*", "i k, k j, j -> i! j", roles="1:weight 2:bias"),
    case("Gemm", "4x3 5x4* 3x1*", "k i, j k, i 1 -> i j!", transA=1, transB=1),
    case(MS + "FusedGemm", "3x4 4x5* 5*", "i k, k j, j -> i! j", activation="Relu"),
    case("Einsum", "2x3x4x5 2x6x4x5", "b i h d, b j h d -> b h i j", equation="bihd,bjhd->bhij"),
    case("Einsum", "2x3x4 4x5x6*", "b i c, c h d -> b i h d", equation="...c,chd->...hd"),
    case("Einsum", "3x4", "i j -> j i", equation="ij->ji"),
]  # fmt: skip

NORM = [
    case("BatchNormalization", ["2x6x5x5", "6*", "6*", "6*", np.ones(6)], "b c h w, c, c, c, c -> b! c h! w!",
         roles="1:scale 2:bias 3:mean 4:variance"),
    case("InstanceNormalization", "2x6x5x5 6* 6*", "b c ~h ~w, c, c -> b! c h! w!", roles="1:scale 2:bias"),
    case("GroupNormalization", "2x6x5x5 6* 6*", "b ~(g i) ~h ~w, (g i), (g i) -> b! (g i) h! w! | g=2", num_groups=2),
    case("GroupNormalization", "2x6x5x5 2* 2*", "b ~(g i) ~h ~w, g, g -> b! (g i)! h! w! | g=2", num_groups=2, opset=18),
    case("LayerNormalization", "2x3x4 4* 4*", "a b ~c, c, c -> a! b! c", roles="1:scale 2:bias"),
    case("LayerNormalization", "2x3x4 4*", "a b ~c, c -> a b c"),
    case("LayerNormalization", "2x3x4 3x4* 3x4*", "a ~b ~c, b c, b c -> a! b c", axis=1),
    case("LayerNormalization", "2x3x4 4* 4*", "a b ~c, c, c -> a! b! c, a! b! 1, a! b! 1"),
    case("RMSNormalization", "2x3x4 4*", "a b ~c, c -> a b c", opset=23),
    case("SimplifiedLayerNormalization", "2x3x4 4*", "a b ~c, c -> a b c"),
    case(MS + "SimplifiedLayerNormalization", "2x3x4 4*", "a b ~c, c -> a b c", runs=False),
    case("LpNormalization", "2x3x4", "a b c -> a b c", axis=-1),
    case("MeanVarianceNormalization", "2x3x4x4", "~b _ ~h ~w -> b! _ h! w!"),
    case("Softmax", "2x3x4", "a b ~c -> a! b! c!"),
    case("Softmax", "2x3x4", "a ~b ~c -> a! b! c!", opset=11, axis=1),
    case("LogSoftmax", "2x3x4", "a ~b c -> a! b! c!", axis=1),
    case("Hardmax", "2x3x4", "a b ~c -> a! b! c!"),
    case("LRN", "2x6x5x5", "b ~c h w -> b c h w", size=3),
]  # fmt: skip

REDUCE = [
    case("ReduceSum", ["2x3x4", [1]], "a b c, - -> a 1 c"),
    case("ReduceSum", ["2x3x4", [1]], "a ~b! c, - -> a c", keepdims=0),
    case("ReduceSum", "2x3x4", "a b c -> a b c", noop_with_empty_axes=1),
    case("ReduceSum", "2x3x4", "a b c -> 1 1 1"),
    case("ReduceSum", "2x3x4", "a b c -> a b 1", opset=11, axes=[-1]),
    case("ReduceL1", ["2x3x4", [1]], "a b c, - -> a 1 c"),
    case("ReduceL2", ["2x3x4", [1]], "a b c, - -> a 1 c"),
    case("ReduceSumSquare", ["2x3x4", [1]], "a b c, - -> a 1 c"),
    case("ReduceMean", ["2x3x4", [-1]], "a b ~c, - -> a b 1"),
    case("ReduceMean", "2x3x4", "a b ~c -> a b", opset=13, axes=[2], keepdims=0),
    case("ReduceMax", ["2x3x4", [1]], "a ~b c, - -> a 1 c"),
    case("ReduceMin", ["2x3x4", [1]], "a ~b c, - -> a 1 c"),
    case("ReduceProd", ["2x3x4", [1]], "a ~b c, - -> a 1 c"),
    case("ReduceLogSum", ["2x3x4", [1]], "a ~b c, - -> a! 1 c!"),
    case("ReduceLogSumExp", ["2x3x4", [1]], "a ~b c, - -> a! 1 c!"),
    case("ReduceSum", "2x3x4 i64:1", "_ _ _, _ -> ?", why="computed when it runs", runs=False),
    case("ArgMax", "2x3x4", "a _ c -> a! 1 c!", axis=1, why="positions along it"),
    case("ArgMin", "2x3x4", "a _ c -> a! c!", axis=1, keepdims=0),
    case("CumSum", ["2x3x4", np.asarray(1)], "a _ c, - -> a _ c"),
    case("CumProd", ["2x3x4", np.asarray(1)], "a _ c, - -> a _ c", runs=False),
    case("TopK", ["2x3x4", [2]], "a b _, - -> a b _, a! b! _"),
]  # fmt: skip

MOVEMENT = [
    case("Reshape", ["2x6x4", [2, 2, 3, 4]], "a (g i) c, - -> a g i c | g=2"),
    case("Reshape", ["2x6x4", [0, -1]], "a b c, - -> a (b c)"),
    case("Reshape", ["2x6x4", [8, 6]], "_ _ _, - -> _ _", why="do not align"),
    case("Flatten", "2x3x4", "a b c -> a (b c)"),
    case("Flatten", "2x3x4", "a b c -> (a b) c", axis=-1),
    case("Squeeze", ["2x1x4", [1]], "a 1 c, - -> a c"),
    case("Squeeze", "2x1x4", "a 1 c -> a c", opset=11, axes=[1]),
    case("Unsqueeze", ["2x4", [1]], "a c, - -> a 1 c"),
    case("Transpose", "2x3x4", "a b c -> c a b", perm=[2, 0, 1]),
    case("Transpose", "2x3x4", "a b c -> c b a"),
    case("Gather", ["6x4", [4, 1, 3]], "a b, - -> a[4,1,3] b"),
    case("Gather", ["3x4", np.asarray(2)], "a+_1 b, - -> b | a=2", why="one index"),
    case("Gather", ["4x6", [[0, 1], [2, 3]]], "a (x y)+r, - -> a x y | x=2 y=2 r=2", axis=1),
    case("Gather", "6x4* i64:3", "_ b, k -> k! b", roles="0:table", why="computed when it runs"),
    case("Slice", ["6x4", [1], [5], [0], [2]], "a b, -, -, -, - -> a[1:5:2] b"),
    case("Slice", ["6x4", [-1], [-100], [0], [-1]], "a b, -, -, -, - -> a[::-1] b"),
    case("Slice", "6x4", "a b -> a[1:4] b", opset=9, axes=[0], starts=[1], ends=[4]),
    case("Slice", "6x4 i64:1 i64:1", "_ _, _, _ -> ?", why="not known", runs=False),
    case("Split", ["6x4", [2, 4]], "a b, - -> a[:2] b, a[2:] b"),
    case("Split", "6x4", "a b -> a[:2] b, a[2:4] b, a[4:] b", num_outputs=3),
    case("Split", "6x4", "a b -> a[:1] b, a[1:] b", opset=11, split=[1, 5]),
    case("Concat", "2x3 4x3", "a c, b c -> a+b c", axis=0),
    case("Concat", "2x3 2x1 2x4", "a c, a 1, a b -> a c+_1+b", axis=1),
    case("Expand", ["3x1", [2, 3, 4]], "a 1, - -> n! a m! | n=2 m=4"),
    case("Expand", ["3x4", [3, 1]], "a b, - -> a b"),
    case("ConstantOfShape", [[3, 4]], "- -> a b | a=3 b=4"),
    case("ConstantOfShape", [[3, 4]], "- -> a! b! | a=3 b=4", value=helper.make_tensor("v", F, [1], [2.0])),
    case("Tile", ["3x4", [1, 2]], "a b, - -> a (_2 b)"),
    case("Tile", ["3x1", [2, 4]], "a 1, - -> (_2 a) n! | n=4"),
    case("Pad", ["3x4", [0, 1, 0, 2]], "a b, - -> a p+b+q | p=1 q=2"),
    case("Pad", ["3x4", [0, 2, 0, 1], np.float32(1)], "a b, -, - -> a! (p+b+q)! | p=2 q=1"),
    case("Pad", ["3x4", [2, 2], None, [1]], "a b, -, -, - -> a p+b+q | p=2 q=2"),
    case("Pad", "3x4", "a b -> a p+b | p=2", opset=9, pads=[0, 2, 0, 0]),
    case("Pad", ["3x4", [0, 1, 0, 1]], "a _, - -> a _", mode="reflect", why="mode reflect"),
]  # fmt: skip

SPATIAL = [
    case("MaxPool", "2x3x6x6", "b c _ _ -> b c _ _", kernel_shape=[2, 2], strides=[2, 2]),
    case("MaxPool", "2x3x6x6", "_ _ _ _ -> _ _ _ _, _ _ _ _", kernel_shape=[2, 2], why="counted in the positions"),
    case("AveragePool", "2x3x6x6", "b c _ _ -> b c _ _", kernel_shape=[3, 3], pads=[1] * 4, count_include_pad=1),
    case("LpPool", "2x3x6x6", "b c _ _ -> b c _ _", kernel_shape=[2, 2]),
    case("GlobalAveragePool", "2x3x4x5", "b c ~h ~w -> b c 1 1"),
    case("GlobalMaxPool", "2x3x4x5", "b c ~h ~w -> b c 1 1"),
    case("GlobalLpPool", "2x3x4x5", "b c h ~w! -> b c 1 1"),
    case("MaxUnpool", "2x3x4x4", "b c _ _ -> b c _ _", chain=[
         node("MaxPool", "i0", "y p", kernel_shape=[2, 2], strides=[2, 2])], reads="y p", kernel_shape=[2, 2], strides=[2, 2]),
    case("MaxUnpool", ["2x3x5x5", "2x3x2x2", [2, 3, 5, 5]], "b c _ _, b c _ _, - -> b c _ _", chain=[
         node("MaxPool", "i0", "y p", kernel_shape=[2, 2], strides=[2, 2])], reads="i1 p i2",
         kernel_shape=[2, 2], strides=[2, 2]),
    case("MaxUnpool", "2x3x2x2 i64:2x3x2x2", "_ _ _ _, _ _ _ _ -> _ _ _ _", kernel_shape=[2, 2], strides=[2, 2],
         why="do not come from MaxPool"),
    # Positions less those of each channel's first element: what torch's older exporter makes of return_indices.
    case("Sub", ["2x3x4x4", [0, 0], [1, 1], [2, 3]], "b c _ _, -, -, - -> b! c! _ _", reads="p first", chain=[
         node("MaxPool", "i0", "y p", kernel_shape=[2, 2], strides=[2, 2]), node("MaxPool", "i0", "z q", kernel_shape=[1, 1]),
         node("Slice", "q i1 i2 i3", "first")]),
    case("Add", ["2x3x4x4", [[1]]], "_ _ _ _, - -> _ _ _ _", reads="p i1", why="counted in the positions",
         chain=[node("MaxPool", "i0", "y p", kernel_shape=[2, 2])]),
    case("MaxRoiPool", "2x3x8x8 4x5", "_ c _ _, k _ -> k! c _ _", pooled_shape=[2, 2],
         data={1: [[0, 0, 0, 5, 5], [1, 1, 1, 6, 6], [1, 0, 2, 3, 3], [0, 4, 4, 7, 7]]}),
    case("RoiAlign", "2x3x8x8 4x4 i64:4", "_ c _ _, k _, k -> k! c _ _", output_height=2, output_width=2,
         data={1: [[0, 0, 5, 5], [1, 1, 6, 6], [0, 2, 3, 3], [4, 4, 7, 7]]}),
    case("GridSample", "2x3x4x4 2x5x5x2", "b c _ _, b _ _ _ -> b c _ _"),
    case("GridSample", "2x3x4x4x4 2x5x5x5x3", "b c _ _ _, b _ _ _ _ -> b c _ _ _"),
    case(MS + "GridSample", "2x3x4x4 2x5x5x2", "b! c _ _, b _ _ _ -> b! c _ _"),
    case("AffineGrid", ["2x2x3", [2, 4, 5, 6]], "b _ _, - -> b! _ _ _"),
    case("Resize", ["2x3x4x4", None, [1.0, 1.0, 2.0, 2.0]], "b c _ _, -, - -> b c _ _"),
    case("Resize", ["2x3x4x4", None, None, [2, 3, 6, 6]], "b c _ _, -, -, - -> b c _ _", mode="linear"),
    case("Resize", ["2x3x4x4", None, None, [6, 4]], "b c _ w, -, -, - -> b c _ w", axes=[2, 3]),
    case("Resize", ["2x3x4x4", None, None, [2, 3, 6, 8]], "_ _ _ _, -, -, - -> _ _ _ _", runs=False,
         keep_aspect_ratio_policy="not_larger", why="is resized"),
    case("Resize", ["2x30x4x4", None, [1.0, 1.02, 2.0, 2.0]], "b _ _ _, -, - -> b _ _ _"),
    case("Resize", ["2x3x4x4", [0, 0, 0.1, 0, 1, 1, 0.9, 1], None, [2, 3, 4, 4]], "b c _ w, -, -, - -> b! c! _ w!",
         coordinate_transformation_mode="tf_crop_and_resize", extrapolation_value=9.0, mode="linear", runs=False),
    case("Resize", ["2x3x4x4", [1.0, 1.0, 2.0, 2.0]], "b c _ _, - -> b c _ _", opset=10),
    case("Resize", ["2x3x4x4", [], [1.0, 1.0, 2.0, 2.0]], "b c _ _, -, - -> b c _ _", opset=11),
    case("Upsample", ["2x3x4x4", [1.0, 1.0, 2.0, 2.0]], "b c _ _, - -> b c _ _", opset=9),
    case("Upsample", "2x3x4x4", "b c _ _ -> b c _ _", opset=7, scales=[1.0, 1.0, 2.0, 2.0]),
    case("CenterCropPad", ["2x6x5", [2, 4, 7]], "b _ _, - -> b _ _"),
    case("CenterCropPad", ["2x6x5", [3]], "b c _, - -> b c _", axes=[-1]),
    case("CenterCropPad", ["2x6x5", [6, 3]], "b c _, - -> b c _", axes=[1, 2]),
    case("DepthToSpace", "2x12x4x5", "b (_4 c) h w -> b c (h _2) (w _2)", blocksize=2),
    case("DepthToSpace", "2x12x4x5", "b (c _4) h w -> b c (h _2) (w _2)", blocksize=2, mode="CRD"),
    case("SpaceToDepth", "2x3x4x6", "b c (h _2) (w _2) -> b (_4 c) h w", blocksize=2),
    case("SpaceToDepth", "2x3x4x6", "b c (h _2) (w _2) -> b (c _4) h w", blocksize=2, mode="CRD", opset=28),
    case("Col2Im", ["2x12x9", [4, 4], [2, 2]], "b (c _4) _, -, - -> b c _ _"),
    case("DFT", ["2x3x8x1", None, np.asarray(2)], "b c _ 1, -, - -> b c _ _", opset=20),
    case("DFT", "2x8x3x2", "b _ c _ -> b _ c _", opset=17),
    case("STFT", ["2x16x1", np.asarray(4), "8*"], "b _ _, -, _ -> b _ _ _"),
    case("CausalConvWithState", "2x3x5 3x1x4* 3* 2x3x3", "b c _, c _ _, c, b c _ -> b! c _, b! c _"),
    case("CausalConvWithState", "2x3x5 3x1x4", "b c _, c _ _ -> b! c _, b! c _", activation="silu"),
]  # fmt: skip

GRID = np.stack(np.meshgrid(np.arange(2), [3, 1], indexing="ij"), axis=-1)  # 2x2x2: (0,3) (0,1) / (1,3) (1,1)
#: Positions 0 to n - 1 of the first axis, counted at run time; i2 and i3 are 0 and 1.
COUNT = [
    node("Shape", "i0", "s", end=1),
    node("Squeeze", "s", "n"),
    node("Range", "i2 n i3", "r"),
    helper.make_node("Constant", [], ["minus"], value_ints=[-1]),
]
INDEXING = [
    case("Range", ["5x4", None, np.asarray(0), np.asarray(1)], "a b, -, -, - -> _", reads="i2 n i3", chain=COUNT[:2]),
    case("Shape", "3x4", "a b -> _", runs=False),
    case("Shape", "3x4", "a b -> _", start=1, runs=False),
    case("Size", "3x4", "a b ->", runs=False),
    case("GatherElements", "3x4x5 i64:3x2x5", "a _ c, a k c -> a k! c", axis=1),
    case("GatherElements", "3x4x5 i64:2x4x5", "a _ c, a[:2] k c -> a[:2] k! c", axis=1),
    case("GatherElements", "3x4* i64:3x2", "a _, a k -> a k!", axis=1, roles="0:table"),
    case("GatherND", "3x4x5 i64:2x1", "_ b c, k _ -> k! b c", why="computed when it runs"),
    case("GatherND", "2x4x5 i64:2x3x1", "b _ c, b k _ -> b k! c", batch_dims=1),
    case("GatherND", ["4x5", [[3], [1], [0]]], "a b, - -> a[3,1,0] b"),
    case("GatherND", ["2x4x5", GRID], "a b d, - -> a b[3,1] d"),
    case("GatherND", ["2x4x5", [[0, 1], [1, -1]]], "a b d, - -> (a b)[1,7] d"),
    case("GatherND", "6x4* i64:3x1", "_ b, k _ -> k! b", roles="0:table"),
    case("ScatterElements", "3x4x5 i64:3x2x5 3x2x5", "a _ c, a _ c, a _ c -> a _ c", axis=1),
    case("ScatterElements", "3x4x5 i64:2x2x5 2x2x5", "a _ c, a[:2] _ c, a[:2] _ c -> a _ c", axis=1),
    case("ScatterElements", "3x4 i64:3x2 3x2", "a _, a _, a! _ -> a! _", axis=1, reduction="add"),
    case("Scatter", "3x4 i64:3x2 3x2", "a _, a _, a _ -> a _", axis=1, opset=9),
    case("ScatterND", "3x4 i64:2x1 2x4", "_ b, _ _, _ b -> _ b", why="computed when it runs"),
    case("ScatterND", ["5x4", [[3], [1]], "2x4"], "a b, -, a[3,1] b -> a b"),
    case("ScatterND", ["2x4x5", GRID, "2x2x5"], "a b d, -, a b[3,1] d -> a b d"),
    case("ScatterND", ["2x4x5", GRID, "2x2x5"], "a b d, -, a b[3,1]! d -> a! b! d",
         reduction="add"),
    case("ScatterND", ["5x4", "3x4", np.asarray(0), np.asarray(1), [1], [4]], "a b, a[1:4] b, -, -, -, - -> a b",
         reads="i0 p i1", chain=[*COUNT, node("Slice", "r i4 i5", "t"), node("Unsqueeze", "t minus", "p")]),
    case("TensorScatter", "2x3x6x4 2x3x2x4 i64:2", "b h _ d, b h _ d, b -> b h _ d", opset=24),
    case("TensorScatter", "2x6x4 2x2x4", "b _ d, b! _ d -> b! _ d", opset=24, axis=1),
    case("OneHot", ["i64:2x3", np.asarray(4), [0.0, 1.0]], "a b, -, - -> a! b! _"),
    case("OneHot", ["i64:2x3", np.asarray(4), [0.0, 1.0]], "a b, -, - -> a! _ b!", axis=1),
    case("ReverseSequence", "4x2x3 i64:2", "_ b c, b -> _ b c", data={1: [3, 2]}),
    case("ReverseSequence", "2x4x3 i64:2", "b _ c, b -> b _ c", data={1: [3, 2]}, batch_axis=0, time_axis=1),
    case("Trilu", "2x3x3", "b _ _ -> b _ _"),
    case(MS + "Trilu", "2x3x3", "b _ _ -> b _ _"),
    case("Compress", ["2x4x3", [True, False, True]], "a b c, - -> a b[0,2] c", axis=1, runs=False),
    case("Compress", "2x4x3 bool:4", "_ _ _, _ -> ?", axis=1, why="picked from"),
    case("Compress", ["2x4", [True, False, True]], "_ _, - -> ?", why="picked from"),
]  # fmt: skip


CASES = [*POINTWISE, *LINEAR, *NORM, *REDUCE, *MOVEMENT, *SPATIAL, *INDEXING, *CONTROL, *SEQUENCES, *FROZEN]


@pytest.mark.parametrize("line", CASES, ids=str)
def test_units(line: Case) -> None:
    check(line)


@pytest.mark.parametrize("line", [line for line in CASES if line.runs], ids=str)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_cut_and_source_agree(line: Case, seed: int) -> None:
    assert check_cut(line, seed), "nothing installed runs this op: say runs=False"


def test_every_default_op_is_described() -> None:
    assert coverage() == (), "a release of onnx brought ops: give each a rule or a place in ops/frozen.py"


def test_every_described_op_has_a_line() -> None:
    more = importlib.import_module("tests.test_rules_table_more")
    lines = {line.op for line in (*CASES, *more.CASES)}
    rules = load_rules()
    wanted = {name for name in registered() if "::" not in name or rules[tuple(name.split("::"))].couple is not None}
    assert not sorted(wanted - lines), "described ops without a line in the table"


def test_a_rule_that_is_wrong_is_noticed() -> None:
    for wrong in ("a b -> b a", "a b -> a _", "a b -> a! b", "~a b -> a b", "a b -> a[::-1] b"):
        with pytest.raises(AssertionError):
            check(case("Relu", "4x4", wrong))
