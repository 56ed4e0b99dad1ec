"""If, Loop, Scan, local functions, sequences and optionals."""

from __future__ import annotations

import numpy as np
from onnx import AttributeProto, ModelProto, helper

from tests.patterns.build import BOOL, F32, I64, Net, pattern

DOMAIN = "local.blocks"


def _typed(g: Net, name: str, *shape: int | str) -> None:
    g.y(name, dtype=F32, shape=list(shape))


@pattern("a.w:0 b.w:0,1", frozen="fc.w:0")
def if_branches_with_convs() -> ModelProto:
    """Each branch has its own convolution on a captured map; results meet in one trunk."""
    g = Net()
    x = g.cbr(g.x("N", 3, 6, 6), "a", 8, 3)
    flag = g.x(name="flag", dtype=BOOL)
    branches = []
    for n, hidden in (("t", 6), ("e", 10)):
        s = g.body()
        y = s.conv(s.Relu(s.conv(x, f"{n}1", hidden, 8)), f"{n}2", 12, hidden)
        _typed(s, y, "N", 12, 6, 6)
        branches.append(s.graph(n))
    x = g.If(flag, then_branch=branches[0], else_branch=branches[1])
    g.head(g.cbr(g.Relu(x), "b", 10, 12), 10, dtype=F32, shape=["N", 5])
    return g.model()


@pattern("a.w:0 t1.w:0,1 t2.w:1 b.w:0,1")
def if_branch_with_large_weights() -> ModelProto:
    """Weights of a branch that are too large to be written into a session's model: their masked forms take their place."""
    g = Net()
    x = g.cbr(g.x("N", 3, 6, 6), "a", 24, 3)
    s, e = g.body(), g.body()
    _typed(s, s.conv(s.Relu(s.conv(x, "t1", 32, 24)), "t2", 24, 32), "N", 24, 6, 6)
    _typed(e, e.Tanh(x), "N", 24, 6, 6)
    x = g.If(g.x(name="flag", dtype=BOOL), then_branch=s.graph("t"), else_branch=e.graph("e"))
    g.head(g.cbr(x, "b", 10, 24), 10, dtype=F32, shape=["N", 5])
    return g.model()


@pattern("a.w:0 b.w:0,1")
def if_with_outer_scope_weights() -> ModelProto:
    """Both branches use one outer kernel; one of them adds an activation."""
    g = Net()
    x = g.cbr(g.x("N", 3, 6, 6), "a", 8, 3)
    flag = g.x(name="flag", dtype=BOOL)
    w = g.w("shared", 12, 8, 3, 3)
    branches = []
    for n in ("t", "e"):
        s = g.body()
        y = s.Conv(x, w, pads=[1] * 4)
        y = s.Relu(y) if n == "t" else s.Tanh(y)
        _typed(s, y, "N", 12, 6, 6)
        branches.append(s.graph(n))
    x = g.If(flag, then_branch=branches[0], else_branch=branches[1])
    g.head(g.cbr(x, "b", 10, 12), 10, dtype=F32, shape=["N", 5])
    return g.model()


@pattern("a.w:0 b.w:0,1")
def if_identity_or_scaled() -> ModelProto:
    """One branch passes the map through: its channels and the other's are the same."""
    g = Net()
    x = g.cbr(g.x("N", 3, 6, 6), "a", 12, 3)
    s, e = g.body(), g.body()
    _typed(s, s.Identity(x), "N", 12, 6, 6)
    _typed(e, e.Mul(x, e.w("gain", 12, 1, 1, shift=1)), "N", 12, 6, 6)
    x = g.If(g.x(name="flag", dtype=BOOL), then_branch=s.graph("t"), else_branch=e.graph("e"))
    g.head(g.cbr(x, "b", 10, 12), 10, dtype=F32, shape=["N", 5])
    return g.model()


@pattern("a.w:0 b.w:0,1")
def if_on_run_time_shape() -> ModelProto:
    """torch's squeeze guard: If(dim == 1) Squeeze else Identity."""
    g = Net()
    x = g.cbr(g.x("N", 3, 6, 6), "a", 12, 3)
    p = g.GlobalAveragePool(x)
    one = g.Equal(g.Gather(g.Shape(p), g.c(3)), g.c(1))
    s, e = g.body(), g.body()
    s.y(s.Squeeze(p, s.c([3])), dtype=F32, shape=None)
    e.y(e.Identity(p), dtype=F32, shape=None)
    p = g.If(one, then_branch=s.graph("t"), else_branch=e.graph("e"))
    p = g.Reshape(p, g.c([-1, 12, 1, 1]))
    g.head(g.cbr(g.Mul(x, g.Sigmoid(p)), "b", 10, 12), 10, dtype=F32, shape=["N", 5])
    return g.model()


def _loop_body(g: Net, body: Net, carried: list[tuple[str, list[int | str]]]) -> tuple[str, ...]:
    body.inputs.append(helper.make_tensor_value_info("i", I64, []))
    body.inputs.append(helper.make_tensor_value_info("go", BOOL, []))
    return tuple(body.x(*shape, name=name) for name, shape in carried)


