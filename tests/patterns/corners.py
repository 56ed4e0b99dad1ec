"""Corners: shared constants, equal sizes, orbits of permutations, borders crossed by several groupings."""

from __future__ import annotations

import numpy as np
from onnx import ModelProto, helper, numpy_helper

from tests.patterns.build import BOOL, F32, Net, pattern


def _start(channels: int = 12, size: int = 6) -> tuple[Net, str]:
    g = Net()
    return g, g.cbr(g.x("N", 3, size, size), "a", channels, 3)


def _end(g: Net, x: str, channels: int) -> ModelProto:
    g.head(g.cbr(x, "b", 10, channels), 10, dtype=F32, shape=["N", 5])
    return g.model()


@pattern("p.w:0 q.w:0,1 fc.w:1")
def zeros_and_ones_shared_by_all_layers() -> ModelProto:
    """Optimisers merge equal constants: one vector is bias, mean and shift of unrelated layers of one width."""
    g = Net()
    zero, one = g.f(np.zeros(8), "zero"), g.f(np.ones(8), "one")
    x = g.x("N", 3, 6, 6)
    for n, i in (("p", 3), ("q", 8), ("r", 8)):
        x = g.Conv(x, g.w(f"{n}.w", 8, i, 3, 3), zero, pads=[1] * 4)
        x = g.Relu(g.BatchNormalization(x, one, zero, zero, one))
    g.head(x, 8)
    return g.model()


@pattern("b.w:0")
def weight_is_also_an_output() -> ModelProto:
    """An initializer that leaves the graph keeps its shape; the layers it feeds live with it."""
    g = Net()
    x = g.cbr(g.x("N", 3, 6, 6), "a", 8, 3)
    m = _end(g, x, 8)
    m.graph.output.append(helper.make_tensor_value_info("a.w", F32, [8, 3, 3, 3]))
    return m


@pattern("a.w:0 b.w:0,1")
def outputs_twice_and_input_passed_through() -> ModelProto:
    """The logits under two names, an input returned as it came, an input nobody reads."""
    g, x = _start(8)
    m = _end(g, x, 8)
    m.graph.input.append(helper.make_tensor_value_info("unused", F32, ["N", 4]))
    m.graph.node.append(helper.make_node("Identity", ["y"], ["again"], name="again"))
    m.graph.node.append(helper.make_node("Identity", ["unused"], ["through"], name="through"))
    m.graph.output.append(helper.make_tensor_value_info("again", F32, ["N", 5]))
    m.graph.output.append(helper.make_tensor_value_info("through", F32, ["N", 4]))
    return m


@pattern("a.w:0 b.w:0,1")
def odd_names() -> ModelProto:
    """Slashes, spaces, brackets and letters beyond ASCII in names of nodes and values."""
    g, x = _start(8)
    m = _end(g, x, 8)
    for k, node in enumerate(m.graph.node):
        node.name = f"/mödel/层[{k}] {node.op_type}::0"
        for names in (node.input, node.output):
            for i, value in enumerate(names):
                names[i] = f"/a b/{value}:0" if "_" in value and not value.startswith("k_") else value
    return m


@pattern("a.w:0 b.w:0,1")
def three_cycle_of_channels() -> ModelProto:
    """x + x[perm] with cycles of length three: units are the orbits."""
    g, x = _start(12)
    perm = [1, 2, 0, 4, 5, 3, 7, 8, 6, 10, 11, 9]
    return _end(g, g.Add(x, g.Gather(x, g.c(perm), axis=1)), 12)


@pattern("b.w:0")
def one_cycle_through_all_channels() -> ModelProto:
    """x + roll(x): all channels are one unit, which may not leave."""
    g, x = _start(8)
    x = g.Mul(x, g.Concat(g.slice(x, 1, 8), g.slice(x, 0, 1), axis=1))
    return _end(g, x, 8)


