"""Axes that pass through where others are worked on, and axes divided crosswise that still share something."""

from __future__ import annotations

from onnx import ModelProto, helper

from tests.patterns.build import F32, Net, pattern


def _shuffle(g: Net, x: str, groups: int, c: int, size: int = 6) -> str:
    x = g.t(g.reshape(x, -1, groups, c // groups, size, size), 0, 2, 1, 3, 4)
    return g.reshape(x, -1, c, size, size)


@pattern(inexact_cut="u.w:1 d.w:0 n.s:0 n.h:0", widths={"u.w:1": 20, "d.w:0": 10})
def spatial_gating_unit() -> ModelProto:
    """gMLP: a convolution over time with a window of one mixes positions, features are its spatial axis."""
    g = Net()
    x = g.linear(g.x("N", 8, 7), "i", 7, 12)
    a, v = g.split(g.Relu(g.linear(x, "u", 12, 40)), 20, 20, axis=2)
    v = g.Conv(g.ln(v, "n", 20), g.w("mix.w", 8, 8, 1), g.w("mix.b", 8))
    y = g.linear(g.Mul(a, v), "d", 20, 12)
    g.out(g.linear(g.ReduceMean(g.Add(x, y), g.c([1]), keepdims=0), "o", 12, 3))
    return g.model()


@pattern("e.w:1 c.w:1 o.w:0", widths={"e.w:1": 6})
def windows_of_one_along_one_axis() -> ModelProto:
    """[batch, 1, time, features] under 3 x 1 windows: features pass; the 1 x 1 window with stride 2 does not matter."""
    g = Net()
    x = g.Unsqueeze(g.Relu(g.linear(g.x("N", 8, 7), "e", 7, 12)), g.c([1]))
    x = g.Conv(x, g.w("t.w", 4, 1, 3, 1), g.w("t.b", 4), pads=[1, 0, 1, 0], strides=[2, 1])
    x = g.Squeeze(g.Conv(g.Relu(x), g.w("c.w", 1, 4, 1, 1)), g.c([1]))
    g.out(g.linear(g.ReduceMean(x, g.c([1]), keepdims=0), "o", 12, 3))
    return g.model()


@pattern("b.w:0", frozen="e.w:1")
def stride_along_the_features() -> ModelProto:
    """A window of one that steps by two over the features drops every other one: nothing may shift."""
    g = Net()
    x = g.Unsqueeze(g.Relu(g.linear(g.x("N", 8, 7), "e", 7, 12)), g.c([1]))
    x = g.Conv(x, g.w("b.w", 10, 1, 1, 1), g.w("b.b", 10), strides=[1, 2])
    g.head(g.Relu(x), 10)
    return g.model()


@pattern("a.w:0 i.s:0 i.h:0 b.w:1")
def statistics_repeated_for_the_batch() -> ModelProto:
    """InstanceNorm as torch traces it: a batch norm over batch x channels, parameters tiled at run time."""
    g = Net()
    x = g.conv(g.x("N", 3, 6, 6), "a", 12, 3)
    n = g.Gather(g.Shape(x), g.c([0]))
    many = [
        g.Tile(p, n)
        for p in (
            g.w("i.s", 12, scale=0.2, shift=1), g.w("i.h", 12), g.w("i.m", 12, scale=0.2), g.positive("i.v", 12),
        )
    ]  # fmt: skip
    y = g.Reshape(x, g.Concat(g.c([1]), g.Mul(n, g.c([12])), g.c([6, 6]), axis=0))
    y = g.Reshape(g.BatchNormalization(y, *many), g.Concat(n, g.c([12, 6, 6]), axis=0))
    g.head(g.cbr(g.Relu(y), "b", 10, 12), 10, dtype=F32, shape=["N", 5])
    return g.model()


@pattern("s.w:0 m1.w:0 m2.w:0 b.w:0,1", widths={"s.w:0": 6, "m2.w:0": 24, "b.w:1": 24})
def trunk_of_a_shufflenet_in_three_groups() -> ModelProto:
    """12 pooled channels beside 3 x 12, then 3 groups of 16: only indices 4 apart live and die together."""
    g = Net()
    x = g.cbr(g.x("N", 3, 6, 6), "s", 12, 3)
    y = g.conv(g.Relu(g.conv(x, "in", 18, 12, 1)), "m1", 36, 18, group=3)
    x = g.Relu(g.Concat(x, y, axis=1))
    y = g.cbr(x, "enter", 24, 48, 1, group=3)
    y = g.conv(_shuffle(g, y, 3, 24), "m2", 48, 24, 1, group=3)
    g.head(g.cbr(g.Relu(g.Add(x, y)), "b", 10, 48), 10)
    return g.model()


@pattern("a.w:0", frozen="c.w:0")
def one_name_for_a_cut_axis_and_a_whole_one() -> ModelProto:
    """Exporters name sizes that they compute: one name stands on channels that are cut and on others that are not."""
    g = Net()
    x, means = g.x("N", 3, 6, 6), []
    for name, i in (("a", 3), ("c", 8)):
        x = g.conv(x, name, 8, i)
        x = g.Reshape(x, g.Concat(g.Gather(g.Shape(x), g.c([0])), g.c([-1, 36]), axis=0))
        means.append(g.ReduceMean(g.Mul(x, x), g.c([2])))
        x = g.Div(x, g.Sqrt(g.Add(means[-1], g.f(1e-5))))
        x = g.reshape(x, 0, -1, 6, 6)
    g.out(x, dtype=F32, shape=["N", 8, 6, 6])
    model = g.model()
    for value in means:
        model.graph.value_info.append(helper.make_tensor_value_info(value, F32, ["N", "8*s//s", 1]))
    return model


@pattern("q.w:0 v.w:0 o.w:0", inexact_cut="e.w:1 n.s:0", families=True)
def groups_over_a_normalised_trunk() -> ModelProto:
    """Grouped projections of a layer-normed trunk: with --exact the trunk's groups stay, and what lies in them is cut."""
    g = Net()
    x = g.ln(g.linear(g.x("N", 6, 7), "e", 7, 16), "n", 16)
    x = g.t(x, 0, 2, 1)
    q = g.Conv(x, g.w("q.w", 16, 8, 1), g.w("q.b", 16), group=2)
    v = g.Conv(x, g.w("v.w", 16, 8, 1), g.w("v.b", 16), group=2)
    y = g.t(g.Mul(g.Tanh(q), v), 0, 2, 1)
    g.out(g.linear(y, "o", 16, 3))
    return g.model()
