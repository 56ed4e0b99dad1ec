"""Shapes through If, Loop and Scan, and through sequences."""

from __future__ import annotations

import time
from typing import Any

import pytest

from graphprune.shapes import infer
from tests.shape_nets import parse, shapes_of

IF = """agraph (bool c, float[2,3] x) => (float[] y) {
    %s
    y = If (k) <then_branch = t () => (float[] a) { a = Transpose (x) },
                else_branch = e () => (float[] b) { z = Constant <value_ints = [%s]> ()  b = Reshape (x, z) }>
}"""


@pytest.mark.parametrize(
    ("condition", "target", "expected"),
    [
        ("k = Identity (c)", "3, 2", (3, 2)),
        ("k = Identity (c)", "3, -1, 1", None),
        ("k = Identity (c)", "1, 6", (None, None)),
        ("k = Constant <value = bool {1}> ()", "1, 6", (3, 2)),
        ("k = Constant <value = bool {0}> ()", "1, 6", (1, 6)),
    ],
)
def test_if(condition: str, target: str, expected: Any) -> None:
    found = shapes_of(IF % (condition, target), c=(), x=(2, 3))
    assert found["y"] == expected
    assert found["a"] == (3, 2)  # inside, with a value captured from outside


def test_a_branch_that_never_runs_may_contradict_itself() -> None:
    model = parse(IF % ("k = Constant <value = bool {1}> ()", "5, 5"))
    assert not infer(model, {"c": (), "x": (2, 3)}).problems


LOOP = """agraph (int64 m, float[2,3] x) => (float[] s, float[] p) {
    n = Constant <value = int64 {4}> ()  t = Constant <value = bool {1}> ()
    s, p = Loop (%s, t, x) <body = b (int64 i, bool c, float[] h) => (bool d, float[] g, float[] o) {
        d = Identity (c)  g = %s  o = ReduceSum <keepdims = 0> (h)
    }>
}"""


@pytest.mark.parametrize(
    ("trips", "state", "s", "p"),
    [
        ("n", "Relu (h)", (2, 3), (4,)),
        ("m", "Relu (h)", (2, 3), (None,)),
        ("n", "Concat <axis = 0> (h, h)", (None, 3), (4,)),
        ("n", "NonZero (h)", (2, None), (4,)),
    ],
)
def test_loop(trips: str, state: str, s: Any, p: Any) -> None:
    found = shapes_of(LOOP % (trips, state), m=(), x=(2, 3))
    assert (found["s"], found["p"]) == (s, p)


def test_scan_with_axes() -> None:
    found = shapes_of(
        """agraph (float[4] z, float[3,6,4] x) => (float[] s, float[] p) {
            s, p = Scan <num_scan_inputs = 1, scan_input_axes = [1], scan_output_axes = [-1],
                body = b (float[] h, float[] e) => (float[] g, float[] o) { g = Identity (h)  o = Add (e, h) }> (z, x)
        }""",
        z=(4,),
        x=(3, 6, 4),
    )
    assert found["e"] == (3, 4)
    assert found["s"] == (4,)
    assert found["p"] == (3, 4, 6)


def test_deeply_nested_loops_end() -> None:
    body = "Concat <axis = 0> (h{0}, h{0})"
    for depth in range(12, 0, -1):
        inner = body.replace("{0}", str(depth))
        body = (
            f"Loop (n, t, h{{0}}) <body = b{depth} (int64 i{depth}, bool c{depth}, float[] h{depth}) => "
            f"(bool d{depth}, float[] g{depth}) {{ d{depth} = Identity (c{depth})  g{depth} = {inner} }}>"
        )
    text = "n = Constant <value = int64 {4}> ()  t = Constant <value = bool {1}> ()  y = " + body.replace("h{0}", "x")
    started = time.perf_counter()
    found = shapes_of(f"agraph (float[2,3] x) => (float[] y) {{ {text} }}", x=(2, 3))
    assert found["y"] in [(None, 3), None]
    assert time.perf_counter() - started < 5


def test_sequences_pass_through() -> None:
    found = shapes_of(
        """agraph (float[2,3] x) => (float[] y) {
            q = SequenceConstruct (x, x)  z = Constant <value = int64 {0}> ()  y = SequenceAt (q, z)
        }""",
        x=(2, 3),
    )
    assert found["q"] is None
    assert found["y"] == (2, 3)