@pattern("b.w:0,1")
def transposed_grid_meets_itself() -> ModelProto:
    """Channels as a 3 x 4 grid, transposed to 4 x 3, flattened, added to the untransposed."""
    g, x = _start(12)
    y = g.t(g.reshape(x, -1, 3, 4, 6, 6), 0, 2, 1, 3, 4)
    y = g.reshape(y, -1, 12, 6, 6)
    g.head(g.cbr(g.Concat(x, g.Add(x, y), axis=1), "b", 10, 24), 10)
    return g.model()


@pattern("b.w:0,1", families=True)
def concat_crossed_by_groups() -> ModelProto:
    """Maps of 6 and 10 channels concatenated, then a convolution in 4 groups whose borders fall inside both."""
    g = Net()
    x = g.x("N", 3, 6, 6)
    x = g.Concat(g.cbr(x, "p", 6, 3), g.cbr(x, "q", 10, 3), axis=1)
    return _end(g, g.cbr(x, "m", 8, 16, group=4), 8)


@pattern("a.w:0 b.w:0,1", families=True)
def doubled_map_in_two_groups() -> ModelProto:
    """concat(x, x) into a convolution of two groups: both groups see the same channels."""
    g, x = _start(12)
    return _end(g, g.cbr(g.Concat(x, x, axis=1), "m", 16, 24, group=2), 16)


@pattern("b.w:0", families=True, inexact=True)
def group_conv_then_group_norm_of_other_count() -> ModelProto:
    """Convolution in 3 groups, normalisation in 4, over 24 channels: no group of one is made of groups of the other."""
    g, x = _start(12)
    x = g.conv(x, "m", 24, 12, group=3)
    y = g.InstanceNormalization(g.reshape(x, 0, 4, -1), g.f(np.ones(4), "ones"), g.f(np.zeros(4), "zeros"))
    return _end(g, g.Relu(g.reshape(y, -1, 24, 6, 6)), 24)


@pattern("a.w:0 b.w:0,1", widths={"a.w:0": 8, "b.w:1": 8})
def shuffle_and_unshuffle_pixels() -> ModelProto:
    g, x = _start(16)
    x = g.Relu(g.DepthToSpace(x, blocksize=2, mode="CRD"))
    return _end(g, g.SpaceToDepth(x, blocksize=2), 16)


@pattern("c.w:0 s.w:1 b.w:0", widths={"c.w:0": 6})
def outer_broadcasts() -> ModelProto:
    """[N, C, 1, 1] times [N, 1, H, W], one-channel maps, scalars of shape [1], bias of one entry."""
    g = Net()
    x = g.cbr(g.x("N", 3, 6, 6), "a", 8, 3)
    c = g.conv(g.GlobalAveragePool(x), "c", 12, 8, 1)
    s = g.Mul(g.conv(x, "s", 1, 8), g.f([0.5]))
    return _end(g, g.Mul(c, s), 12)


@pattern("q.w:1 k.w:1 v.w:1 o.w:0", families=True)
def everything_is_sixteen() -> ModelProto:
    """Length, width and heads times lanes are all 16, heads and lanes both 4: nothing may be told apart by size."""
    g = Net()
    x = g.x("N", 16, 16)
    q, k, v = (g.t(g.reshape(g.linear(x, n, 16, 16), -1, 16, 4, 4), 0, 2, 1, 3) for n in "qkv")
    s = g.Softmax(g.Mul(g.MatMul(q, g.t(k, 0, 1, 3, 2)), g.f(0.5)), axis=-1)
    y = g.reshape(g.t(g.MatMul(s, v), 0, 2, 1, 3), -1, 16, 16)
    g.out(g.linear(y, "o", 16, 16))
    return g.model()


@pattern("q.w:1 o.w:0", families=True, dims={"T": (4, 6)})
def heads_folded_into_time() -> ModelProto:
    """[N, T, H, K] seen as [N, T H, K] by a layer shared between heads, and back."""
    g = Net()
    x = g.linear(g.x("N", 4, 7), "q", 7, 18)
    x = g.reshape(x, 0, 12, 6)
    x = g.Tanh(g.linear(x, "m", 6, 5))
    x = g.reshape(x, 0, 4, 15)
    g.out(g.linear(x, "o", 15, 3))
    return g.model()