@pattern("a.w:0 b.w:0,1")
def loop_refinement_steps() -> ModelProto:
    """A Loop applies one residual block a run-time number of times: the carried width is one width."""
    g = Net()
    x = g.cbr(g.x("N", 3, 6, 6), "a", 8, 3)
    times = g.x(name="times", dtype=I64)
    s = g.body()
    (h,) = _loop_body(g, s, [("h_in", ["N", 8, 6, 6])])
    y = s.Add(h, s.conv(s.Relu(s.conv(h, "l1", 12, 8)), "l2", 8, 12))
    s.y(s.Identity("go"), dtype=BOOL, shape=[])
    _typed(s, s.Tanh(y), "N", 8, 6, 6)
    x = g.Loop(times, g.c(True, bool), x, body=s.graph("body"))
    g.head(g.cbr(x, "b", 10, 8), 10, dtype=F32, shape=["N", 5])
    return g.model()


@pattern("a.w:1 o.w:0")
def loop_collects_outputs() -> ModelProto:
    """A Loop with a scan output over a captured sequence."""
    g = Net()
    x = g.Relu(g.linear(g.x(4, "N", 7), "a", 7, 12))
    s = g.body()
    (h,) = _loop_body(g, s, [("h_in", ["N", 12])])
    y = s.Tanh(s.Add(s.Gather(x, "i", axis=0), s.Mul(h, s.w("decay", 12))))
    s.y(s.Identity("go"), dtype=BOOL, shape=[])
    _typed(s, y, "N", 12)
    _typed(s, s.Identity(y), "N", 12)
    zero = g.Mul(g.Gather(x, g.c(0), axis=0), g.f(0))
    _, ys = g.Loop(g.c(4), g.c(True, bool), zero, body=s.graph("body"), n=2)
    g.out(g.linear(ys, "o", 12, 3), dtype=F32, shape=[4, "N", 3])
    return g.model()


@pattern("a.w:1 o.w:0", dims={"T": (4, 6)})
def scan_gru_cell() -> ModelProto:
    """A recurrent cell written out in a Scan body with outer-scope weights."""
    g = Net()
    x = g.Relu(g.linear(g.x("T", "N", 7), "a", 7, 9))
    wi, wh = g.w("wi", 9, 12, scale=0.3), g.w("wh", 12, 12, scale=0.3)
    s = g.body()
    h, t = s.x("N", 12, name="h_in"), s.x("N", 9, name="x_in")
    y = s.Tanh(s.Add(s.MatMul(t, wi), s.MatMul(h, wh)))
    _typed(s, y, "N", 12)
    _typed(s, s.Identity(y), "N", 12)
    batch = g.Gather(g.Shape(x), g.c([1]))
    h0 = g.Expand(g.f([[0.0]]), g.Concat(batch, g.c([12]), axis=0))
    _, ys = g.Scan(h0, x, body=s.graph("cell"), num_scan_inputs=1, n=2)
    g.out(g.linear(ys, "o", 12, 3), dtype=F32, shape=["T", "N", 3])
    return g.model()


@pattern("a.w:1 o.w:0", dims={"T": (4, 6)})
def scan_batch_first_axes() -> ModelProto:
    """Scan over axis 1 in and out, backwards, with a per-channel decay (an SSM recurrence)."""
    g = Net()
    x = g.linear(g.x("N", "T", 7), "a", 7, 12)
    s = g.body()
    h, t = s.x("N", 12, name="h_in"), s.x("N", 12, name="x_in")
    y = s.Add(s.Mul(h, s.positive("decay", 12, low=0.1, high=0.9)), t)
    _typed(s, y, "N", 12)
    _typed(s, s.Tanh(y), "N", 12)
    h0 = g.Mul(g.Gather(x, g.c(0), axis=1), g.f(0))
    _, ys = g.Scan(
        h0, x, body=s.graph("cell"), num_scan_inputs=1, scan_input_axes=[1], scan_output_axes=[1],
        scan_input_directions=[1], scan_output_directions=[1], n=2,
    )  # fmt: skip
    g.out(g.linear(ys, "o", 12, 3), dtype=F32, shape=["N", "T", 3])
    return g.model()


def _function(
    name: str, nodes: list[tuple], inputs: list[str], outputs: list[str], attributes: tuple[str, ...] = ()
) -> object:
    made = [helper.make_node(op, i, o, **kw) for op, i, o, kw in nodes]
    return helper.make_function(
        DOMAIN, name, inputs, outputs, made, [helper.make_opsetid("", 18)], attributes=list(attributes)
    )


