"""Random networks, pruned at random settings, judged by the oracle.

A network is drawn as a program: each step takes one or two of the maps made so far and adds another.  Hypothesis
shrinks a failing one to the fewest steps that still fail.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from onnx import ModelProto

import graphprune as gp
from tests import oracle
from tests.patterns.build import F32, Net

SIZE = 8


@dataclass(frozen=True)
class Map:
    """A value [N, channels, size, size]."""

    name: str
    channels: int
    size: int


@dataclass
class Sketch:
    """The network so far, and the choices that make it."""

    draw: Callable[[st.SearchStrategy[Any]], Any]
    net: Net = field(default_factory=Net)
    maps: list[Map] = field(default_factory=list)
    steps: list[str] = field(default_factory=list)
    layers: int = 0

    def pick(self, *options: Any) -> Any:
        return self.draw(st.sampled_from(options))

    def chance(self) -> bool:
        return bool(self.draw(st.booleans()))

    def map(self) -> Map:
        """One of the maps made so far; the last one most often."""
        return self.maps[-1 - min(self.draw(st.sampled_from([0, 0, 0, 1, 2, 5])), len(self.maps) - 1)]

    def layer(self) -> str:
        self.layers += 1
        return f"l{self.layers}"

    def add(self, name: str, channels: int, size: int) -> None:
        self.maps.append(Map(name, channels, size))


def conv(s: Sketch, m: Map, out: int | None = None, stride: int = 1) -> str:
    out = out or s.pick(4, 6, 8, 12)
    return s.net.conv(m.name, s.layer(), out, m.channels, s.pick(1, 3), bias=s.chance(), strides=[stride] * 2)


def step_conv(s: Sketch, m: Map) -> None:
    out = s.pick(4, 6, 8, 12)
    stride = s.pick(1, 1, 2) if m.size > 2 else 1
    s.add(conv(s, m, out, stride), out, m.size // stride)


def step_grouped_conv(s: Sketch, m: Map) -> None:
    group = s.pick(*[d for d in (2, 3, 4) if m.channels % d == 0] or [1])
    out = group * s.pick(2, 3)
    s.add(s.net.conv(m.name, s.layer(), out, m.channels, group=group), out, m.size)


def step_depthwise(s: Sketch, m: Map) -> None:
    times = s.pick(1, 1, 2)
    out = m.channels * times
    s.add(s.net.conv(m.name, s.layer(), out, m.channels, group=m.channels), out, m.size)


def step_conv_transpose(s: Sketch, m: Map) -> None:
    if m.size > SIZE:
        return step_conv(s, m)
    name, out = s.layer(), s.pick(4, 6)
    w = s.net.w(f"{name}.w", m.channels, out, 2, 2, scale=0.3)
    s.add(s.net.ConvTranspose(m.name, w, s.net.w(f"{name}.b", out), strides=[2, 2]), out, m.size * 2)


def step_batch_norm(s: Sketch, m: Map) -> None:
    s.add(s.net.bn(m.name, s.layer(), m.channels), m.channels, m.size)


def step_instance_norm(s: Sketch, m: Map) -> None:
    if m.size < 2:
        return step_batch_norm(s, m)
    n = s.layer()
    scale, shift = s.net.w(f"{n}.s", m.channels, shift=1), s.net.w(f"{n}.h", m.channels)
    s.add(s.net.InstanceNormalization(m.name, scale, shift), m.channels, m.size)


def step_group_norm(s: Sketch, m: Map) -> None:
    if m.channels % 2:
        return step_batch_norm(s, m)
    g, n = s.net, s.layer()
    y = g.InstanceNormalization(
        g.reshape(m.name, 0, 2, -1), g.f(np.ones(2), f"{n}.ones"), g.f(np.zeros(2), f"{n}.zeros")
    )
    y = g.reshape(y, -1, m.channels, m.size, m.size)
    y = g.Add(g.Mul(y, g.w(f"{n}.s", m.channels, 1, 1, shift=1)), g.w(f"{n}.h", m.channels, 1, 1))
    s.add(y, m.channels, m.size)


def step_activation(s: Sketch, m: Map) -> None:
    op = s.pick("Relu", "Sigmoid", "Tanh", "HardSwish", "LeakyRelu", "Softplus")
    s.add(s.net.op(op, m.name), m.channels, m.size)


def step_prelu(s: Sketch, m: Map) -> None:
    s.add(s.net.PRelu(m.name, s.net.w(f"{s.layer()}.slope", m.channels, 1, 1, scale=0.3)), m.channels, m.size)


def step_residual(s: Sketch, m: Map) -> None:
    inner = s.pick(3, 5, 8)
    y = s.net.Relu(conv(s, m, inner))
    y = conv(s, Map(y, inner, m.size), m.channels)
    s.add(s.net.Add(m.name, y), m.channels, m.size)


def step_meet(s: Sketch, m: Map) -> None:
    """Add or multiply two maps of one shape."""
    other = s.pick(*[o for o in s.maps if (o.channels, o.size) == (m.channels, m.size)])
    s.add(s.net.op(s.pick("Add", "Mul", "Max", "Sub"), m.name, other.name), m.channels, m.size)


def step_concat(s: Sketch, m: Map) -> None:
    other = s.pick(*[o for o in s.maps if o.size == m.size])
    if m.channels + other.channels > 32:
        return step_conv(s, m)
    s.add(s.net.Concat(m.name, other.name, axis=1), m.channels + other.channels, m.size)


def step_split(s: Sketch, m: Map) -> None:
    if m.channels < 3:
        return step_conv(s, m)
    first = s.pick(*{1, m.channels // 2, m.channels - 2})
    for name, c in zip(s.net.split(m.name, first, m.channels - first), (first, m.channels - first), strict=True):
        s.add(name, c, m.size)


def step_slice(s: Sketch, m: Map) -> None:
    start, step = s.pick(0, 1, -2), s.pick(1, 2, 3, -1)
    start = m.channels - 1 if step < 0 else start % m.channels
    end = -99 if step < 0 else 99
    s.add(
        s.net.slice(m.name, start, end, step=step),
        len(range(m.channels)[start : None if step < 0 else end : step]),
        m.size,
    )


def step_shuffle(s: Sketch, m: Map) -> None:
    if m.channels % 2:
        return step_slice(s, m)
    g = s.net
    y = g.t(g.reshape(m.name, -1, 2, m.channels // 2, m.size, m.size), 0, 2, 1, 3, 4)
    s.add(g.reshape(y, -1, m.channels, m.size, m.size), m.channels, m.size)


def step_gather(s: Sketch, m: Map) -> None:
    index = s.draw(st.lists(st.integers(-m.channels, m.channels - 1), min_size=1, max_size=m.channels))
    s.add(s.net.Gather(m.name, s.net.c(index), axis=1), len(index), m.size)


def step_pad(s: Sketch, m: Map) -> None:
    before, after = s.pick(0, 1, 2), s.pick(0, 1)
    y = s.net.Pad(m.name, s.net.c([0, before, 0, 0, 0, after, 0, 0]))
    s.add(y, m.channels + before + after, m.size)


def step_tile(s: Sketch, m: Map) -> None:
    if m.channels > 12:
        return step_slice(s, m)
    s.add(s.net.Tile(m.name, s.net.c([1, 2, 1, 1])), m.channels * 2, m.size)


def step_squeeze_excite(s: Sketch, m: Map) -> None:
    g, n, inner = s.net, s.layer(), s.pick(2, 4)
    y = g.Relu(g.conv(g.GlobalAveragePool(m.name), f"{n}r", inner, m.channels, 1))
    y = g.Sigmoid(g.conv(y, f"{n}e", m.channels, inner, 1))
    s.add(g.Mul(m.name, y), m.channels, m.size)


def step_pool(s: Sketch, m: Map) -> None:
    op = s.pick("MaxPool", "AveragePool")
    if m.size < 4 or s.chance():
        s.add(s.net.op(op, m.name, kernel_shape=[3, 3], pads=[1] * 4), m.channels, m.size)
    else:
        s.add(s.net.op(op, m.name, kernel_shape=[2, 2], strides=[2, 2]), m.channels, m.size // 2)


def step_upsample(s: Sketch, m: Map) -> None:
    if m.size > SIZE:
        return step_pool(s, m)
    y = s.net.Resize(m.name, None, s.net.f([1, 1, 2, 2]), mode=s.pick("nearest", "linear"))
    s.add(y, m.channels, m.size * 2)


def step_pixel_shuffle(s: Sketch, m: Map) -> None:
    if m.size > SIZE or m.channels % 4:
        return step_space_to_depth(s, m)
    s.add(s.net.DepthToSpace(m.name, blocksize=2, mode=s.pick("CRD", "DCR")), m.channels // 4, m.size * 2)


def step_space_to_depth(s: Sketch, m: Map) -> None:
    if m.size < 4 or m.channels > 8:
        return step_conv(s, m)
    s.add(s.net.SpaceToDepth(m.name, blocksize=2), m.channels * 4, m.size // 2)


def step_layer_norm(s: Sketch, m: Map) -> None:
    if m.channels < 2:
        return step_batch_norm(s, m)
    y = s.net.ln(s.net.t(m.name, 0, 2, 3, 1), s.layer(), m.channels)
    s.add(s.net.t(y, 0, 3, 1, 2), m.channels, m.size)


def step_mlp(s: Sketch, m: Map) -> None:
    g, n, hidden = s.net, s.layer(), s.pick(5, 9)
    y = g.t(g.reshape(m.name, 0, m.channels, m.size * m.size), 0, 2, 1)
    y = g.linear(g.Tanh(g.linear(y, f"{n}i", m.channels, hidden)), f"{n}o", hidden, m.channels)
    s.add(g.reshape(g.t(y, 0, 2, 1), 0, m.channels, m.size, m.size), m.channels, m.size)


def step_attention(s: Sketch, m: Map) -> None:
    if m.size > SIZE:
        return step_pool(s, m)
    g, n, heads, lanes = s.net, s.layer(), s.pick(2, 3), s.pick(2, 4)
    tokens, width = m.size * m.size, heads * lanes
    x = g.t(g.reshape(m.name, 0, m.channels, tokens), 0, 2, 1)
    if s.chance():
        parts = g.split(g.linear(x, f"{n}qkv", m.channels, 3 * width), width, width, width, axis=2)
    else:
        parts = [g.linear(x, f"{n}{p}", m.channels, width) for p in "qkv"]
    q, k, v = (g.t(g.reshape(p, -1, tokens, heads, lanes), 0, 2, 1, 3) for p in parts)
    a = g.Softmax(g.Mul(g.MatMul(q, g.t(k, 0, 1, 3, 2)), g.f(lanes**-0.5)), axis=-1)
    y = g.linear(g.reshape(g.t(g.MatMul(a, v), 0, 2, 1, 3), 0, tokens, width), f"{n}o", width, m.channels)
    y = g.reshape(g.t(g.Add(x, y) if s.chance() else y, 0, 2, 1), 0, m.channels, m.size, m.size)
    s.add(y, m.channels, m.size)


STEPS = {name[5:]: step for name, step in list(globals().items()) if name.startswith("step_")}


def head(s: Sketch, m: Map, name: str) -> None:
    g, n = s.net, s.layer()
    kind = s.pick("pool", "flatten", "matmul", "map")
    if kind == "map":
        return g.out(g.conv(m.name, n, 3, m.channels, 1), name, dtype=F32, shape=["N", 3, m.size, m.size])
    if kind == "flatten":
        x = g.gemm(g.Flatten(m.name), n, m.channels * m.size * m.size, 4)
    elif kind == "pool":
        x = g.gemm(g.Flatten(g.GlobalAveragePool(m.name)), n, m.channels, 4)
    else:
        x = g.linear(g.ReduceMean(m.name, g.c([2, 3]), keepdims=0), n, m.channels, 4)
    return g.out(x, name, dtype=F32, shape=["N", 4])


@st.composite
def networks(draw: Callable[[st.SearchStrategy[Any]], Any], longest: int = 10) -> tuple[ModelProto, list[str]]:
    """A model with one or two inputs and outputs, and the names of the steps that made it."""
    s = Sketch(draw)
    for i in range(s.pick(1, 1, 2)):
        channels = s.pick(1, 3)
        s.add(s.net.x("N", channels, SIZE, SIZE, name=f"x{i}"), channels, SIZE)
    step_conv(s, s.maps[-1])
    for step in draw(st.lists(st.sampled_from(sorted(STEPS)), min_size=1, max_size=longest)):
        s.steps.append(step)
        STEPS[step](s, s.map())
    head(s, s.maps[-1], "y0")
    if s.chance():
        head(s, s.map(), "y1")
    return s.net.model(), s.steps


SETTINGS = st.fixed_dictionaries(
    {
        "rate": st.sampled_from([0.2, 0.3, 0.5, 0.7]),
        "scope": st.sampled_from(["group", "global"]),
        "grain": st.sampled_from(["coarse", "fine", "both"]),
        "exact": st.booleans(),
    }
)


def judge(model: ModelProto, steps: list[str], options: dict[str, Any]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out.onnx"
        try:
            gp.prune(model, passes=["l1"], seed=0, **options).save(out)
        except gp.GraphPruneError as error:
            assert "nothing is prunable" in str(error), f"{steps}: {error}"
            event("nothing prunable")
            return
        plan = json.loads(out.with_name("out.plan.json").read_text())
        inexact = any(g["kept"] < g["units"] and not g["exact"] for g in plan["groups"])
        event("inexact" if inexact else "exact")
        report = oracle.check(
            model,
            out,
            plan,
            rate=options["rate"] if (options["scope"], options["grain"]) == ("group", "coarse") else None,
            exact=options["exact"],
            masked=not inexact,
        )
    assert plan["verify"]["passed"]
    assert not (inexact and options["exact"])
    assert not report.problems, "\n".join([" ".join(steps), *report.problems])


COMMON: dict[str, Any] = {"deadline": None, "suppress_health_check": list(HealthCheck), "print_blob": True}


@settings(max_examples=250, derandomize=True, **COMMON)
@given(networks(), SETTINGS)
def test_random_network(network: tuple[ModelProto, list[str]], options: dict[str, Any]) -> None:
    judge(*network, options)


@pytest.mark.slow
@settings(max_examples=3000, **COMMON)
@given(networks(longest=30), SETTINGS)
def test_many_random_networks(network: tuple[ModelProto, list[str]], options: dict[str, Any]) -> None:
    judge(*network, options)