@pattern("a.w:0 o.w:0", families=True)
def lanes_before_heads() -> ModelProto:
    """Channel index is lane * heads + head: a head is every third channel."""
    g, x = _start(12, 4)
    q = g.t(g.reshape(x, -1, 4, 3, 16), 0, 2, 3, 1)  # [N, heads 3, tokens, lanes 4]
    s = g.Softmax(g.MatMul(q, g.t(q, 0, 1, 3, 2)), axis=-1)
    y = g.reshape(g.t(g.MatMul(s, q), 0, 2, 3, 1), -1, 16, 12)
    g.out(g.linear(y, "o", 12, 3))
    return g.model()


@pattern("a.w:0 l.W:1,2", dims={"W": (8, 12)})
def channels_and_height_merged_for_lstm() -> ModelProto:
    """[N, C, H, W] to [W, N, C H]: the LSTM's input width is a product."""
    g = Net()
    x = g.cbr(g.x("N", 3, 4, "W"), "a", 6, 3)
    x = g.reshape(g.t(x, 3, 0, 1, 2), 0, 0, 24)
    w, r = g.w("l.W", 1, 40, 24, scale=0.2), g.w("l.R", 1, 40, 10, scale=0.3)
    y, _ = g.LSTM(x, w, r, hidden_size=10, n=2)
    g.out(g.linear(g.Squeeze(y, g.c([1])), "o", 10, 3))
    return g.model()


@pattern("z.w:1 l.W:1 o.w:0")
def lstm_state_from_a_layer() -> ModelProto:
    """Captioning: the initial state is computed, so the hidden width ties with that layer's outputs."""
    g = Net()
    z = g.Tanh(g.linear(g.x("N", 5, name="image"), "z", 5, 10))
    h = g.Unsqueeze(z, g.c([0]))
    w, r = g.w("l.W", 1, 40, 7, scale=0.3), g.w("l.R", 1, 40, 10, scale=0.3)
    y, yh, _ = g.LSTM(g.x(6, "N", 7), w, r, None, None, h, h, hidden_size=10, n=3)
    g.out(g.linear(g.Add(g.Squeeze(y, g.c([1])), yh), "o", 10, 3))
    return g.model()


@pattern("l.W:1 o.w:0")
def gru_last_states_of_both_directions() -> ModelProto:
    g = Net()
    w, r = g.w("l.W", 2, 24, 7, scale=0.3), g.w("l.R", 2, 24, 8, scale=0.3)
    b = g.w("l.B", 2, 48, scale=0.2)
    _, h = g.GRU(g.x(6, "N", 7), w, r, b, hidden_size=8, direction="bidirectional", n=2)
    h = g.reshape(g.t(h, 1, 0, 2), -1, 16)
    g.out(g.linear(h, "o", 16, 3))
    return g.model()


@pattern("a.w:1 b.w:1 W:0,1")
def one_matrix_sliced_for_two_inputs() -> ModelProto:
    """concat(x, y) W written as x W[:8] + y W[8:]."""
    g = Net()
    x = g.Relu(g.linear(g.x("N", 7), "a", 7, 8))
    y = g.Relu(g.linear(g.x("N", 5, name="z"), "b", 5, 6))
    w = g.w("W", 14, 12, scale=0.3)
    x = g.Add(g.MatMul(x, g.slice(w, 0, 8, 0)), g.MatMul(y, g.slice(w, 8, 14, 0)))
    g.out(g.linear(g.Relu(x), "o", 12, 3))
    return g.model()


@pattern("a.w:0 b.w:0,1")
def constant_map_concatenated() -> ModelProto:
    """Learned constant channels beside computed ones."""
    g, x = _start(8)
    n = g.Gather(g.Shape(x), g.c([0]))
    c = g.Expand(g.w("prompt", 1, 4, 6, 6), g.Concat(n, g.c([1, 1, 1]), axis=0))
    return _end(g, g.Concat(x, c, axis=1), 12)


