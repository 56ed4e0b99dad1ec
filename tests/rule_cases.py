"""Table lines of control flow, sequences and ops frozen by design, with what it takes to write bodies."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from tests.rule_harness import case

F, I, B = TensorProto.FLOAT, TensorProto.INT64, TensorProto.BOOL


def body(nodes: list[Any], inputs: Sequence[str], outputs: Sequence[str], **weights: tuple[int, ...]) -> Any:
    """A graph for If, Loop and Scan; ``name:2x3`` declares float values, ``name=i`` an int, ``name=b`` a bool."""

    def declare(text: str) -> Any:
        if text[-2:] in ("=i", "=b"):
            return helper.make_tensor_value_info(text[:-2], I if text[-1] == "i" else B, [])
        name, _, size = text.partition(":")
        return helper.make_tensor_value_info(name, F, [int(n) for n in size.split("x") if n])

    rng = np.random.default_rng(0)
    constants = [numpy_helper.from_array(rng.random(s).astype(np.float32), n) for n, s in weights.items()]
    return helper.make_graph(nodes, "body", list(map(declare, inputs)), list(map(declare, outputs)), constants)


def node(op: str, inputs: str, outputs: str, **attrs: Any) -> Any:
    return helper.make_node(op, inputs.split(), outputs.split(), **attrs)


def branches(then: Any, other: Any) -> dict[str, Any]:
    return {"then_branch": then, "else_branch": other}


# Bodies read the operands of their node by name (i0, i1, ...), as values of the outer scope.
CONTROL = [
    case("If", ["bool:()"], "-> b! c!", **branches(
        body([], [], ["w:2x3"], w=(2, 3)), body([], [], ["v:2x3"], v=(2, 3)))),
    case("Loop", [np.asarray(3), np.asarray(True), "2x4"], "-, -, b c -> b! c!, _ b! c!", body=body(
        [node("Identity", "go", "on"), node("Relu", "h", "y"), node("Identity", "y", "z")],
        ["i=i", "go=b", "h:2x4"], ["on=b", "y:2x4", "z:2x4"])),
    case("Loop", [np.asarray(3), np.asarray(True), "4x4"], "-, -, c c -> c! c!", body=body(
        [node("Identity", "go", "on"), node("Transpose", "h", "y")],
        ["i=i", "go=b", "h:4x4"], ["on=b", "y:4x4"])),
    case("Loop", ["i64:()", "bool:()", "2x4"], ", , _ _ -> ?", body=body(
        [node("Identity", "go", "on"), node("Concat", "h h", "y", axis=1)],
        ["i=i", "go=b", "h"], ["on=b", "y"]), why="changes its shape"),
    case("Loop", ["i64:()", "bool:()", "2x4"], ", , _ c -> _ c!, ?", body=body(
        [node("Identity", "go", "on"), node("Identity", "h", "y"), node("ReduceMax", "h", "z", keepdims=0, axes=[1])],
        ["i=i", "go=b", "h:2x4"], ["on=b", "y:2x4", "z:2"]), opset=13, why="number of times"),
    case("Scan", "2x4 5x2x4", "b c, _ b c -> b! c!, _ b! c!", num_scan_inputs=1, body=body(
        [node("Add", "h x", "y"), node("Identity", "y", "z")], ["h:2x4", "x:2x4"], ["y:2x4", "z:2x4"])),
    case("Scan", "2x4 3x4x4* 3x4*", "n c, _ c c, _ c -> n! c", roles="1:weight 2:weight", num_scan_inputs=2, body=body(
        [node("MatMul", "h w", "m"), node("Add", "m b", "y")], ["h:2x4", "w:4x4", "b:4"], ["y:2x4"])),
    case("Loop", [np.asarray(3), np.asarray(True), "2x4*"], "-, -, b c -> b! c!", roles="2:shift", body=body(
        [node("Identity", "go", "on"), node("Relu", "h", "y")], ["i=i", "go=b", "h:2x4"], ["on=b", "y:2x4"])),
    case("Scan", "4 2x5x4", "c, b _ c -> c!, b! c! _", num_scan_inputs=1, scan_input_axes=[1], scan_output_axes=[-1],
         scan_input_directions=[1], body=body(
        [node("Identity", "h", "y"), node("Add", "x h", "z")], ["h:4", "x:2x4"], ["y:4", "z:2x4"])),
    case("Scan", [None, "3x4", "3x5x4"], "-, _ c, _ _ c -> _ c!, _ _ c!", num_scan_inputs=1, opset=8, body=body(
        [node("Add", "h x", "y"), node("Identity", "y", "z")], ["h:4", "x:4"], ["y:4", "z:4"])),
]  # fmt: skip
SEQUENCES = [
    case("SequenceConstruct", "2x3 2x4", "_ _, _ _ -> ?", why="not only unpacked"),
    case("SplitToSequence", ["6x4", [2, 4]], "_ _, - -> ?", why="not only unpacked"),
    case("Optional", "2x3", "_ _ -> ?", why="not only unpacked"),
    case("OptionalGetElement", "2x3", "a b -> a b", opset=18),
    case("OptionalGetElement", "2x3", "a b -> a b", chain=[node("Optional", "i0", "s")], reads="s"),
    case(
        "SequenceAt",
        ["2x3", "2x4", np.asarray(-1)],
        "a b, c d, - -> c d",
        chain=[node("SequenceConstruct", "i0 i1", "s")],
        reads="s i2",
        runs=False,
    ),
    case(
        "SequenceAt",
        ["2x3", "2x3", np.asarray(1)],
        "a b, c d, - -> c d",
        chain=[node("SequenceConstruct", "i0 i1", "s")],
        reads="s i2",
    ),
    case(
        "SequenceAt",
        ["6x4", [3, 3], np.asarray(1)],
        "a b, -, - -> a[3:] b",
        chain=[node("SplitToSequence", "i0 i1", "s")],
        reads="s i2",
    ),
    case(
        "SequenceAt",
        ["6x4", np.asarray(2), np.asarray(1)],
        "b a, -, - -> b a[2:4]",
        chain=[node("SplitToSequence", "i0 i1", "s", axis=1)],
        reads="s i2",
    ),
    case(
        "SequenceAt",
        ["6x4", np.asarray(1)],
        "_ b, - -> b",
        chain=[node("SplitToSequence", "i0", "s", keepdims=0)],
        reads="s i1",
        why="a tensor of its own",
    ),
    case(
        "SequenceAt",
        ["2x3", "2x3", "i64:()"],
        "_ _, _ _, -> _ _",
        why="not only unpacked",
        chain=[node("SequenceConstruct", "i0 i1", "s")],
        reads="s i2",
    ),
    case(
        "ConcatFromSequence",
        "2x3 4x3",
        "a c, b c -> a+b c",
        axis=0,
        chain=[node("SequenceConstruct", "i0 i1", "s")],
        reads="s",
    ),
    case(
        "ConcatFromSequence",
        "2x3 2x3",
        "a c, a c -> a _ c",
        axis=1,
        new_axis=1,
        chain=[node("SequenceConstruct", "i0 i1", "s")],
        reads="s",
    ),
    case(
        "ConcatFromSequence",
        ["2x6", [2, 4]],
        "a c, - -> a c",
        axis=1,
        chain=[node("SplitToSequence", "i0 i1", "s", axis=1)],
        reads="s",
    ),
    case("SequenceLength", "2x3 2x3", "a b, c d ->", chain=[node("SequenceConstruct", "i0 i1", "s")], reads="s"),
    *(
        case(
            op,
            ["2x3", "2x3", np.asarray(0)],
            "_ _, _ _, - -> ?",
            why="not only unpacked",
            reads=reads,
            chain=[node("SequenceConstruct", "i0 i1", "s")],
        )
        for op, reads in (("SequenceErase", "s i2"), ("SequenceInsert", "s i1 i2"))
    ),
    case(
        "SequenceMap",
        "2x3 2x3",
        "_ _, _ _ -> ?",
        chain=[node("SequenceConstruct", "i0 i1", "s")],
        reads="s",
        body=body([node("Relu", "x", "y")], ["x:2x3"], ["y:2x3"]),
        why="not only unpacked",
    ),
    case("OptionalHasElement", "2x3", "a b ->", opset=18),
]
FROZEN = [
    case("RandomNormal", [], "-> _ _", shape=[2, 3], runs=False),
    case("RandomUniform", [], "-> _ _", shape=[2, 3], runs=False),
    *(case(op, "2x3", "_ _ -> _ _", why="random") for op in ("RandomNormalLike", "RandomUniformLike", "Bernoulli")),
    case("Multinomial", "2x3", "_ _ -> _ _", sample_size=5, why="random"),
    case("Range", [np.asarray(0), np.asarray(6), np.asarray(2)], "-> _"),
    case("EyeLike", "3x4", "_ _ -> _ _", why="positions"),
    case("NonZero", "3x4", "_ _ -> ?", why="only known when it runs"),
    case("Unique", "3x4", "_ _ -> ?", why="whole slices"),
    case("NonMaxSuppression", "1x6x4 1x2x6", "_ _ _, _ _ _ -> ?", why="boxes"),
    case("HannWindow", [np.asarray(8)], "-> _"),
    case("HammingWindow", [np.asarray(8)], "-> _"),
    case("BlackmanWindow", [np.asarray(8)], "-> _"),
    case("MelWeightMatrix", [np.asarray(4), np.asarray(16), np.asarray(8000), np.float32(0), np.float32(4000)], "-> _ _"),
    case("NegativeLogLikelihoodLoss", "3x4 i64:3 4*", "_ _, _, _ ->", why="training", reduction="mean"),
    case("SoftmaxCrossEntropyLoss", "3x4 i64:3", "_ _, _ ->", why="training"),
    case("ImageDecoder", "u8:9", "_ -> ?", why="image file", runs=False),
    case("RegexFullMatch", "str:3", "_ -> _", pattern="a*", why="text"),
    case("StringConcat", "str:3 str:3", "_, _ -> _", why="text"),
    case("StringNormalizer", "str:3", "_ -> ?", why="text"),
    case("StringSplit", "str:3", "_ -> ?, _", why="text"),
    case("TfIdfVectorizer", "i64:3", "_ -> _", why="text", mode="TF", min_gram_length=1, max_gram_length=1,
         max_skip_count=0, ngram_counts=[0], ngram_indexes=[0, 1], pool_int64s=[2, 3]),
    case("SequenceEmpty", [], "-> ?"),
    case("LinearAttention", "2x3x8 2x3x8 2x3x8", "_ _ _, _ _ _, _ _ _ -> ?", q_num_heads=2, kv_num_heads=2, runs=False),
    case("Constant", [], "-> _ _", value=numpy_helper.from_array(np.ones((2, 3), np.float32)), runs=False),
]  # fmt: skip