@pattern("a.w:0 b.w:0,1 fc.w:1")
def local_function_block() -> ModelProto:
    """Conv, BatchNormalization, Relu as a function called twice with different weights."""
    g = Net()
    block = _function(
        "Block",
        [
            ("Conv", ["x", "w"], ["c"], {"pads": [1, 1, 1, 1]}),
            ("BatchNormalization", ["c", "s", "h", "m", "v"], ["n"], {}),
            ("Relu", ["n"], ["y"], {}),
        ],
        ["x", "w", "s", "h", "m", "v"],
        ["y"],
    )
    x = g.x("N", 3, 6, 6)
    for n, i, o in (("a", 3, 8), ("b", 8, 12)):
        params = [g.w(f"{n}.{p}", o, scale=0.2, shift=1) for p in "shm"]
        x = g.op("Block", x, g.w(f"{n}.w", o, i, 3, 3), *params, g.positive(f"{n}.v", o), domain=DOMAIN)
    g.head(x, 12, dtype=F32, shape=["N", 5])
    return g.model(functions=[block])


@pattern("a.w:1 b.w:0,1")
def nested_functions_with_attributes() -> ModelProto:
    """A function that calls a function, with an attribute passed down, and a constant of its own."""
    act = _function("Leaky", [("LeakyRelu", ["x"], ["y"], {})], ["x"], ["y"], ("alpha",))
    ref = AttributeProto(name="alpha", ref_attr_name="alpha", type=AttributeProto.FLOAT)
    act.node[0].attribute.append(ref)
    two = helper.make_tensor("two", F32, [], [2.0])
    layer = _function(
        "Layer",
        [
            ("MatMul", ["x", "w"], ["m"], {}),
            ("Constant", [], ["two"], {"value": two}),
            ("Mul", ["m", "two"], ["d"], {}),
        ],
        ["x", "w"],
        ["y"],
        ("alpha",),
    )
    call = helper.make_node("Leaky", ["d"], ["y"], domain=DOMAIN)
    call.attribute.append(ref)
    layer.node.append(call)
    layer.opset_import.append(helper.make_opsetid(DOMAIN, 1))
    g = Net()
    x = g.x("N", 7)
    for n, i, o in (("a", 7, 12), ("b", 12, 10)):
        x = g.op("Layer", x, g.w(f"{n}.w", i, o, scale=0.3), domain=DOMAIN, alpha=0.2)
    g.out(g.linear(x, "o", 10, 3), dtype=F32, shape=["N", 3])
    return g.model(functions=[layer, act])


@pattern("a.w:1")
def function_with_weights_inside() -> ModelProto:
    """A function body may hold its weights as Constants."""
    rng = np.random.default_rng(3)
    value = helper.make_tensor("inner", F32, [12, 10], rng.standard_normal(120).astype(np.float32).tolist())
    inner = _function(
        "Inner",
        [("Constant", [], ["w"], {"value": value}), ("MatMul", ["x", "w"], ["m"], {}), ("Relu", ["m"], ["y"], {})],
        ["x"],
        ["y"],
    )
    g = Net()
    x = g.op("Inner", g.Relu(g.linear(g.x("N", 7), "a", 7, 12)), domain=DOMAIN)
    g.out(g.linear(x, "o", 10, 3), dtype=F32, shape=["N", 3])
    return g.model(functions=[inner])


@pattern("b.w:0")
def sequence_split_and_concat() -> ModelProto:
    """SplitToSequence, SequenceAt, ConcatFromSequence: frozen with a reason, or understood."""
    g = Net()
    x = g.cbr(g.x("N", 3, 6, 6), "a", 12, 3)
    seq = g.SplitToSequence(x, g.c([4, 8]), axis=1)
    x = g.Concat(g.SequenceAt(seq, g.c(1)), g.SequenceAt(seq, g.c(0)), axis=1)
    x = g.ConcatFromSequence(g.SequenceConstruct(x, x), axis=1)
    g.head(g.cbr(x, "b", 10, 24), 10, dtype=F32, shape=["N", 5])
    return g.model()


@pattern("b.w:0")
def optional_values() -> ModelProto:
    g = Net()
    x = g.cbr(g.x("N", 3, 6, 6), "a", 12, 3)
    x = g.OptionalGetElement(g.Optional(x))
    g.head(g.cbr(x, "b", 10, 12), 10, dtype=F32, shape=["N", 5])
    return g.model()


@pattern("a.w:0 c.w:0 b.w:1")
def if_inside_if_with_shared_names() -> ModelProto:
    """Nested branches whose inner values are called the same in both."""
    g = Net()
    x = g.cbr(g.x("N", 3, 6, 6), "a", 12, 3)
    x = g.cbr(x, "c", 8, 12)
    flag, other = g.x(name="flag", dtype=BOOL), g.x(name="other", dtype=BOOL)

    def leaf(op: str) -> Net:
        s = g.body()
        _typed(s, s.op(op, x, out="leaf"), "N", 8, 6, 6)
        return s

    mid = g.body()
    y = mid.If(other, then_branch=leaf("Tanh").graph("tt"), else_branch=leaf("Sigmoid").graph("te"))
    _typed(mid, y, "N", 8, 6, 6)
    x = g.If(flag, then_branch=mid.graph("t"), else_branch=leaf("Relu").graph("e"))
    g.head(g.cbr(x, "b", 10, 8), 10, dtype=F32, shape=["N", 5])
    return g.model()