@pattern("a.w:0 b.w:0,1")
def siblings_with_equal_names() -> ModelProto:
    """Both branches of an If hold an initializer of one name and different contents."""
    g, x = _start(8)
    flag = g.x(name="flag", dtype=BOOL)
    branches = []
    for k in range(2):
        s = g.body()
        value = np.random.default_rng(k).standard_normal((8, 1, 1)).astype(np.float32)
        s.initializers.append(numpy_helper.from_array(value, "gain"))
        s.y(s.op("Mul", x, "gain", out="scaled"), dtype=F32, shape=["N", 8, 6, 6])
        branches.append(s.graph(f"branch{k}"))
    x = g.If(flag, then_branch=branches[0], else_branch=branches[1])
    return _end(g, x, 8)


@pattern("a.w:1 o.w:0")
def scan_over_stacked_layers() -> ModelProto:
    """Layers of one shape stacked along a first axis and scanned, as JAX writes deep networks."""
    g = Net()
    x = g.Relu(g.linear(g.x("N", 7), "a", 7, 8))
    s = g.body()
    h, w, b = s.x("N", 8, name="h"), s.x(8, 8, name="w"), s.x(8, name="b")
    s.y(s.Tanh(s.Add(s.MatMul(h, w), b)), dtype=F32, shape=["N", 8])
    x = g.Scan(x, g.w("stack.w", 3, 8, 8, scale=0.4), g.w("stack.b", 3, 8), body=s.graph("layer"), num_scan_inputs=2)
    g.out(g.linear(x, "o", 8, 3), dtype=F32, shape=["N", 3])
    return g.model()


@pattern("b.w:0")
def normalised_input_and_batch_norm_on_it() -> ModelProto:
    """Mean, deviation and BatchNormalization straight on the input are frozen with it."""
    g = Net()
    x = g.Div(g.Sub(g.x("N", 3, 6, 6), g.w("mean", 1, 3, 1, 1)), g.positive("std", 1, 3, 1, 1))
    x = g.cbr(g.bn(x, "n", 3), "a", 8, 3)
    return _end(g, x, 8)


@pattern("a.w:0 b.w:0,1")
def clip_and_crop_and_resize_with_roi() -> ModelProto:
    g, x = _start(8)
    x = g.Clip(x, g.f(-0.5, "low"), g.f(2.0, "high"))
    roi = g.f([0, 0, 0.1, 0.2, 1, 1, 0.9, 0.8])
    x = g.Resize(x, roi, None, g.c([2, 8, 5, 7]), mode="linear", coordinate_transformation_mode="tf_crop_and_resize")
    g.inputs[0].CopyFrom(helper.make_tensor_value_info("x", F32, [2, 3, 6, 6]))
    g.head(g.cbr(x, "b", 10, 8), 10, dtype=F32, shape=[2, 5])
    return g.model()


@pattern("a.w:1 o.w:0")
def einsum_diagonal_and_total() -> ModelProto:
    """A trace and a total as scalars that scale the features."""
    g = Net()
    x = g.Tanh(g.linear(g.x("N", 5, 7), "a", 7, 12))
    gram = g.Einsum(x, x, equation="ntc,nsc->nts")
    trace = g.Unsqueeze(g.Einsum(gram, equation="ntt->n"), g.c([1]))
    x = g.Mul(g.ReduceMean(x, g.c([1]), keepdims=0), g.Sigmoid(trace))
    g.out(g.linear(x, "o", 12, 3))
    return g.model()


@pattern("a.w:0 m.w:0 b.w:0,1", families=True)
def partial_convolution_then_groups() -> ModelProto:
    """PConv: a quarter of the channels is convolved, the rest passes; then a 1x1 in four groups."""
    g, x = _start(16)
    y, rest = g.split(x, 4, 12)
    x = g.Concat(g.conv(y, "pc", 4, 4), rest, axis=1)
    return _end(g, g.cbr(x, "m", 24, 16, 1, group=4), 24)


@pattern("a.w:0 b.w:0,1")
def flattened_batch_and_channels() -> ModelProto:
    """Flatten(axis=2) merges batch with channels; the way back names the channel count."""
    g, x = _start(12)
    y = g.Softmax(g.Flatten(x, axis=2), axis=1)
    return _end(g, g.Mul(x, g.Reshape(y, g.c([-1, 12, 6, 6]))), 12)


@pattern("a.w:0 b.w:0,1")
def gain_shared_across_different_maps() -> ModelProto:
    """One per-channel constant scales two maps that otherwise have nothing in common: they tie or part, both right."""
    g, x = _start(8)
    gain = g.w("gain", 8, 1, 1, shift=1)
    y = g.cbr(g.Mul(x, gain), "b", 8, 8)
    g.head(g.cbr(g.Mul(y, gain), "c", 10, 8), 10)
    return g.model()


@pattern("b.w:0", inexact_cut="a.w:0 b.w:1")
def reduce_over_channels_and_space() -> ModelProto:
    """A mean over channels and space as one scalar per image."""
    g, x = _start(8)
    m = g.ReduceMean(x, g.c([1, 2, 3]))
    return _end(g, g.Sub(x, m), 8)


@pattern("z.w:1 b.w:0,1", widths={"z.w:1": 48})
def adaptive_instance_norm() -> ModelProto:
    """StyleGAN: a layer's outputs are reshaped to [N, 2, C, 1, 1] and taken apart as scale and shift, on a tiled map."""
    g = Net()
    s = g.reshape(g.linear(g.x("N", 7, name="style"), "z", 7, 96), -1, 2, 48, 1, 1)
    scale, shift = (g.Gather(s, g.c(i), axis=1) for i in range(2))
    x = g.conv(g.x("N", 3, 6, 6), "a", 48, 3)
    x = g.InstanceNormalization(x, g.f(np.ones(48), "one"), g.f(np.zeros(48), "zero"))
    return _end(g, g.Add(g.Mul(x, g.Add(scale, g.f(1))), shift), 48)


@pattern("a.w:0 q.w:1")
def capsule_votes() -> ModelProto:
    """Batched matrices [types, in, out] applied by a broadcast MatMul, squared length as activation."""
    g, x = _start(12, 4)
    u = g.t(g.reshape(x, -1, 3, 4, 16), 0, 1, 3, 2)  # [N, types 3, 16, 4]
    v = g.MatMul(u, g.w("votes", 3, 4, 6, scale=0.5))
    v = g.ReduceMean(v, g.c([2]), keepdims=0)
    x = g.Relu(g.linear(g.reshape(v, -1, 18), "q", 18, 8))
    g.out(g.linear(x, "o", 8, 3))
    return g.model()


def _shuffle(g: Net, x: str, groups: int, channels: int) -> str:
    x = g.reshape(x, -1, groups, channels // groups, 6, 6)
    return g.reshape(g.t(x, 0, 2, 1, 3, 4), -1, channels, 6, 6)


@pattern("a.w:0 b.w:0,1", widths={"a.w:0": 6})
def two_shuffles_in_a_row() -> ModelProto:
    """Still nothing but an order: twelve free units."""
    g, x = _start(12)
    return _end(g, _shuffle(g, _shuffle(g, x, 2, 12), 3, 12), 12)


@pattern("a.w:0 q.w:0 b.w:0,1", families=True)
def two_shuffles_then_groups_on_a_residual() -> ModelProto:
    g, x = _start(12)
    y = _shuffle(g, _shuffle(g, x, 2, 12), 2, 12)
    y = g.conv(g.conv(y, "q", 12, 12, 1), "m", 12, 12, group=3)
    return _end(g, g.Add(y, x), 12)


@pattern("z.w:1 a.w:1 o.w:0")
def batch_axis_first_here_and_second_there() -> ModelProto:
    """One named batch axis at different places of two inputs."""
    g = Net()
    z = g.Relu(g.linear(g.x("N", 5, name="z"), "z", 5, 10))
    x = g.Relu(g.linear(g.x(6, "N", 7), "a", 7, 10))
    g.out(g.linear(g.Add(z, x), "o", 10, 3))
    return g.model()
